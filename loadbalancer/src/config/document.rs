//! What a valid configuration says, with all defaults filled in.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use decide::channel::settings::Settings as ChannelSettings;
use decide::plan::topology::{self, Server, Topology};
use decide::quality::Settings as QualitySettings;
use decide::queue::settings::{Responder, ServiceQueue};
use decide::sampling::PassiveShare;
use decide::standby::settings::{ServiceSettings, Settings};
use decide::tiers;
use model::address::{Family, Listen, Protocol};
use model::ids::{ServerId, ServiceId};
use model::mode::{Affinity, Mode, OnServerDown, Refuse, Tunnel};
use model::route::Route;
use model::time::Timeouts;

use crate::dataplane::sizes::Sizes;
use crate::health::{AgentCheck, Asks, CheckKind, CommandCheck, Thresholds};

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub gateway: Gateway,
    pub limits: Sizes,
    pub timeouts: Timeouts,
    pub admin: Admin,
    /// Where Prometheus metrics are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// In the order of the file, by which servers refer to them.
    pub channels: Vec<Channel>,
    pub standby: Pool,
    /// Constants of the loops of channels, and of all services that have none of their own.
    pub quality: Quality,
    pub queue: QueueLimits,
    /// In the order of the file.
    pub services: Vec<Service>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub interfaces: Vec<Interface>,
    pub on_stop: OnStop,
    pub on_incompatible: OnIncompatible,
    /// Below the BPF file system.
    pub pin_directory: PathBuf,
    /// Key of the flow hash; none: drawn once and kept in the pinned state.
    pub hash_seed: Option<u64>,
    /// Firewall mark, and number of the routing table, of the first channel; the others follow.
    pub channel_marks: u32,
    /// Addresses that probes through VIPs come from, at most one per family; none: the gateway's own on the way to the server.
    pub probe_source: Vec<IpAddr>,
    /// Source ports of probes through VIPs: each stands for one.
    pub probe_ports: RangeInclusive<u16>,
    /// Interface that gets the VIPs as addresses and announces them; none: they are routed here, or assigned by others.
    pub vip_interface: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub xdp: XdpMode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, else generic with a warning.
    #[default]
    Auto,
    Native,
    Generic,
}

/// What becomes of forwarding when the controller is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStop {
    #[default]
    Keep,
    Remove,
}

/// What to do about pinned state that this controller cannot adopt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIncompatible {
    #[default]
    Refuse,
    Replace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/loadbalancer.sock".into(), mode: 0o600 }
    }
}

/// What stands in `[quality]`: it holds for all services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    pub settings: QualitySettings,
    pub channels: ChannelSettings,
}

/// For the queues of all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most bytes of all waiting connections.
    pub memory: u64,
    /// How long the packet path hands connections over to a controller that does not show itself. Then it refuses them.
    pub controller_timeout: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { memory: 64 << 20, controller_timeout: Duration::from_secs(5) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: String,
    pub listen: Vec<Listen>,
    pub mode: Mode,
    pub affinity: Affinity,
    pub refuse: Refuse,
    pub on_server_down: OnServerDown,
    /// Source addresses that `nat` uses, at most one per family; none: the gateway's own on the way to the server.
    pub nat_source: Vec<IpAddr>,
    pub nat_ports: RangeInclusive<u16>,
    /// Destination port of `dsr-gue`.
    pub gue_port: u16,
    pub passive: PassiveShare,
    /// Decides whether a server is up; none: all are taken to be.
    pub check: Option<Check>,
    /// Asked of each server as well, to know its quality; none of them takes a server down.
    pub monitors: Vec<Monitor>,
    /// What each server says of itself.
    pub agent: Option<Agent>,
    /// Constants of its loop.
    pub quality: QualitySettings,
    /// When it gets servers of the pool; none: never.
    pub standby: Option<ServiceSettings>,
    /// When lower tiers help the first; none: they get only what it refuses.
    pub tiers: Option<tiers::Settings>,
    /// How new connections wait while no server may take them; none: they are refused.
    pub queue: Option<Arc<ServiceQueue>>,
    pub servers: Vec<Server>,
}

/// Standby servers, for all services that may get some.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    pub servers: Vec<Server>,
    /// Commands that start and stop a server.
    pub start: Option<CommandCheck>,
    pub stop: Option<CommandCheck>,
    pub settings: Settings,
}

/// What a check or monitor asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// The server at its own address, through the kernel.
    #[default]
    Server,
    /// The VIP, through the packet path, which leads to that server.
    Vip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub kind: CheckKind,
    /// See [`Service::port_of`] and [`Service::vip_of`].
    pub port: Option<u16>,
    pub through: Through,
    pub interval: Duration,
    pub timeout: Duration,
    pub thresholds: Thresholds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    pub kind: CheckKind,
    /// See [`Service::port_of`] and [`Service::vip_of`].
    pub port: Option<u16>,
    pub through: Through,
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub check: AgentCheck,
    pub port: u16,
    pub interval: Duration,
    pub timeout: Duration,
}

/// A way to servers that is measured, and used as far as it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub name: String,
    pub interface: String,
    /// Routers, at most one per family; none: servers are on link.
    pub next_hop: Vec<IpAddr>,
    /// Addresses of the gateway that probes and tunnels come from, at most one per family; none: as the kernel chooses.
    pub source: Vec<IpAddr>,
    /// None: as the service's mode has it.
    pub tunnel: Option<Tunnel>,
    /// Beside that of other channels.
    pub capacity: u32,
    pub probe: ChannelProbe,
}

