//! From bytes to a packet: link layer with VLAN tags, and what all families share.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::net::{Be16, ethertype, tcp_flag};
use loadbalancer_common::path::LastHop;
use loadbalancer_common::settings::Settings;
use network_types::eth::EthHdr;

use crate::frame;

/// Bytes of a VLAN tag.
pub const TAG_LEN: usize = 4;

/// A fragment's place in its packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    Whole,
    First,
    Later,
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
        self.part == Part::Later
            || (self.protocol != loadbalancer_common::net::protocol::TCP
                && self.protocol != loadbalancer_common::net::protocol::UDP)
    }

    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.part == Part::Later
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == loadbalancer_common::net::protocol::TCP
    }

    /// The first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
    }
}

/// EtherType and offset of what the frame carries, behind at most two VLAN tags.
#[inline(always)]
pub fn link(ctx: &XdpContext) -> Option<(u16, usize)> {
    let mut ethertype = frame::load::<Be16>(ctx, EthHdr::LEN - 2)?.get();
    let mut offset = EthHdr::LEN;
    if ethertype == ethertype::QINQ || ethertype == ethertype::VLAN {
        ethertype = frame::load::<Be16>(ctx, offset + 2)?.get();
        offset += TAG_LEN;
        if ethertype == ethertype::VLAN {
            ethertype = frame::load::<Be16>(ctx, offset + 2)?.get();
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

/// Where a reply to this frame goes: back to the neighbour that sent it.
#[inline(always)]
pub fn last_hop(ctx: &XdpContext, l3: u16) -> Option<LastHop> {
    let macs = frame::load::<[u16; 6]>(ctx, 0)?;
    let mut hop = LastHop {
        ifindex: ctx.ingress_ifindex() as u32,
        macs: [macs[3], macs[4], macs[5], macs[0], macs[1], macs[2]],
        tags: [0; 2],
        mtu: crate::forward::mtu(ctx, 0),
        outer_tag: 0,
    };
    if l3 as usize >= EthHdr::LEN + TAG_LEN {
        [hop.outer_tag, hop.tags[0]] = frame::load::<[u16; 2]>(ctx, EthHdr::LEN - 2)?;
    }
    if l3 as usize >= EthHdr::LEN + 2 * TAG_LEN {
        hop.tags[1] = frame::load::<u16>(ctx, EthHdr::LEN + TAG_LEN)?;
    }
    Some(hop)
}
