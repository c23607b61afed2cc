//! From configuration and what is known of servers and network, the state that the kernel should have. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::clock::{MAX_TICKS, ticks_of_seconds};
use loadbalancer_common::path::Path;
use loadbalancer_common::service::{Service as KernelService, mode};
use loadbalancer_common::settings::TIMEOUTS;
use loadbalancer_common::signal::mask_of;

use super::resolver::Resolved;
use crate::config::{Affinity, Config, Mode, OnServerDown, Refuse, Server, Service, Timeouts};
use crate::dataplane::desired::{Desired, DesiredBackend, DesiredService, identity};
use crate::health::Health;
use crate::network::header::{Encapsulation, path};

/// What the controller knows of a server beside its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// None: not checked.
    pub health: Option<Health>,
    pub drained: bool,
    /// Weight that the operator has set.
    pub set_weight: Option<u16>,
}

/// Who a server is: the identities of its service in the kernel and of its backend there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId {
    pub service: u64,
    pub backend: u64,
}

/// Mode in the kernel.
pub fn kernel_mode(mode: Mode) -> u8 {
    match mode {
        Mode::Nat => mode::NAT,
        Mode::Dnat => mode::DNAT,
        Mode::DsrL2 | Mode::DsrIpip | Mode::DsrGue => mode::DSR,
    }
}

/// One configured service is two in the kernel if its packets keep their family and it listens on both.
pub fn parts(service: &Service) -> Vec<Option<Family>> {
    if service.mode.is_dsr() {
        return vec![None];
    }
    let has = |ipv6: bool| service.listen.iter().any(|listen| listen.addr.is_ipv6() == ipv6);
    [(false, Family::V4), (true, Family::V6)].into_iter().filter(|(ipv6, _)| has(*ipv6)).map(|(_, f)| Some(f)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv6() { Self::V6 } else { Self::V4 }
    }
}

pub fn service_identity(service: &Service, part: Option<Family>) -> u64 {
    let family = match part {
        None => 0u8,
        Some(Family::V4) => 4,
        Some(Family::V6) => 6,
    };
    identity(&[b"service", service.name.as_bytes(), &[kernel_mode(service.mode), family]])
}

pub fn server_id(service: &Service, server: &Server) -> ServerId {
    let part = if service.mode.is_dsr() { None } else { Some(Family::of(server.addr)) };
    let address = server.addr.to_string();
    let port = server.port.unwrap_or(0).to_be_bytes();
    ServerId { service: service_identity(service, part), backend: identity(&[b"server", address.as_bytes(), &port]) }
}

/// The way to a server, or why there is none.
pub fn way(service: &Service, server: IpAddr, resolved: &Resolved) -> Result<Path, String> {
    let hop = match resolved.hops.get(&server) {
        Some(Ok(hop)) => hop,
        Some(Err(unreachable)) => return Err(unreachable.reason.clone()),
        None => return Err("the way to it is being looked for".to_owned()),
    };
    let encapsulation = match service.mode {
        Mode::DsrIpip => Encapsulation::Ipip,
        Mode::DsrGue => Encapsulation::Gue { port: service.gue_port },
        Mode::DsrL2 => {
            if let Some(router) = hop.router {
                return Err(format!(
                    "it is behind the router {router}, but dsr-l2 reaches only servers on the gateway's own segment: use \
                     dsr-ipip or dsr-gue"
                ));
            }
            Encapsulation::None
        }
        Mode::Nat | Mode::Dnat => Encapsulation::None,
    };
    path(hop, encapsulation, server).map_err(|error| error.to_string())
}

/// Whether a server gets new flows, and with what weight.
pub fn weight(server: &Server, standing: &Standing, reachable: bool) -> u32 {
    let serves = standing.health.is_none_or(Health::may_serve) && !standing.drained && reachable;
    if serves { u32::from(standing.set_weight.unwrap_or(server.weight)) } else { 0 }
}

pub fn desired(
    config: &Config,
    seed: u64,
    standings: &HashMap<ServerId, Standing>,
    resolved: &Resolved,
    leaving: &HashMap<u64, Vec<DesiredBackend>>,
) -> Desired {
    let mut services = Vec::new();
    for service in &config.services {
        for part in parts(service) {
            let belongs = |addr: IpAddr| part.is_none_or(|family| family == Family::of(addr));
            let identity = service_identity(service, part);
            let mut backends: Vec<DesiredBackend> = service
                .servers
                .iter()
                .filter(|server| belongs(server.addr))
                .map(|server| backend(service, server, standings, resolved))
                .collect();
            for old in leaving.get(&identity).into_iter().flatten() {
                let mut old = old.clone();
                if let Ok(path) = way(service, old.addr, resolved) {
                    old.paths = vec![path];
                }
                backends.push(old);
            }
            services.push(DesiredService {
                identity,
                mode: kernel_mode(service.mode),
                flags: flags(service),
                nat_ports: (*service.nat_ports.start(), *service.nat_ports.end()),
                sample_mask: mask_of(service.flows_per_sample),
                listens: service.listen.iter().filter(|listen| belongs(listen.addr)).copied().collect(),
                backends,
            });
        }
    }
    Desired { seed, timeouts: timeouts(&config.timeouts), redirect_back: resolved.has_veth, services }
}

fn backend(
    service: &Service,
    server: &Server,
    standings: &HashMap<ServerId, Standing>,
    resolved: &Resolved,
) -> DesiredBackend {
    let id = server_id(service, server);
    let unknown = Standing::default();
    let standing = standings.get(&id).unwrap_or(&unknown);
    let path = way(service, server.addr, resolved);
    let weight = weight(server, standing, path.is_ok());
    let mut flags = 0;
    if weight > 0 {
        flags |= Backend::ACCEPTS;
    }
    if standing.health == Some(Health::Down) {
        flags |= Backend::DOWN;
    }
    if standing.drained {
        flags |= Backend::DRAINED;
    }
    DesiredBackend {
        identity: id.backend,
        addr: server.addr,
        port: server.port,
        source: source(service, server, resolved),
        flags,
        tier: server.tier,
        weight,
        nominal: u32::from(server.weight),
        set_weight: standing.set_weight.map_or(0, |weight| u32::from(weight) + 1),
        high_water: server.high_water.map_or(u32::MAX, |mark| mark.get()),
        paths: path.into_iter().collect(),
    }
}

/// Source address of `nat` for a server.
fn source(service: &Service, server: &Server, resolved: &Resolved) -> Option<IpAddr> {
    if service.mode != Mode::Nat {
        return None;
    }
    let set = service.nat_source.iter().copied().find(|source| source.is_ipv4() == server.addr.is_ipv4());
    let found = || resolved.hops.get(&server.addr).and_then(|hop| hop.as_ref().ok()).map(|hop| hop.source);
    set.or_else(found)
}

fn flags(service: &Service) -> u8 {
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
