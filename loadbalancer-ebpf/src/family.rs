//! What differs between IPv4 and IPv6. The pipeline is compiled once per family.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::checksum::{replace16, replace32, update};
use loadbalancer_common::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Addr4, Addr6, AnyAddr, Be16, ethertype, protocol};
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::{Reply, Vip, VipKey};
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::frame;
use crate::maps;
use crate::parse::{Packet, Part};

/// Extension headers that are looked through.
const MAX_EXTENSIONS: usize = 6;
const MORE_FRAGMENTS4: u16 = 0x2000;
const FRAGMENT_OFFSET4: u16 = 0x1fff;
pub const DONT_FRAGMENT4: u16 = 0x4000;

/// IPv4 header as fields of their natural width.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub length: Be16,
    pub id: u16,
    pub fragment: Be16,
    /// Time to live and protocol, as they lie in memory: the word that a checksum update needs.
    pub ttl_protocol: [u8; 2],
    pub checksum: u16,
    pub src: Addr4,
    pub dst: Addr4,
}

/// IPv6 header as fields of their natural width.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip6 {
    /// Version, traffic class, flow label.
    pub head: u32,
    pub length: Be16,
    pub next: u8,
    pub hop_limit: u8,
    pub src: Addr6,
    pub dst: Addr6,
}

const _: () = assert!(size_of::<Ip4>() == Ipv4Hdr::LEN && size_of::<Ip6>() == Ipv6Hdr::LEN);

/// New addresses and ports of a packet.
#[derive(Clone, Copy)]
pub struct Rewrite<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
}

pub trait Family {
    type Addr: Copy + PartialEq + 'static;
    const V6: bool;
    /// Protocol number of ICMP.
    const ICMP: u8;
    const ETHERTYPE: Be16;
    /// Protocol number of this family inside a tunnel.
    const TUNNELLED: u8;
    /// Bytes of the IP header without options.
    const HEADER: usize;

    fn parse(ctx: &XdpContext, l3: usize) -> Option<Packet<Self::Addr>>;
    fn addr(any: &AnyAddr) -> Self::Addr;
    fn hash(seed: u64, src: Self::Addr, dst: Self::Addr, sport: Be16, dport: Be16, protocol: u8) -> u64;
    fn client_hash(seed: u64, src: Self::Addr, service: u16) -> u64;
    /// What replacing an address adds to a sum that covers it.
    fn replace(old: Self::Addr, new: Self::Addr) -> u64;
    /// What an address adds to a sum that covers it.
    fn sum(addr: Self::Addr) -> u64;
    /// The address as one of a given family; never called for the other.
    fn from_v4(addr: Addr4) -> Self::Addr;
    fn from_v6(addr: Addr6) -> Self::Addr;
    fn to_v4(addr: Self::Addr) -> Addr4;
    fn to_v6(addr: Self::Addr) -> Addr6;

    fn vip(key: &VipKey<Self::Addr>) -> Option<&'static Vip>;
    fn reply(key: &VipKey<Self::Addr>) -> Option<&'static Reply>;
    fn translation(key: &Tuple<Self::Addr>) -> Option<*mut Translation<Self::Addr>>;
    fn insert_translation(key: &Tuple<Self::Addr>, value: &Translation<Self::Addr>, flags: u64) -> bool;
    fn remove_translation(key: &Tuple<Self::Addr>);
    fn fragment(key: &FragmentKey<Self::Addr>) -> Option<&'static Fragment<Self::Addr>>;
    fn insert_fragment(key: &FragmentKey<Self::Addr>, value: &Fragment<Self::Addr>) -> bool;
    fn last_hop(addr: &Self::Addr) -> Option<&'static LastHop>;
    fn insert_last_hop(addr: &Self::Addr, hop: &LastHop);

    /// One hop less to live.
    #[must_use]
    fn spend_ttl(ctx: &XdpContext, l3: usize) -> bool;
    /// Gives an IP header new addresses.
    #[must_use]
    fn readdress(ctx: &XdpContext, l3: usize, src: Self::Addr, dst: Self::Addr) -> bool;
}

