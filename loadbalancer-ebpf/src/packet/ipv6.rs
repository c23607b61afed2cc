//! IPv6.

use aya_ebpf::bindings::xdp_md;
use bytemuck::{Pod, Zeroable};
use loadbalancer_common::checksum::replace32;
use loadbalancer_common::hash;
use loadbalancer_common::net::{Addr6, AnyAddr, Be16, ethertype, protocol};
use network_types::ip::Ipv6Hdr;

use crate::packet::cursor::{Frame, MAX_OFFSET};
use crate::packet::family::{Family, OWN_TTL};
use crate::packet::parse::{Packet, Part, holds, transport};

/// Extension headers that are looked through.
const MAX_EXTENSIONS: usize = 6;

/// IPv6 header as fields of their natural width.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ip6 {
    /// Version, traffic class, flow label.
    pub head: u32,
    pub length: Be16,
    pub next: u8,
    pub hop_limit: u8,
    pub src: Addr6,
    pub dst: Addr6,
}

const _: () = assert!(size_of::<Ip6>() == Ipv6Hdr::LEN);

pub struct V6;

impl Family for V6 {
    type Addr = Addr6;
    const V6: bool = true;
    const ICMP: u8 = protocol::ICMPV6;
    const ETHERTYPE: Be16 = Be16::new(ethertype::IPV6);
    const TUNNELLED: u8 = protocol::IPV6;
    const HEADER: usize = Ipv6Hdr::LEN;

    #[inline(always)]
    fn parse(frame: &Frame, l3: usize) -> Option<Packet<Addr6>> {
        let ip = frame.view::<Ip6>(l3)?;
        let head = u32::from_be(ip.head);
        let length = ip.length.get() as usize + Ipv6Hdr::LEN;
        if head >> 28 != 6 || length > u16::MAX as usize || !holds(frame, l3, length) {
            return None;
        }
        let mut packet = Packet {
            src: ip.src,
            dst: ip.dst,
            sport: Be16(0),
            dport: Be16(0),
            protocol: ip.next,
            tcp_flags: 0,
            ttl: ip.hop_limit,
            tos: (head >> 20) as u8,
            l3: l3 as u16,
            l4: (l3 + Ipv6Hdr::LEN) as u16,
            length: length as u16,
            part: Part::Whole,
            fragment_id: 0,
        };
        if packet.protocol != protocol::TCP && packet.protocol != protocol::UDP {
            extensions(frame, &mut packet)?;
        }
        if packet.part != Part::Later {
            transport(frame, &mut packet)?;
        }
        Some(packet)
    }

    #[inline(always)]
    fn quoted(frame: &Frame, l3: usize) -> Option<(Addr6, Addr6, u8, usize)> {
        let ip = frame.view::<Ip6>(l3)?;
        Some((ip.src, ip.dst, ip.next, l3 + Ipv6Hdr::LEN))
    }

    #[inline(always)]
    fn addr(any: &AnyAddr) -> Addr6 {
        any.v6()
    }

    #[inline(always)]
    fn any(addr: Addr6) -> AnyAddr {
        AnyAddr(addr.0)
    }

    #[inline(always)]
    fn hash(seed: u64, src: Addr6, dst: Addr6, sport: Be16, dport: Be16, protocol: u8) -> u64 {
        hash::flow6(seed, src, dst, sport, dport, protocol)
    }

    #[inline(always)]
    fn client_hash(seed: u64, src: Addr6, service: u16) -> u64 {
        hash::client6(seed, src, service)
    }

    #[inline(always)]
    fn replace(old: Addr6, new: Addr6) -> u64 {
        replace32(old.0[0], new.0[0])
            + replace32(old.0[1], new.0[1])
            + replace32(old.0[2], new.0[2])
            + replace32(old.0[3], new.0[3])
    }

    #[inline(always)]
    fn sum(addr: Addr6) -> u64 {
        addr.0[0] as u64 + addr.0[1] as u64 + addr.0[2] as u64 + addr.0[3] as u64
    }

    #[inline(always)]
    fn spend_ttl(frame: &mut Frame, l3: usize) -> bool {
        let Some(ip) = frame.view_mut::<Ip6>(l3) else {
            return false;
        };
        ip.hop_limit -= 1;
        true
    }

