//! From configuration and what is known of servers and network, the state that the kernel should have. Pure.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::clock::{MAX_TICKS, ticks_of_seconds};
use loadbalancer_common::path::Path;
use loadbalancer_common::service::{Service as KernelService, mode};
use loadbalancer_common::settings::TIMEOUTS;
use loadbalancer_common::signal::mask_of;

use super::quality::Given;
use super::resolver::Resolved;
use super::watching::Watching;
use crate::config::{Affinity, Channel, Config, Mode, OnServerDown, Refuse, Server, Service, Timeouts, Tunnel};
use crate::dataplane::desired::{Desired, DesiredBackend, DesiredService, identity};
use crate::health::Health;
use crate::network::header::{Encapsulation, inwards, path};
use crate::network::hop::{Via, Way};
use crate::network::policy::PolicyRoute;
use crate::quality::channel::Slots;
use crate::quality::signal::ChannelKey;

/// What the controller knows of a server beside its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// None: not checked.
    pub health: Option<Health>,
    pub drained: bool,
    /// Weight that the operator has set.
    pub set_weight: Option<u16>,
    /// What measured quality makes of it; None: nothing was measured yet.
    pub given: Option<Given>,
    /// Channel of each path slot; None: it has no channels.
    pub slots: Option<Slots>,
    /// All its channels are dead.
    pub cut_off: bool,
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

/// Who a service is in the kernel: one, or one of each family.
pub fn identities(service: &Service) -> impl Iterator<Item = u64> {
    parts(service).into_iter().map(|part| service_identity(service, part))
}

pub fn server_id(service: &Service, server: &Server) -> ServerId {
    let part = if service.mode.is_dsr() { None } else { Some(Family::of(server.addr)) };
    let address = server.addr.to_string();
    let port = server.port.unwrap_or(0).to_be_bytes();
    ServerId { service: service_identity(service, part), backend: identity(&[b"server", address.as_bytes(), &port]) }
}

/// How a channel leads to an address.
pub fn channel_way(channel: &Channel, target: IpAddr) -> Way {
    let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|addr| addr.is_ipv6() == target.is_ipv6());
    let via = Via {
        interface: channel.interface.clone(),
        router: of_family(&channel.next_hop),
        source: of_family(&channel.source),
    };
    Way { target, via: Some(via) }
}

/// What the kernel is to know of channels that lead over routers, for their probes.
pub fn policy_routes(config: &Config) -> Vec<PolicyRoute> {
    let of_channel = |(channel, mark): (&'_ Channel, u32)| {
        let (interface, sources) = (channel.interface.clone(), channel.source.clone());
        let route = move |router: &IpAddr| PolicyRoute {
            mark,
            interface: interface.clone(),
            router: *router,
            source: sources.iter().copied().find(|source| source.is_ipv6() == router.is_ipv6()),
        };
        channel.next_hop.iter().map(route).collect::<Vec<_>>()
    };
    config.channels.iter().zip(config.gateway.channel_marks..).flat_map(of_channel).collect()
}

/// All ways to a server.
pub fn ways(config: &Config, server: &Server) -> Vec<Way> {
    if server.channels.is_empty() {
        return vec![server.addr.into()];
    }
    server.channels.iter().map(|position| channel_way(&config.channels[usize::from(*position)], server.addr)).collect()
}

/// The path over a way, or why there is none.
fn path_over(service: &Service, way: &Way, tunnel: Option<Tunnel>, resolved: &Resolved) -> Result<Path, String> {
    let hop = match resolved.hops.get(way) {
        Some(Ok(hop)) => hop,
        Some(Err(unreachable)) => return Err(unreachable.reason.clone()),
        None => return Err("the way to it is being looked for".to_owned()),
    };
    let encapsulation = match (tunnel, service.mode) {
        (Some(Tunnel::Ipip), _) | (None, Mode::DsrIpip) => Encapsulation::Ipip,
        (Some(Tunnel::Gue), _) | (None, Mode::DsrGue) => Encapsulation::Gue { port: service.gue_port },
        (None, Mode::DsrL2) => {
            if let Some(router) = hop.router {
                return Err(format!(
                    "it is behind the router {router}, but dsr-l2 reaches only servers on the gateway's own segment: use \
                     dsr-ipip or dsr-gue"
                ));
            }
            Encapsulation::None
        }
        (None, Mode::Nat | Mode::Dnat) => Encapsulation::None,
    };
    path(hop, encapsulation, way.target).map_err(|error| error.to_string())
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// One for all slots, or one for each; live flows take them in any case.
    pub paths: Vec<Path>,
    /// Why no new flow should be sent there.
    pub trouble: Option<String>,
}

