//! What a valid configuration says, with all defaults filled in.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::quality::Quality;
use super::queue::{QueueLimits, Responder, ServiceQueue};
use crate::dataplane::kernel::Sizes;
use crate::health::{AgentCheck, Asks, CheckKind, CommandCheck, Thresholds};
use crate::quality::standby::{ServiceSettings, Settings};
use crate::quality::{Settings as QualitySettings, tiers};

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

/// Idle time-outs of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_syn: Duration,
    pub tcp_established: Duration,
    /// After one side's FIN.
    pub tcp_fin: Duration,
    /// After both FINs, or a reset.
    pub tcp_closed: Duration,
    pub udp: Duration,
    /// Of the memory which server a client has, for services with client affinity.
    pub client: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
}

/// How many flows are watched for passive signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassiveShare {
    /// All while there are few packets, fewer the more there are.
    Auto,
    /// One in so many, a power of two; zero: none.
    OneIn(u16),
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

/// An address on which a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    pub addr: IpAddr,
    /// None: any port.
    pub port: Option<u16>,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Nat,
    Dnat,
    DsrL2,
    DsrIpip,
    DsrGue,
}

/// What new flows are kept together by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    Flow,
    Client,
}

/// How a client learns that no server takes its flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    #[default]
    Reset,
    Drop,
}

/// What becomes of live flows of a server that fails its checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnServerDown {
    #[default]
    Keep,
    Reset,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Ipip,
    Gue,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Unique in the service.
    pub name: String,
    pub addr: IpAddr,
    /// None: the port that the client used.
    pub port: Option<u16>,
    /// Zero: no new flows.
    pub weight: u16,
    pub tier: u8,
    /// Most active flows; none: no limit.
    pub high_water: Option<NonZeroU32>,
    /// Positions in [`Config::channels`]; none: as the routing table has it.
    pub channels: Vec<u8>,
}

impl Service {
    /// What its clients are told at the deadline, if they are told more than that there is no server.
    pub fn responder(&self) -> Option<&Responder> {
        self.queue.as_ref()?.responder.as_ref()
    }

    /// Port at which a server is asked: the probe's own, else the server's, else that of the first listener with the
    /// protocol. Zero: there is none, and the probe needs none. None: there is none, but one is needed.
    pub fn port_of(&self, server: &Server, kind: &CheckKind, own: Option<u16>) -> Option<u16> {
        let listening = |protocol| self.listen.iter().filter(move |listen| listen.protocol == protocol);
        let listener = |protocol| listening(protocol).find_map(|listen| listen.port);
        let known = own.or(server.port);
        match kind.asks() {
            Asks::Tcp => known.or_else(|| listener(Protocol::Tcp)),
            Asks::Udp => known.or_else(|| listener(Protocol::Udp)),
            Asks::Any => known.or_else(|| listener(Protocol::Tcp)).or_else(|| listener(Protocol::Udp)).or(Some(0)),
        }
    }

    /// The VIP at which a server is asked through the packet path: at the probe's own port, else at that of the first listener
    /// with the protocol that has one. In `nat` and `dnat` it has the server's family; else that one is preferred. None: no
    /// listener is right.
    pub fn vip_of(&self, server: IpAddr, kind: &CheckKind, own: Option<u16>) -> Option<SocketAddr> {
        let protocol = match kind.asks() {
            Asks::Tcp => Protocol::Tcp,
            Asks::Udp => Protocol::Udp,
            Asks::Any => return None,
        };
        let same_family = |listen: &&Listen| listen.addr.is_ipv6() == server.is_ipv6();
        let right = || self.listen.iter().filter(|listen| listen.protocol == protocol);
        let own_family = right().filter(same_family);
        let other_family = right().filter(|listen| self.mode.is_dsr() && !same_family(listen));
        let candidates: Vec<&Listen> = own_family.chain(other_family).collect();
        let named = |port: Option<u16>| candidates.iter().find(|listen| listen.port == port);
        let listen = match own {
            None => candidates.iter().find(|listen| listen.port.is_some()),
            Some(_) => named(own).or_else(|| named(None)),
        }?;
        Some((listen.addr, own.or(listen.port)?).into())
    }
}

impl Protocol {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => loadbalancer_common::net::protocol::TCP,
            Self::Udp => loadbalancer_common::net::protocol::UDP,
        }
    }
}

impl Mode {
    pub const ALL: [Self; 5] = [Self::Nat, Self::Dnat, Self::DsrL2, Self::DsrIpip, Self::DsrGue];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dnat => "dnat",
            Self::DsrL2 => "dsr-l2",
            Self::DsrIpip => "dsr-ipip",
            Self::DsrGue => "dsr-gue",
        }
    }

    /// Whether replies go straight from the server to the client.
    pub const fn is_dsr(self) -> bool {
        matches!(self, Self::DsrL2 | Self::DsrIpip | Self::DsrGue)
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.addr, self.port) {
            (IpAddr::V4(addr), None) => write!(f, "{addr}:*"),
            (IpAddr::V6(addr), None) => write!(f, "[{addr}]:*"),
            (addr, Some(port)) => write!(f, "{}", SocketAddr::new(addr, port)),
        }?;
        write!(f, "/{}", self.protocol.label())
    }
}