/// What is asked of each server over a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelProbe {
    pub kind: CheckKind,
    /// See [`Service::port_of`].
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
}

impl Config {
    /// VIPs of all services, each once.
    pub fn vips(&self) -> Vec<IpAddr> {
        let vips: BTreeSet<IpAddr> =
            self.services.iter().flat_map(|service| &service.listen).map(|listen| listen.addr).collect();
        vips.into_iter().collect()
    }

    /// What the plan must know of it.
    pub fn topology(&self) -> Topology<'_> {
        Topology {
            services: self.services.iter().map(Service::for_plan).collect(),
            channels: self.channels.iter().map(Channel::for_plan).collect(),
            timeouts: &self.timeouts,
        }
    }
}

impl Channel {
    /// How it leads to an address.
    pub fn route(&self, target: IpAddr) -> Route {
        self.for_plan().route(target)
    }

    fn for_plan(&self) -> topology::Channel<'_> {
        topology::Channel {
            name: &self.name,
            interface: &self.interface,
            next_hop: &self.next_hop,
            source: &self.source,
            tunnel: self.tunnel,
        }
    }
}

impl Service {
    /// What the plan must know of it.
    pub fn for_plan(&self) -> topology::Service<'_> {
        topology::Service {
            name: &self.name,
            listen: &self.listen,
            mode: self.mode,
            affinity: self.affinity,
            refuse: self.refuse,
            on_server_down: self.on_server_down,
            nat_source: &self.nat_source,
            nat_ports: &self.nat_ports,
            gue_port: self.gue_port,
            passive: self.passive,
            queues_datagrams: self.queue.as_ref().is_some_and(|queue| queue.udp_memory > 0),
            responds: self.responder().is_some(),
            servers: &self.servers,
        }
    }

    /// The families that it has a service in the kernel for, see [`topology::families`].
    pub fn families(&self) -> Vec<Option<Family>> {
        topology::families(self.mode, &self.listen)
    }

    pub fn id(&self, family: Option<Family>) -> ServiceId {
        topology::service_id(&self.name, self.mode, family)
    }

    /// Who it is in the kernel: one, or one of each family.
    pub fn ids(&self) -> impl Iterator<Item = ServiceId> {
        self.families().into_iter().map(|family| self.id(family))
    }

    pub fn server_id(&self, server: &Server) -> ServerId {
        topology::server_id(&self.name, self.mode, server)
    }

    /// What its clients are told at the deadline, if they are told more than that there is no server.
    pub fn responder(&self) -> Option<&Responder> {
        self.queue.as_ref()?.responder.as_ref()
    }

    /// Port at which a server is asked: the probe's own, else the server's, else that of the first listener with the
    /// protocol. Zero: there is none, and the probe needs none. None: there is none, but one is needed.
    pub fn port_of(&self, server: &Server, kind: &CheckKind, own: Option<u16>) -> Option<u16> {
        port_of(self.listen.iter(), server, kind, own)
    }

    /// The VIP at which a server is asked through the packet path: at the probe's own port, else at that of the first listener
    /// with the protocol that has one. In `nat` and `dnat` it has the server's family; else that one is preferred. None: no
    /// listener is right.
    pub fn vip_of(&self, server: IpAddr, kind: &CheckKind, own: Option<u16>) -> Option<SocketAddr> {
        vip_of((self.listen.iter(), self.mode), server, kind, own)
    }
}

/// See [`Service::port_of`].
pub(super) fn port_of<'a>(
    listen: impl Iterator<Item = &'a Listen> + Clone,
    server: &Server,
    kind: &CheckKind,
    own: Option<u16>,
) -> Option<u16> {
    let listening = |protocol| listen.clone().filter(move |listen| listen.protocol == protocol);
    let listener = |protocol| listening(protocol).find_map(|listen| listen.port);
    let known = own.or(server.port);
    match kind.asks() {
        Asks::Tcp => known.or_else(|| listener(Protocol::Tcp)),
        Asks::Udp => known.or_else(|| listener(Protocol::Udp)),
        Asks::Any => known.or_else(|| listener(Protocol::Tcp)).or_else(|| listener(Protocol::Udp)).or(Some(0)),
    }
}

/// See [`Service::vip_of`].
pub(super) fn vip_of<'a>(
    (listen, mode): (impl Iterator<Item = &'a Listen> + Clone, Mode),
    server: IpAddr,
    kind: &CheckKind,
    own: Option<u16>,
) -> Option<SocketAddr> {
    let protocol = match kind.asks() {
        Asks::Tcp => Protocol::Tcp,
        Asks::Udp => Protocol::Udp,
        Asks::Any => return None,
    };
    let same_family = |listen: &&Listen| listen.addr.is_ipv6() == server.is_ipv6();
    let right = || listen.clone().filter(|listen| listen.protocol == protocol);
    let own_family = right().filter(same_family);
    let other_family = right().filter(|listen| mode.is_dsr() && !same_family(listen));
    let candidates: Vec<&Listen> = own_family.chain(other_family).collect();
    let named = |port: Option<u16>| candidates.iter().find(|listen| listen.port == port);
    let listen = match own {
        None => candidates.iter().find(|listen| listen.port.is_some()),
        Some(_) => named(own).or_else(|| named(None)),
    }?;
    Some((listen.addr, own.or(listen.port)?).into())
}