/// Gives a packet new addresses and ports and one hop less to live, with all checksums.
#[inline(always)]
#[must_use]
pub fn rewrite<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, new: &Rewrite<F::Addr>) -> bool {
    if !F::spend_ttl(ctx, packet.l3 as usize) || !F::readdress(ctx, packet.l3 as usize, new.src, new.dst) {
        return false;
    }
    let l4 = packet.l4 as usize;
    if !frame::store(ctx, l4, [new.sport, new.dport]) {
        return false;
    }
    let difference = F::replace(packet.src, new.src)
        + F::replace(packet.dst, new.dst)
        + replace16(packet.sport.0, new.sport.0)
        + replace16(packet.dport.0, new.dport.0);
    if packet.is_tcp() {
        let Some(checksum) = frame::at::<u16>(ctx, l4 + 16) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        unsafe { *checksum = update(*checksum, difference) };
    } else {
        let Some(checksum) = frame::at::<u16>(ctx, l4 + 6) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        unsafe {
            // Zero means that there is none (RFC 768); a sum that comes out as zero is sent as its other form.
            if *checksum != 0 {
                let new = update(*checksum, difference);
                *checksum = if new == 0 { 0xffff } else { new };
            }
        }
    }
    true
}

/// Reads ports, flags or type, if the whole transport header is there and within the IP packet.
#[inline(always)]
fn transport<A>(ctx: &XdpContext, packet: &mut Packet<A>) -> Option<()> {
    let l4 = packet.l4 as usize;
    let room = (packet.l3 as usize + packet.length as usize).checked_sub(l4)?;
    match packet.protocol {
        protocol::TCP => {
            if room < TcpHdr::LEN {
                return None;
            }
            let header = frame::at::<[u32; 5]>(ctx, l4)?;
            // SAFETY: `at` has checked the address.
            let (ports, flags) = unsafe { (*header.cast::<[Be16; 2]>(), *header.cast::<u8>().add(13)) };
            (packet.sport, packet.dport, packet.tcp_flags) = (ports[0], ports[1], flags);
        }
        protocol::UDP => {
            if room < UdpHdr::LEN {
                return None;
            }
            let header = frame::at::<[u32; 2]>(ctx, l4)?;
            // SAFETY: `at` has checked the address.
            let ports = unsafe { *header.cast::<[Be16; 2]>() };
            (packet.sport, packet.dport) = (ports[0], ports[1]);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if room < Icmpv4Hdr::LEN {
                return None;
            }
            // Type and code travel in the place of the source port.
            packet.sport = frame::load::<[Be16; 4]>(ctx, l4)?[0];
        }
        _ => {}
    }
    Some(())
}

/// Whether the frame holds so many bytes from an offset on.
#[inline(always)]
fn holds(ctx: &XdpContext, from: usize, bytes: usize) -> bool {
    let to = frame::bounded(from + bytes);
    frame::start(ctx) + to <= frame::end(ctx) || to <= frame::length(ctx)
}

pub struct V4;

impl Family for V4 {
    type Addr = Addr4;
    const V6: bool = false;
    const ICMP: u8 = protocol::ICMP;
    const ETHERTYPE: Be16 = Be16::new(ethertype::IPV4);
    const TUNNELLED: u8 = protocol::IPV4;
    const HEADER: usize = Ipv4Hdr::LEN;

