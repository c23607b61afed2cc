//! The next hop to an address, and the header that a frame on its way there bears.

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
pub struct Way {
    pub target: IpAddr,
    /// None: as the routing table has it.
    pub via: Option<Via>,
}

/// A way that is chosen here, and not by the routing table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    /// Name of the interface.
    pub interface: String,
    /// None: the target is on link.
    pub router: Option<IpAddr>,
    /// None: as the kernel chooses it for that interface.
    pub source: Option<IpAddr>,
}

impl From<IpAddr> for Way {
    fn from(target: IpAddr) -> Self {
        Self { target, via: None }
    }
}

/// How frames leave for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
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
