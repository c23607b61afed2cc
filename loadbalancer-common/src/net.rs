//! Numbers in network byte order, as types, and the protocol constants that the packet path knows.

use bytemuck::{Pod, Zeroable};

/// A 16-bit number in network byte order (ports, lengths, EtherTypes).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Be16(pub u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IPv4 address in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Addr4(pub u32);

/// An IPv6 address in network byte order, as four words so that it needs no more than 4-byte alignment.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Addr6(pub [u32; 4]);

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(addr.octets()))
    }
}

impl From<Addr4> for core::net::Ipv4Addr {
    fn from(addr: Addr4) -> Self {
        addr.0.to_ne_bytes().into()
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(addr: core::net::Ipv6Addr) -> Self {
        Self(bytemuck::cast(addr.octets()))
    }
}

impl From<Addr6> for core::net::Ipv6Addr {
    fn from(addr: Addr6) -> Self {
        bytemuck::cast::<_, [u8; 16]>(addr.0).into()
    }
}

/// Room for an address of either family: an IPv4 address stands in the first word, the others are zero.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AnyAddr(pub [u32; 4]);

impl AnyAddr {
    #[inline(always)]
    pub const fn v4(self) -> Addr4 {
        Addr4(self.0[0])
    }

    #[inline(always)]
    pub const fn v6(self) -> Addr6 {
        Addr6(self.0)
    }
}

impl From<core::net::IpAddr> for AnyAddr {
    fn from(addr: core::net::IpAddr) -> Self {
        match addr {
            core::net::IpAddr::V4(addr) => Self([Addr4::from(addr).0, 0, 0, 0]),
            core::net::IpAddr::V6(addr) => Self(Addr6::from(addr).0),
        }
    }
}

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// EtherTypes, in host byte order.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad (QinQ), the outer tag.
    pub const QINQ: u16 = 0x88a8;
}

/// TCP flag bits (RFC 9293, section 3.1).
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Destination port of GUE (draft-ietf-intarea-gue, IANA).
pub const GUE_PORT: u16 = 6080;