    #[inline(always)]
    fn parse(ctx: &XdpContext, l3: usize) -> Option<Packet<Addr4>> {
        let header = frame::at::<Ip4>(ctx, l3)?;
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &*header };
        let header_length = (ip.version_ihl & 15) as usize * 4;
        let length = ip.length.get();
        if ip.version_ihl >> 4 != 4
            || header_length < Ipv4Hdr::LEN
            || (length as usize) < header_length
            || !holds(ctx, l3, length as usize)
        {
            return None;
        }
        let fragment = ip.fragment.get();
        let part = if fragment & FRAGMENT_OFFSET4 != 0 {
            Part::Later
        } else if fragment & MORE_FRAGMENTS4 != 0 {
            Part::First
        } else {
            Part::Whole
        };
        let mut packet = Packet {
            src: ip.src,
            dst: ip.dst,
            sport: Be16(0),
            dport: Be16(0),
            protocol: ip.ttl_protocol[1],
            tcp_flags: 0,
            ttl: ip.ttl_protocol[0],
            tos: ip.tos,
            l3: l3 as u16,
            l4: (l3 + header_length) as u16,
            length,
            part,
            fragment_id: ip.id as u32,
        };
        if part != Part::Later {
            transport(ctx, &mut packet)?;
        }
        Some(packet)
    }

    #[inline(always)]
    fn addr(any: &AnyAddr) -> Addr4 {
        any.v4()
    }

    #[inline(always)]
    fn hash(seed: u64, src: Addr4, dst: Addr4, sport: Be16, dport: Be16, protocol: u8) -> u64 {
        hash::flow4(seed, src, dst, sport, dport, protocol)
    }

    #[inline(always)]
    fn client_hash(seed: u64, src: Addr4, service: u16) -> u64 {
        hash::client4(seed, src, service)
    }

    #[inline(always)]
    fn replace(old: Addr4, new: Addr4) -> u64 {
        replace32(old.0, new.0)
    }

    #[inline(always)]
    fn sum(addr: Addr4) -> u64 {
        addr.0 as u64
    }

    #[inline(always)]
    fn from_v4(addr: Addr4) -> Addr4 {
        addr
    }

    #[inline(always)]
    fn from_v6(addr: Addr6) -> Addr4 {
        Addr4(addr.0[0])
    }

    #[inline(always)]
    fn to_v4(addr: Addr4) -> Addr4 {
        addr
    }

    #[inline(always)]
    fn to_v6(addr: Addr4) -> Addr6 {
        Addr6([addr.0, 0, 0, 0])
    }

    #[inline(always)]
    fn vip(key: &VipKey<Addr4>) -> Option<&'static Vip> {
        // SAFETY: values of this map are replaced as a whole, and one word long.
        unsafe { maps::VIPS4.get(key) }
    }

    #[inline(always)]
    fn reply(key: &VipKey<Addr4>) -> Option<&'static Reply> {
        // SAFETY: entries are never changed, only added and removed.
        unsafe { maps::REPLIES4.get(key) }
    }

    #[inline(always)]
    fn translation(key: &Tuple<Addr4>) -> Option<*mut Translation<Addr4>> {
        maps::CONNTRACK4.get_ptr_mut(key)
    }

    #[inline(always)]
    fn insert_translation(key: &Tuple<Addr4>, value: &Translation<Addr4>, flags: u64) -> bool {
        maps::CONNTRACK4.insert(key, value, flags).is_ok()
    }

    #[inline(always)]
    fn remove_translation(key: &Tuple<Addr4>) {
        if maps::CONNTRACK4.remove(key).is_err() {
            // Already gone: the kernel evicted it.
        }
    }

    #[inline(always)]
    fn fragment(key: &FragmentKey<Addr4>) -> Option<&'static Fragment<Addr4>> {
        // SAFETY: entries are replaced as a whole.
        unsafe { maps::FRAGMENTS4.get(key) }
    }

    #[inline(always)]
    fn insert_fragment(key: &FragmentKey<Addr4>, value: &Fragment<Addr4>) -> bool {
        maps::FRAGMENTS4.insert(key, value, 0).is_ok()
    }

    #[inline(always)]
    fn last_hop(addr: &Addr4) -> Option<&'static LastHop> {
        // SAFETY: entries are replaced as a whole.
        unsafe { maps::LAST_HOPS4.get(addr) }
    }

    #[inline(always)]
    fn insert_last_hop(addr: &Addr4, hop: &LastHop) {
        if maps::LAST_HOPS4.insert(addr, hop, 0).is_err() {
            // The next packet of the client tries again.
        }
    }

    #[inline(always)]
    fn spend_ttl(ctx: &XdpContext, l3: usize) -> bool {
        let Some(header) = frame::at::<Ip4>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &mut *header };
        let old = u16::from_ne_bytes(ip.ttl_protocol);
        ip.ttl_protocol[0] -= 1;
        ip.checksum = update(ip.checksum, replace16(old, u16::from_ne_bytes(ip.ttl_protocol)));
        true
    }

    #[inline(always)]
    fn readdress(ctx: &XdpContext, l3: usize, src: Addr4, dst: Addr4) -> bool {
        let Some(header) = frame::at::<Ip4>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &mut *header };
        ip.checksum = update(ip.checksum, Self::replace(ip.src, src) + Self::replace(ip.dst, dst));
        ip.src = src;
        ip.dst = dst;
        true
    }
}

pub struct V6;

impl Family for V6 {
    type Addr = Addr6;
    const V6: bool = true;
    const ICMP: u8 = protocol::ICMPV6;
    const ETHERTYPE: Be16 = Be16::new(ethertype::IPV6);
    const TUNNELLED: u8 = protocol::IPV6;
    const HEADER: usize = Ipv6Hdr::LEN;