    #[inline(always)]
    fn renew_ttl(frame: &mut Frame, l3: usize) -> bool {
        frame.store(l3 + core::mem::offset_of!(Ip6, hop_limit), OWN_TTL)
    }

    #[inline(always)]
    fn readdress(frame: &mut Frame, l3: usize, src: Addr6, dst: Addr6) -> bool {
        let Some(ip) = frame.view_mut::<Ip6>(l3) else {
            return false;
        };
        ip.src = src;
        ip.dst = dst;
        true
    }

    #[inline(never)]
    fn write_header(frame: &mut Frame, packet: &Packet<Addr6>, length: usize, protocol: u8) -> bool {
        let Some(ip) = frame.view_mut::<Ip6>(packet.l3 as usize) else {
            return false;
        };
        ip.head = (6u32 << 28).to_be();
        ip.length = Be16::new((length - Ipv6Hdr::LEN) as u16);
        ip.next = protocol;
        ip.hop_limit = OWN_TTL;
        ip.src = packet.dst;
        ip.dst = packet.src;
        true
    }
}

/// Looks through extension headers for the transport protocol (RFC 8200, section 4).
#[inline(always)]
fn extensions(frame: &Frame, packet: &mut Packet<Addr6>) -> Option<()> {
    let found = Transport::from_bits(ipv6_transport(frame.context(), packet.l4 as u32, packet.protocol as u32));
    packet.protocol = found.protocol;
    packet.part = Part::from_bits(found.part)?;
    packet.l4 = found.l4;
    packet.fragment_id = found.fragment_id;
    Some(())
}

/// What is behind extension headers. One word, so that it comes back from a subprogram in a register.
struct Transport {
    protocol: u8,
    /// A [`Part`]'s number.
    part: u8,
    l4: u16,
    fragment_id: u32,
}

impl Transport {
    /// Headers are cut short: no part has this number.
    const CUT_SHORT: u64 = 3 << 8;

    /// From the lowest bits upwards: protocol, part, offset and fragment number.
    #[inline(always)]
    fn to_bits(&self) -> u64 {
        self.protocol as u64 | (self.part as u64) << 8 | (self.l4 as u64) << 16 | (self.fragment_id as u64) << 32
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self {
            protocol: bits as u8,
            part: (bits >> 8) as u8,
            l4: (bits >> 16) as u16,
            fragment_id: (bits >> 32) as u32,
        }
    }
}

/// See [`extensions`]. Gives a [`Transport`]. Exported so that the verifier walks the loop by itself; inlined, it would multiply all that follows.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ipv6_transport(ctx: &xdp_md, at: u32, protocol: u32) -> u64 {
    let frame = Frame::of(ctx);
    let (mut at, mut protocol, mut part, mut id) = (at as usize & 0xff, protocol as u8, Part::Whole as u8, 0u32);
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        i += 1;
        let is_fragment = protocol == protocol::FRAGMENT;
        if !is_fragment
            && protocol != protocol::HOP_BY_HOP
            && protocol != protocol::ROUTING
            && protocol != protocol::DESTINATION_OPTIONS
            && protocol != protocol::AUTHENTICATION
        {
            break;
        }
        // Every extension header has eight bytes at least.
        let Some([head, second]) = frame.load::<[u32; 2]>(at) else {
            return Transport::CUT_SHORT;
        };
        let head = u32::from_be(head);
        let units = (head >> 16) as usize & 0xff;
        at += if is_fragment {
            8
        } else if protocol == protocol::AUTHENTICATION {
            (units + 2) * 4
        } else {
            (units + 1) * 8
        };
        protocol = (head >> 24) as u8;
        if at > MAX_OFFSET {
            return Transport::CUT_SHORT;
        }
        if is_fragment {
            id = second;
            // Offset in the upper 13 bits of the lower half, "more" in its lowest. Neither: an atomic fragment
            // (RFC 6946), which is a whole packet.
            if head & 0xfff8 != 0 {
                part = Part::Later as u8;
                break;
            }
            part = head as u8 & Part::First as u8;
        }
    }
    Transport { protocol, part, l4: at as u16, fragment_id: id }.to_bits()
}
