//! Paths: how frames reach a server, as headers that are ready to copy.

use bytemuck::{Pod, Zeroable};

/// Room for Ethernet with two VLAN tags (22), outer IPv6 (40), UDP (8), rounded up to whole words.
pub const HEADER_ROOM: usize = 72;

/// A prebuilt header and where to send it.
///
/// An entry never changes while a backend refers to it: the controller writes a new one and switches the backend's slot,
/// so no packet ever leaves with half of each.
///
/// The outer header's template has zero in what depends on the packet: lengths, protocol, type of service, checksum,
/// flow label and UDP source port.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Path {
    /// Egress interface; zero: the path is unusable.
    pub ifindex: u32,
    /// Largest IP packet that may be sent this way, before encapsulation.
    pub mtu: u16,
    /// Bytes of `header` in use: `l2_len` and what encapsulation adds.
    pub header_len: u8,
    /// Bytes of the Ethernet header, VLAN tags included; the EtherType is the last two.
    pub l2_len: u8,
    /// One of [`encap`].
    pub encap: u8,
    /// Which of the server's channels it is, for what is told of it; below [`crate::signal::CHANNELS`].
    pub channel: u8,
    pub pad: [u8; 2],
    /// Sum (RFC 1071, not complemented, host arithmetic over network-order words) of the outer IPv4 template.
    pub outer_sum: u32,
    pub header: [u8; HEADER_ROOM],
}

pub mod encap {
    /// No outer header.
    pub const NONE: u8 = 0;
    /// IPv4 or IPv6 in IPv4 (RFC 2003, RFC 4213).
    pub const IPV4: u8 = 1;
    /// IPv4 or IPv6 in IPv6 (RFC 2473).
    pub const IPV6: u8 = 2;
    /// GUE variant 1, IP directly in UDP, in IPv4 (draft-ietf-intarea-gue, section 4).
    pub const GUE_IPV4: u8 = 3;
    /// GUE variant 1, IP directly in UDP, in IPv6.
    pub const GUE_IPV6: u8 = 4;

    /// Bytes that an encapsulation adds.
    pub const fn overhead(encap: u8) -> u8 {
        match encap {
            IPV4 => 20,
            IPV6 => 40,
            GUE_IPV4 => 28,
            GUE_IPV6 => 48,
            _ => 0,
        }
    }
}

/// Where packets of a client came from, and so where replies to it go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LastHop {
    pub ifindex: u32,
    /// Ethernet addresses for the reply: destination, then source, as they stand in the header.
    pub macs: [u16; 6],
    /// VLAN tag control information of the reply, network order, outer first. The inner one is zero if there is none.
    pub tags: [u16; 2],
    /// Largest IP packet of that interface; zero: not known.
    pub mtu: u16,
    /// EtherType of the outer tag, network order; zero: no tag. Two tags may be QinQ, or both plain ones.
    pub outer_tag: u16,
}