    #[inline(always)]
    fn parse(ctx: &XdpContext, l3: usize) -> Option<Packet<Addr6>> {
        let header = frame::at::<Ip6>(ctx, l3)?;
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &*header };
        let head = u32::from_be(ip.head);
        let length = ip.length.get() as usize + Ipv6Hdr::LEN;
        if head >> 28 != 6 || length > u16::MAX as usize || !holds(ctx, l3, length) {
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
            extensions(ctx, &mut packet)?;
        }
        if packet.part != Part::Later {
            transport(ctx, &mut packet)?;
        }
        Some(packet)
    }

    #[inline(always)]
    fn addr(any: &AnyAddr) -> Addr6 {
        any.v6()
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
    fn from_v4(addr: Addr4) -> Addr6 {
        Addr6([addr.0, 0, 0, 0])
    }

    #[inline(always)]
    fn from_v6(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn to_v4(addr: Addr6) -> Addr4 {
        Addr4(addr.0[0])
    }

    #[inline(always)]
    fn to_v6(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn vip(key: &VipKey<Addr6>) -> Option<&'static Vip> {
        // SAFETY: values of this map are replaced as a whole, and one word long.
        unsafe { maps::VIPS6.get(key) }
    }

    #[inline(always)]
    fn reply(key: &VipKey<Addr6>) -> Option<&'static Reply> {
        // SAFETY: entries are never changed, only added and removed.
        unsafe { maps::REPLIES6.get(key) }
    }

    #[inline(always)]
    fn translation(key: &Tuple<Addr6>) -> Option<*mut Translation<Addr6>> {
        maps::CONNTRACK6.get_ptr_mut(key)
    }

    #[inline(always)]
    fn insert_translation(key: &Tuple<Addr6>, value: &Translation<Addr6>, flags: u64) -> bool {
        maps::CONNTRACK6.insert(key, value, flags).is_ok()
    }

    #[inline(always)]
    fn remove_translation(key: &Tuple<Addr6>) {
        if maps::CONNTRACK6.remove(key).is_err() {
            // Already gone: the kernel evicted it.
        }
    }

    #[inline(always)]
    fn fragment(key: &FragmentKey<Addr6>) -> Option<&'static Fragment<Addr6>> {
        // SAFETY: entries are replaced as a whole.
        unsafe { maps::FRAGMENTS6.get(key) }
    }

    #[inline(always)]
    fn insert_fragment(key: &FragmentKey<Addr6>, value: &Fragment<Addr6>) -> bool {
        maps::FRAGMENTS6.insert(key, value, 0).is_ok()
    }

    #[inline(always)]
    fn last_hop(addr: &Addr6) -> Option<&'static LastHop> {
        // SAFETY: entries are replaced as a whole.
        unsafe { maps::LAST_HOPS6.get(addr) }
    }

    #[inline(always)]
    fn insert_last_hop(addr: &Addr6, hop: &LastHop) {
        if maps::LAST_HOPS6.insert(addr, hop, 0).is_err() {
            // The next packet of the client tries again.
        }
    }

    #[inline(always)]
    fn spend_ttl(ctx: &XdpContext, l3: usize) -> bool {
        let Some(header) = frame::at::<Ip6>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        unsafe { (*header).hop_limit -= 1 };
        true
    }

    #[inline(always)]
    fn readdress(ctx: &XdpContext, l3: usize, src: Addr6, dst: Addr6) -> bool {
        let Some(header) = frame::at::<Ip6>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        unsafe {
            (*header).src = src;
            (*header).dst = dst;
        }
        true
    }
}

/// Looks through extension headers for the transport protocol (RFC 8200, section 4).
#[inline(always)]
fn extensions(ctx: &XdpContext, packet: &mut Packet<Addr6>) -> Option<()> {
    let end = ipv6_transport(ctx.ctx, packet.l4 as u32, packet.protocol as u32);
    packet.protocol = end as u8;
    packet.part = match (end >> 8) as u8 {
        0 => Part::Whole,
        1 => Part::First,
        2 => Part::Later,
        _ => return None,
    };
    packet.l4 = (end >> 16) as u16;
    packet.fragment_id = (end >> 32) as u32;
    Some(())
}

/// See [`extensions`]. Protocol, part (3: headers cut short), offset and fragment number, from the lowest bits upwards.
/// Exported so that the verifier walks the loop by itself; inlined, it would multiply all that follows.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ipv6_transport(ctx: *mut xdp_md, at: u32, protocol: u32) -> u64 {
    const CUT_SHORT: u64 = 3 << 8;
    let ctx = &XdpContext::new(ctx);
    let (mut at, mut protocol, mut part, mut id) = (at as usize & 0xff, protocol as u8, 0u64, 0u32);
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
        let Some([head, second]) = frame::load::<[u32; 2]>(ctx, at) else {
            return CUT_SHORT;
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
        if at > frame::MAX_OFFSET {
            return CUT_SHORT;
        }
        if is_fragment {
            id = second;
            // Offset in the upper 13 bits of the lower half, "more" in its lowest. Neither: an atomic fragment
            // (RFC 6946), which is a whole packet.
            if head & 0xfff8 != 0 {
                part = 2;
                break;
            }
            part = (head & 1) as u64;
        }
    }
    protocol as u64 | part << 8 | (at as u64) << 16 | (id as u64) << 32
}
