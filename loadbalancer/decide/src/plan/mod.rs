//! From configuration and what is known of servers and network, the state that the kernel should have.

pub mod topology;
pub mod status;
pub mod header;
pub mod reachability;
pub mod desired;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::clock::{MAX_TICKS, ticks_of_seconds};
use loadbalancer_common::service::Service as KernelService;
use loadbalancer_common::settings::TIMEOUTS;
use loadbalancer_common::signal::mask_of;
use model::address::Family;
use model::health::Health;
use model::ids::{ServerId, ServiceId};
use model::mode::{Affinity, Mode, OnServerDown, Refuse};
use model::route::Resolved;
use model::time::Timeouts;

use crate::sampling::Sampling;
use desired::{Desired, DesiredBackend, DesiredService};
use header::inwards;
use reachability::{path_over, reachability};
use status::ServerStatus;
use topology::{Server, Service, Topology, of_family, responder_id, service_id};

/// The state that the kernel should have. `leaving` are backends that the configuration has no more, whose flows go on.
pub fn plan(
    topology: &Topology<'_>,
    seed: u64,
    statuses: &HashMap<ServerId, ServerStatus>,
    resolved: &Resolved,
    leaving: &HashMap<ServiceId, Vec<DesiredBackend>>,
    sampling: &Sampling,
) -> Desired {
    let mut services = Vec::new();
    for service in &topology.services {
        for family in service.families() {
            let belongs = |addr: IpAddr| family.is_none_or(|family| family == Family::of(addr));
            let id = service_id(service.name, service.mode, family);
            let mut backends: Vec<DesiredBackend> = service
                .servers
                .iter()
                .filter(|server| belongs(server.addr))
                .map(|server| backend(topology, service, server, statuses, resolved))
                .collect();
            for old in leaving.get(&id).into_iter().flatten() {
                let mut old = old.clone();
                if let Ok(path) = path_over(service, &old.addr.into(), None, resolved) {
                    old.paths = vec![path];
                }
                backends.push(old);
            }
            services.push(DesiredService {
                id,
                mode: service.mode.kernel(),
                flags: flags(service),
                nat_ports: (*service.nat_ports.start(), *service.nat_ports.end()),
                sample_mask: mask_of(sampling.flows_per_sample(service.passive, id)),
                listens: service.listen.iter().filter(|listen| belongs(listen.addr)).copied().collect(),
                backends,
            });
        }
    }
    Desired {
        seed,
        timeouts: timeouts(topology.timeouts),
        redirect_back: resolved.has_veth,
        services,
        prober: None,
        probes: Vec::new(),
    }
}

/// Gives each service that answers at the deadline its responder, behind the outer end of the prober's pair.
pub fn add_responders(topology: &Topology<'_>, outer: u32, desired: &mut [DesiredService]) {
    let responding = topology.services.iter().filter(|service| service.responds);
    let ids = |service: &Service<'_>| {
        let (name, mode) = (service.name, service.mode);
        service.families().into_iter().map(move |family| service_id(name, mode, family)).collect::<Vec<_>>()
    };
    let responding: HashSet<ServiceId> = responding.flat_map(ids).collect();
    for service in desired.iter_mut().filter(|service| responding.contains(&service.id)) {
        service.backends.push(DesiredBackend {
            id: responder_id(),
            addr: Ipv4Addr::UNSPECIFIED.into(),
            port: None,
            source: None,
            flags: Backend::LOCAL | Backend::ACCEPTS,
            tier: 0,
            ring: 0,
            help: None,
            load: 0,
            nominal: 0,
            set_weight: 0,
            high_water: u32::MAX,
            paths: vec![inwards(outer)],
        });
    }
}

fn backend(
    topology: &Topology<'_>,
    service: &Service<'_>,
    server: &Server,
    statuses: &HashMap<ServerId, ServerStatus>,
    resolved: &Resolved,
) -> DesiredBackend {
    let id = service.server_id(server);
    let unknown = ServerStatus::default();
    let status = statuses.get(&id).unwrap_or(&unknown);
    let reachability = reachability(topology, service, server, status, resolved);
    let reachable = reachability.trouble.is_none();
    let mut flags = 0;
    if status.serves(server, reachable) {
        flags |= Backend::ACCEPTS;
    }
    if status.health == Some(Health::Down) {
        flags |= Backend::DOWN;
    }
    if status.drained {
        flags |= Backend::DRAINED;
    }
    DesiredBackend {
        id: id.backend,
        addr: server.addr,
        port: server.port,
        source: source(topology, service, server, resolved),
        flags,
        tier: server.tier,
        ring: status.ring_weight(server, reachable),
        help: status.decision.and_then(|decision| decision.help).map(|help| (help.tier, help.weight)),
        load: status.decision.map_or_else(|| u32::from(status.nominal_weight(server)), |decision| decision.load),
        nominal: u32::from(server.weight),
        set_weight: status.set_weight.map_or(0, |weight| u32::from(weight) + 1),
        high_water: match status.decision {
            Some(decision) => decision.high_water.unwrap_or(u32::MAX),
            None => server.high_water.map_or(u32::MAX, |mark| mark.get()),
        },
        paths: reachability.paths,
    }
}

/// Source address of `nat` for a server.
fn source(topology: &Topology<'_>, service: &Service<'_>, server: &Server, resolved: &Resolved) -> Option<IpAddr> {
    if service.mode != Mode::Nat {
        return None;
    }
    let set = of_family(service.nat_source, Family::of(server.addr));
    // With channels, the source must not change with the one that is used: the configuration has it.
    let found = || {
        let route = topology.routes(server).into_iter().next()?;
        let set = route.via.as_ref().and_then(|via| via.source);
        set.or_else(|| resolved.hops.get(&route)?.as_ref().ok().map(|hop| hop.source))
    };
    set.or_else(found)
}

fn flags(service: &Service<'_>) -> u8 {
    let mut flags = 0;
    if service.affinity == Affinity::Client {
        flags |= KernelService::CLIENT_AFFINITY;
    }
    if service.refuse == Refuse::Reset {
        flags |= KernelService::REFUSE_WITH_RESET;
    }
    if service.on_server_down == OnServerDown::Reset {
        flags |= KernelService::RESET_ON_DOWN;
    }
    if service.queues_datagrams {
        flags |= KernelService::QUEUE_DATAGRAMS;
    }
    flags
}

fn timeouts(timeouts: &Timeouts) -> [u16; TIMEOUTS] {
    let ticks = |time: Duration| ticks_of_seconds(time.as_secs_f64().ceil() as u64).min(u64::from(MAX_TICKS)) as u16;
    let mut of = [0; TIMEOUTS];
    of[state::UDP as usize] = ticks(timeouts.udp);
    of[state::TCP_SYN as usize] = ticks(timeouts.tcp_syn);
    of[state::TCP_ESTABLISHED as usize] = ticks(timeouts.tcp_established);
    of[state::TCP_CLIENT_FIN as usize] = ticks(timeouts.tcp_fin);
    of[state::TCP_SERVER_FIN as usize] = ticks(timeouts.tcp_fin);
    of[state::TCP_CLOSED as usize] = ticks(timeouts.tcp_closed);
    of[state::CLIENT as usize] = ticks(timeouts.client);
    of
}
