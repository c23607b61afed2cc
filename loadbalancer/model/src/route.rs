//! Routes to addresses, and the next hops that they lead over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// EtherType of the tag, host order.
    pub ethertype: u16,
    pub vlan: u16,
}

/// An address to send to, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub target: IpAddr,
    /// None: as the routing table has it.
    pub via: Option<Via>,
}

/// A route that is chosen here, and not by the routing table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    /// Name of the interface.
    pub interface: String,
    /// None: the target is on link.
    pub router: Option<IpAddr>,
    /// None: as the kernel chooses it for that interface.
    pub source: Option<IpAddr>,
}

impl From<IpAddr> for Route {
    fn from(target: IpAddr) -> Self {
        Self { target, via: None }
    }
}

/// How frames leave for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface on which XDP sends: below VLAN interfaces.
    pub ifindex: u32,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// Outer first.
    pub tags: Vec<Tag>,
    /// The gateway's own address on the way.
    pub source: IpAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// The router on the way; none: the address is on link.
    pub router: Option<IpAddr>,
}

/// The state of the network, as far as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub hops: BTreeMap<Route, Result<NextHop, Unreachable>>,
    /// Index of each interface that exists.
    pub interfaces: BTreeMap<String, u32>,
    /// Those that are down, or have no carrier.
    pub down: BTreeSet<String>,
    /// Whether one of them is a veth.
    pub has_veth: bool,
}

/// Why there is no next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    pub reason: String,
    /// It is being found out.
    pub pending: bool,
}

impl Resolved {
    pub fn is_settled(&self) -> bool {
        self.hops.values().all(|hop| !matches!(hop, Err(unreachable) if unreachable.pending))
    }
}