pub fn reach(config: &Config, service: &Service, server: &Server, standing: &Standing, resolved: &Resolved) -> Reach {
    if server.channels.is_empty() {
        return match path_over(service, &server.addr.into(), None, resolved) {
            Ok(path) => Reach { paths: vec![path], trouble: None },
            Err(trouble) => Reach { paths: Vec::new(), trouble: Some(trouble) },
        };
    }
    let found: Vec<(u8, Result<Path, String>)> = server
        .channels
        .iter()
        .zip(0..)
        .map(|(position, number)| {
            let channel = &config.channels[usize::from(*position)];
            let path = path_over(service, &channel_way(channel, server.addr), channel.tunnel, resolved);
            (*position, path.map(|path| Path { channel: number, ..path }))
        })
        .collect();
    let Some(any) = found.iter().find_map(|(_, path)| path.as_ref().ok()) else {
        let named = |(position, path): &(u8, Result<Path, String>)| {
            let why = path.as_ref().err().map_or("", String::as_str);
            format!("{}: {why}", config.channels[usize::from(*position)].name)
        };
        let all: Vec<String> = found.iter().map(named).collect();
        return Reach { paths: Vec::new(), trouble: Some(format!("no channel leads to it ({})", all.join("; "))) };
    };
    let of_slot = |slot: &Option<ChannelKey>| {
        let wanted = slot.and_then(|key| found.iter().find(|(position, _)| u16::from(*position) == key.0));
        *wanted.and_then(|(_, path)| path.as_ref().ok()).unwrap_or(any)
    };
    Reach {
        paths: standing.slots.iter().flatten().map(of_slot).collect(),
        trouble: standing
            .cut_off
            .then(|| "probes are lost on all of its channels; see `loadbalancer channels`".to_owned()),
    }
}

/// Weight as configured, or as the operator has set it.
pub fn nominal_weight(server: &Server, standing: &Standing) -> u16 {
    if standing.drained { 0 } else { standing.set_weight.unwrap_or(server.weight) }
}

/// Whether a server gets new flows.
pub fn serves(server: &Server, standing: &Standing, reachable: bool) -> bool {
    standing.health.is_none_or(Health::may_serve)
        && reachable
        && nominal_weight(server, standing) > 0
        && standing.given.is_none_or(|given| given.serves)
}

/// Weight in the ring. A server that serves no more may stay in it for the moment that the next ring takes.
pub fn ring_weight(server: &Server, standing: &Standing, reachable: bool) -> u32 {
    match standing.given {
        Some(given) => given.ring,
        None if serves(server, standing, reachable) => u32::from(nominal_weight(server, standing)),
        None => 0,
    }
}

pub fn desired(
    config: &Config,
    seed: u64,
    standings: &HashMap<ServerId, Standing>,
    resolved: &Resolved,
    leaving: &HashMap<u64, Vec<DesiredBackend>>,
    watching: &Watching,
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
                .map(|server| backend(config, service, server, standings, resolved))
                .collect();
            for old in leaving.get(&identity).into_iter().flatten() {
                let mut old = old.clone();
                if let Ok(path) = path_over(service, &old.addr.into(), None, resolved) {
                    old.paths = vec![path];
                }
                backends.push(old);
            }
            services.push(DesiredService {
                identity,
                mode: kernel_mode(service.mode),
                flags: flags(service),
                nat_ports: (*service.nat_ports.start(), *service.nat_ports.end()),
                sample_mask: mask_of(watching.flows_per_sample(service.passive, identity)),
                listens: service.listen.iter().filter(|listen| belongs(listen.addr)).copied().collect(),
                backends,
            });
        }
    }
    Desired {
        seed,
        timeouts: timeouts(&config.timeouts),
        redirect_back: resolved.has_veth,
        services,
        prober: None,
        probes: Vec::new(),
    }
}

/// Who the responder is among the backends of each service that has one.
pub fn responder_identity() -> u64 {
    identity(&[b"responder"])
}

/// Gives each service that answers at the deadline its responder, behind the outer end of the prober's pair.
pub fn add_responders(config: &Config, outer: u32, desired: &mut [DesiredService]) {
    let responding = config.services.iter().filter(|service| service.responder().is_some());
    let identities: HashSet<u64> = responding.flat_map(identities).collect();
    for service in desired.iter_mut().filter(|service| identities.contains(&service.identity)) {
        service.backends.push(DesiredBackend {
            identity: responder_identity(),
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
    config: &Config,
    service: &Service,
    server: &Server,
    standings: &HashMap<ServerId, Standing>,
    resolved: &Resolved,
) -> DesiredBackend {
    let id = server_id(service, server);
    let unknown = Standing::default();
    let standing = standings.get(&id).unwrap_or(&unknown);
    let reach = reach(config, service, server, standing, resolved);
    let reachable = reach.trouble.is_none();
    let mut flags = 0;
    if serves(server, standing, reachable) {
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
        source: source(config, service, server, resolved),
        flags,
        tier: server.tier,
        ring: ring_weight(server, standing, reachable),
        help: standing.given.and_then(|given| given.help).map(|help| (help.tier, help.weight)),
        load: standing.given.map_or_else(|| u32::from(nominal_weight(server, standing)), |given| given.load),
        nominal: u32::from(server.weight),
        set_weight: standing.set_weight.map_or(0, |weight| u32::from(weight) + 1),
        high_water: match standing.given {
            Some(given) => given.high_water.unwrap_or(u32::MAX),
            None => server.high_water.map_or(u32::MAX, |mark| mark.get()),
        },
        paths: reach.paths,
    }
}

/// Source address of `nat` for a server.
fn source(config: &Config, service: &Service, server: &Server, resolved: &Resolved) -> Option<IpAddr> {
    if service.mode != Mode::Nat {
        return None;
    }
    let set = service.nat_source.iter().copied().find(|source| source.is_ipv4() == server.addr.is_ipv4());
    // With channels, the source must not change with the one that is used: the configuration has it.
    let found = || {
        let way = ways(config, server).into_iter().next()?;
        let set = way.via.as_ref().and_then(|via| via.source);
        set.or_else(|| resolved.hops.get(&way)?.as_ref().ok().map(|hop| hop.source))
    };
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
    if service.queue.as_ref().is_some_and(|queue| queue.udp_memory > 0) {
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
