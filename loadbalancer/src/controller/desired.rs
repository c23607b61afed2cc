//! What the kernel should say now: what is planned, with what the kernel must not forget yet.

use std::collections::HashMap;

use loadbalancer_common::backend::Backend;
use model::ids::{BackendId, ServerId, ServiceId};
use model::route::Resolved;

use super::plane::Plane;
use super::registry::Registry;
use crate::dataplane::ids::PathNumber;
use crate::dataplane::stats;
use decide::plan::desired::{Desired, DesiredBackend, DesiredProbe};
use decide::plan::topology::responder_id;
use decide::plan::{add_responders, plan};
use decide::sampling::Sampling;

/// `prober`: where probes through VIPs come in, and all of them.
pub fn desired(
    registry: &Registry,
    plane: &Plane,
    resolved: &Resolved,
    sampling: &Sampling,
    prober: (Option<u32>, Vec<DesiredProbe>),
) -> Desired {
    let topology = registry.config().topology();
    let statuses = registry.statuses();
    let mut desired = plan(&topology, plane.seed, &statuses, resolved, &leaving(registry, plane), sampling);
    keep_sources(plane, &mut desired);
    (desired.prober, desired.probes) = prober;
    if let Some(outer) = desired.prober {
        add_responders(&topology, outer, &mut desired.services);
    }
    desired
}

/// Servers that the configuration has no more, but that still have live flows, by service.
pub fn leaving(registry: &Registry, plane: &Plane) -> HashMap<ServiceId, Vec<DesiredBackend>> {
    let mut leaving: HashMap<ServiceId, Vec<DesiredBackend>> = HashMap::new();
    for service in registry.config().services.iter().flat_map(|service| service.ids()) {
        let Some(number) = plane.service_number(service) else { continue };
        for (id, backend) in plane.reconciler.backends_of(number) {
            let server = ServerId { service, backend: BackendId(backend.identity) };
            if registry.server(server).is_some() || plane.reconciler.active(id) == 0 {
                continue;
            }
            let port = backend.port.get();
            leaving.entry(service).or_default().push(DesiredBackend {
                id: server.backend,
                addr: stats::address(backend),
                port: (port != 0).then_some(port),
                source: stats::source(backend),
                flags: backend.flags & Backend::DOWN,
                tier: 0,
                ring: 0,
                help: None,
                load: 0,
                nominal: 0,
                set_weight: 0,
                high_water: backend.high_water,
                paths: plane.reconciler.path(PathNumber(backend.paths[0])).copied().into_iter().collect(),
            });
        }
    }
    leaving
}

/// A server without a route has no source of its own now, but its flows have one: what it sends once the route is back is
/// a reply. Taken for the machine's own, it would be answered with a reset.
fn keep_sources(plane: &Plane, desired: &mut Desired) {
    for service in &mut desired.services {
        for backend in service.backends.iter_mut().filter(|backend| backend.source.is_none()) {
            let id = ServerId { service: service.id, backend: backend.id };
            backend.source = plane.backend(id).and_then(stats::source);
        }
    }
}

/// Whether the kernel has servers that are in no configuration any more.
pub fn has_orphans(registry: &Registry, plane: &Plane) -> bool {
    plane.servers().any(|(id, _)| id.backend != responder_id() && registry.server(id).is_none())
}
