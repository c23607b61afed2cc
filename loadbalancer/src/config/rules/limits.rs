//! What of each size of the kernel's tables is used.

use std::collections::HashSet;

use crate::config::limits::{MOST_BACKENDS, MOST_RINGS, MOST_SERVICES};
use crate::config::root::Root;
use crate::config::schema::error::Errors;
use crate::config::schema::value::Given;
use crate::config::service::ServiceKeys;

struct Resource<'a> {
    what: &'static str,
    limit: u32,
    /// In `[limits]`, with the most that it takes.
    key: &'static str,
    given: &'a Given<u32>,
    most: u32,
    /// Of the resource, for each unit of the key.
    per_unit: usize,
    /// What a service takes.
    used_by: fn(&ServiceKeys) -> usize,
    /// What is taken without any.
    used: usize,
}

pub(super) fn check(root: &Root, errors: &mut Errors<'_>) {
    for resource in resources(root) {
        let mut used = resource.used;
        let mut first_without_room = None;
        for service in &root.services.all {
            used += (resource.used_by)(service);
            if used > resource.limit as usize {
                first_without_room.get_or_insert(&service.name.span);
            }
        }
        let Some(first) = first_without_room else {
            continue;
        };
        let Resource { key, most, .. } = resource;
        let wanted = used.div_ceil(resource.per_unit);
        let help = if wanted <= most as usize {
            format!("set {key} = {wanted} or higher in [limits]")
        } else {
            format!("[limits] takes {key} up to {most}: give some services to another gateway")
        };
        // A default stands nowhere in the file.
        let span = resource.given.span.as_ref().unwrap_or(first).clone();
        errors.add(span, format!("there are {used} {}, but room for {}", resource.what, resource.limit), help);
    }
}

/// Changes are built beside what is in use, hence two rings. Of VIPs a service has four per unit of `services`.
fn resources(root: &Root) -> [Resource<'_>; 4] {
    let limits = &root.limits;
    let responds = root.services.all.iter().any(ServiceKeys::responds);
    [
        Resource {
            what: "services (one per family in nat and dnat)",
            limit: limits.services.value,
            key: "services",
            given: &limits.services,
            most: MOST_SERVICES,
            per_unit: 1,
            used_by: families,
            used: 0,
        },
        Resource {
            what: if responds { "servers and responders" } else { "servers" },
            limit: limits.backends.value,
            key: "backends",
            given: &limits.backends,
            most: MOST_BACKENDS,
            per_unit: 1,
            used_by: |service| service.servers.all.len() + if service.responds() { families(service) } else { 0 },
            used: root.standby.servers.all.len(),
        },
        Resource {
            what: "rings (two per service and tier)",
            limit: limits.rings.value,
            key: "rings",
            given: &limits.rings,
            most: MOST_RINGS,
            per_unit: 1,
            used_by: |service| tiers(service) * 2,
            used: 0,
        },
        Resource {
            what: "addresses to listen on",
            limit: limits.vips(),
            key: "services",
            given: &limits.services,
            most: MOST_SERVICES,
            per_unit: 4,
            // A listener has its own entry, and one for ICMP and for the source.
            used_by: |service| service.listen.all.len() * 2 + families(service) * 3,
            used: 0,
        },
    ]
}

/// Services in the kernel.
fn families(service: &ServiceKeys) -> usize {
    let split = !service.mode.value.is_dsr();
    let families: HashSet<bool> = service.listen.values().map(|listen| split && listen.addr.is_ipv6()).collect();
    families.len()
}

/// Tiers of them.
fn tiers(service: &ServiceKeys) -> usize {
    let split = !service.mode.value.is_dsr();
    let servers = service.servers.all.iter().map(|placed| &placed.server);
    let tiers: HashSet<(bool, u8)> = servers.map(|server| (split && server.addr.is_ipv6(), server.tier)).collect();
    tiers.len()
}
