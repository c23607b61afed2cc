//! The next hop to an address, and the header that a frame on its way there bears.

use std::net::IpAddr;

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// EtherType of the tag, host order.
    pub ethertype: u16,
    pub vlan: u16,
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
