//! What the plan must know of the configuration: services with their servers, and channels.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use model::address::{Family, Listen};
use model::ids::{BackendId, ServerId, ServiceId};
use model::mode::{Affinity, Mode, OnServerDown, Refuse, Tunnel};
use model::route::{Route, Via};
use model::time::Timeouts;

use crate::sampling::PassiveShare;

/// All services and channels.
#[derive(Clone, Debug)]
pub struct Topology<'a> {
    pub services: Vec<Service<'a>>,
    /// By which servers refer to them.
    pub channels: Vec<Channel<'a>>,
    pub timeouts: &'a Timeouts,
}

/// A service, as far as its packets are concerned.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    pub name: &'a str,
    pub listen: &'a [Listen],
    pub mode: Mode,
    pub affinity: Affinity,
    pub refuse: Refuse,
    pub on_server_down: OnServerDown,
    /// Source addresses that `nat` uses, at most one per family; none: the gateway's own on the route to the server.
    pub nat_source: &'a [IpAddr],
    pub nat_ports: &'a RangeInclusive<u16>,
    /// Destination port of `dsr-gue`.
    pub gue_port: u16,
    pub passive: PassiveShare,
    /// First datagrams wait, too, while no server may take them.
    pub queues_datagrams: bool,
    /// The gateway itself answers who has waited for too long.
    pub responds: bool,
    pub servers: &'a [Server],
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
    /// Positions in [`Topology::channels`]; none: as the routing table has it.
    pub channels: Vec<u8>,
}

/// A way to servers that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    pub name: &'a str,
    pub interface: &'a str,
    /// Routers, at most one per family; none: servers are on link.
    pub next_hop: &'a [IpAddr],
    /// Addresses of the gateway that tunnels come from, at most one per family; none: as the kernel chooses.
    pub source: &'a [IpAddr],
    /// None: as the service's mode has it.
    pub tunnel: Option<Tunnel>,
}

/// The families of a service in the kernel: one of each on which it listens, if its packets keep their family; else one
/// service for both, told by none.
pub fn families(mode: Mode, listen: &[Listen]) -> Vec<Option<Family>> {
    if mode.is_dsr() {
        return vec![None];
    }
    let listens = |family| listen.iter().any(|listen| Family::of(listen.addr) == family);
    [Family::V4, Family::V6].into_iter().filter(|family| listens(*family)).map(Some).collect()
}

/// Who a service is in the kernel.
pub fn service_id(name: &str, mode: Mode, family: Option<Family>) -> ServiceId {
    let family = match family {
        None => 0u8,
        Some(Family::V4) => 4,
        Some(Family::V6) => 6,
    };
    ServiceId::of(&[b"service", name.as_bytes(), &[mode.kernel(), family]])
}

/// Who a server is in the kernel.
pub fn server_id(service: &str, mode: Mode, server: &Server) -> ServerId {
    let family = if mode.is_dsr() { None } else { Some(Family::of(server.addr)) };
    let address = server.addr.to_string();
    let port = server.port.unwrap_or(0).to_be_bytes();
    ServerId {
        service: service_id(service, mode, family),
        backend: BackendId::of(&[b"server", address.as_bytes(), &port]),
    }
}

/// Who the responder is among the backends of each service that has one.
pub fn responder_id() -> BackendId {
    BackendId::of(&[b"responder"])
}

/// The one of a family, of addresses of which there is at most one per family.
pub fn of_family(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|addr| Family::of(*addr) == family)
}

impl Channel<'_> {
    /// How the channel leads to an address.
    pub fn route(&self, target: IpAddr) -> Route {
        let family = Family::of(target);
        let via = Via {
            interface: self.interface.to_owned(),
            router: of_family(self.next_hop, family),
            source: of_family(self.source, family),
        };
        Route { target, via: Some(via) }
    }
}

impl Service<'_> {
    pub fn server_id(&self, server: &Server) -> ServerId {
        server_id(self.name, self.mode, server)
    }

    pub fn families(&self) -> Vec<Option<Family>> {
        families(self.mode, self.listen)
    }
}

impl Topology<'_> {
    /// All routes to a server.
    pub fn routes(&self, server: &Server) -> Vec<Route> {
        if server.channels.is_empty() {
            return vec![server.addr.into()];
        }
        server.channels.iter().map(|position| self.channels[usize::from(*position)].route(server.addr)).collect()
    }
}
