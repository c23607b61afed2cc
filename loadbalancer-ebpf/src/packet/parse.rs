//! From bytes to a packet: link layer with VLAN tags, and what all families share.

use bytemuck::{Pod, Zeroable};
use loadbalancer_common::net::{Be16, ethertype, protocol, tcp_flag};
use loadbalancer_common::settings::Settings;
use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::packet::cursor::{Frame, bounded};

/// Bytes of a VLAN tag.
pub const TAG_LEN: usize = 4;

/// A fragment's place in its packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    Whole = 0,
    First = 1,
    Later = 2,
}

impl Part {
    #[inline(always)]
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Whole),
            1 => Some(Self::First),
            2 => Some(Self::Later),
            _ => None,
        }
    }
}

/// What the path needs to know of an IP packet.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    /// Of the transport header, or for ICMP type and code in the upper and lower half.
    pub protocol: u8,
    pub tcp_flags: u8,
    pub ttl: u8,
    pub tos: u8,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Bytes of the IP packet.
    pub length: u16,
    pub part: Part,
    pub fragment_id: u32,
}

impl<A> Packet<A> {
    /// Not a TCP or UDP packet with its ports at hand.
    #[inline(always)]
    pub fn is_special(&self) -> bool {
        self.part == Part::Later || (self.protocol != protocol::TCP && self.protocol != protocol::UDP)
    }

    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.part == Part::Later
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP
    }

    /// The first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
    }
}

/// A TCP header without options (RFC 9293, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Tcp {
    pub ports: [Be16; 2],
    /// Network order, as all that follows.
    pub sequence: u32,
    pub acknowledged: u32,
    /// The header's length in words in the upper half.
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

/// A UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Udp {
    pub ports: [Be16; 2],
    pub length: Be16,
    pub checksum: u16,
}

const _: () = assert!(size_of::<Tcp>() == TcpHdr::LEN && size_of::<Udp>() == UdpHdr::LEN);

/// EtherType and offset of what the frame carries, behind at most two VLAN tags.
#[inline(always)]
pub fn link(frame: &Frame) -> Option<(u16, usize)> {
    let mut ethertype = frame.load::<Be16>(EthHdr::LEN - 2)?.get();
    let mut offset = EthHdr::LEN;
    if ethertype == ethertype::QINQ || ethertype == ethertype::VLAN {
        ethertype = frame.load::<Be16>(offset + 2)?.get();
        offset += TAG_LEN;
        if ethertype == ethertype::VLAN {
            ethertype = frame.load::<Be16>(offset + 2)?.get();
            offset += TAG_LEN;
        }
    }
    Some((ethertype, offset))
}

/// The same offset, but unknown to the verifier within its bounds: else it would walk the whole program once per kind of
/// link header.
#[inline(always)]
pub fn opaque(settings: &Settings, l3: usize) -> usize {
    (l3 ^ settings.zero as usize) & 31
}

/// Reads ports, flags or type, if the whole transport header is there and within the IP packet.
#[inline(always)]
pub fn transport<A>(frame: &Frame, packet: &mut Packet<A>) -> Option<()> {
    let l4 = packet.l4 as usize;
    let room = (packet.l3 as usize + packet.length as usize).checked_sub(l4)?;
    match packet.protocol {
        protocol::TCP => {
            if room < TcpHdr::LEN {
                return None;
            }
            let header = frame.view::<Tcp>(l4)?;
            [packet.sport, packet.dport] = header.ports;
            packet.tcp_flags = header.flags;
        }
        protocol::UDP => {
            if room < UdpHdr::LEN {
                return None;
            }
            [packet.sport, packet.dport] = frame.view::<Udp>(l4)?.ports;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if room < Icmpv4Hdr::LEN {
                return None;
            }
            // Type and code travel in the place of the source port.
            packet.sport = frame.load::<[Be16; 4]>(l4)?[0];
        }
        _ => {}
    }
    Some(())
}

/// Whether the frame holds so many bytes from an offset on.
#[inline(always)]
pub fn holds(frame: &Frame, from: usize, bytes: usize) -> bool {
    let to = bounded(from + bytes);
    frame.is_linear(to) || to <= frame.length()
}
