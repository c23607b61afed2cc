//! The last stage: the new link and outer headers, and out.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_redirect};
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::checksum::finish;
use loadbalancer_common::net::{Be16, ethertype};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::{HEADER_ROOM, LastHop, Path, encap};
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::family::{Family, V4, V6};
use crate::frame;
use crate::icmp;
use crate::maps;
use crate::parse::{Packet, TAG_LEN};
use crate::verdict::Verdict;

/// First of the 16,384 source ports of GUE packets: the dynamic range (RFC 6335), which is what its draft asks for.
const GUE_SOURCE_PORTS: u16 = 0xc000;

/// Lowest bit of a hash that chooses the path slot.
const SLOT_SHIFT: u32 = 29;

/// The path slot that a flow uses.
#[inline(always)]
pub fn path_of(backend: &Backend, hash: u64) -> u32 {
    backend.paths[(hash >> SLOT_SHIFT) as usize & (PATH_SLOTS - 1)]
}

/// What chooses the path slot of a `nat` flow: the lowest bits of its source port, which is as good as a hash and at hand.
/// The highest need not take all values in the range of ports.
#[inline(always)]
pub fn nat_hash(port: Be16) -> u64 {
    (port.get() as u64) << SLOT_SHIFT
}

/// What keeps a packet from being sent on, and the answer it gets.
#[inline(always)]
pub fn obstacle<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service: u16,
    ifindex: u32,
    mtu: u16,
) -> Option<Verdict> {
    if ifindex == 0 {
        return Some(Verdict::drop(service, Outcome::NoPath));
    }
    if packet.ttl <= 1 {
        return Some(icmp::answer::<F>(ctx, packet, service, icmp::Answer::TimeExceeded));
    }
    if mtu != 0 && packet.length > mtu {
        return Some(icmp::answer::<F>(ctx, packet, service, icmp::Answer::TooBig(mtu)));
    }
    None
}

/// The same for ICMP errors and later fragments, about which no error may be sent (RFC 1122, section 3.2.2).
#[inline(always)]
pub fn unanswered_obstacle<A>(packet: &Packet<A>, service: u16, ifindex: u32, mtu: u16) -> Option<Verdict> {
    let outcome = if ifindex == 0 {
        Outcome::NoPath
    } else if packet.ttl <= 1 {
        Outcome::TtlDropped
    } else if mtu != 0 && packet.length > mtu {
        Outcome::TooBigDropped
    } else {
        return None;
    };
    Some(Verdict::drop(service, outcome))
}

/// Puts the path's header in place of the link header and sends the frame.
#[inline(always)]
pub fn by_path<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service: u16,
    path_id: u32,
    hash: u64,
    outcome: Outcome,
) -> Verdict {
    let shape = Shape { l3: packet.l3 as u8, tos: packet.tos, length: packet.length, v6: F::V6 };
    let sent = Verdict::new(0, service, outcome);
    Verdict::from_word(forward_by_path(ctx.ctx, path_id, shape.word(), hash, sent.word()))
}

/// What encapsulation needs to know of a packet, in one word.
struct Shape {
    l3: u8,
    tos: u8,
    length: u16,
    v6: bool,
}

impl Shape {
    #[inline(always)]
    fn word(&self) -> u64 {
        self.l3 as u64 | (self.tos as u64) << 8 | (self.length as u64) << 16 | (self.v6 as u64) << 32
    }

    #[inline(always)]
    fn from_word(word: u64) -> Self {
        Self { l3: word as u8, tos: (word >> 8) as u8, length: (word >> 16) as u16, v6: (word >> 32) & 1 != 0 }
    }
}

/// See [`by_path`]. Exported so that the verifier checks the many kinds of headers once, not anew for every way that
/// leads here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_by_path(ctx: *mut xdp_md, path_id: u32, shape: u64, hash: u64, verdict: u64) -> u64 {
    let ctx = &XdpContext::new(ctx);
    let packet = Shape::from_word(shape);
    let verdict = Verdict::from_word(verdict);
    let failed = verdict.instead(xdp_action::XDP_DROP, Outcome::Internal).word();
    let Some(path) = maps::path(path_id) else {
        return failed;
    };
    if !frame::grow_head(ctx, path.header_len as i32 - packet.l3 as i32) || !copy_header(ctx, path) {
        return failed;
    }
    let l2 = path.l2_len as usize;
    let (ethertype, protocol) = if packet.v6 { (V6::ETHERTYPE, V6::TUNNELLED) } else { (V4::ETHERTYPE, V4::TUNNELLED) };
    let done = match path.encap {
        encap::NONE => frame::store(ctx, l2 - 2, ethertype),
        encap::IPV4 => outer4(ctx, l2, path, packet.tos, packet.length, protocol),
        encap::IPV6 => outer6(ctx, l2, packet.tos, packet.length, protocol, hash),
        encap::GUE_IPV4 => {
            outer4(ctx, l2, path, packet.tos, packet.length + 8, 0)
                && outer_udp(ctx, l2 + Ipv4Hdr::LEN, packet.length, hash)
        }
        encap::GUE_IPV6 => {
            outer6(ctx, l2, packet.tos, packet.length + 8, 0, hash)
                && outer_udp(ctx, l2 + Ipv6Hdr::LEN, packet.length, hash)
        }
        _ => false,
    };
    if !done {
        return failed;
    }
    verdict.with_action(action_for(ctx, path.ifindex)).word()
}

/// Out of an interface, which may be the one that the frame came from.
#[inline(always)]
fn action_for(ctx: &XdpContext, ifindex: u32) -> u32 {
    if ifindex == ctx.ingress_ifindex() as u32 {
        xdp_action::XDP_TX
    } else {
        // SAFETY: the helper takes any number; one that is no interface is an aborted frame.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }
}

/// Copies the prebuilt header. The usual lengths are copied by a fixed number of words.
#[inline(always)]
fn copy_header(ctx: &XdpContext, path: &Path) -> bool {
    match path.header_len as usize {
        14 => copy::<14>(ctx, path),
        34 => copy::<34>(ctx, path),
        42 => copy::<42>(ctx, path),
        54 => copy::<54>(ctx, path),
        62 => copy::<62>(ctx, path),
        length => copy_any(ctx, path, length),
    }
}

#[inline(always)]
fn copy<const N: usize>(ctx: &XdpContext, path: &Path) -> bool {
    let Some(target) = frame::at::<[u8; N]>(ctx, 0) else {
        return false;
    };
    let (source, target) = (path.header.as_ptr(), target.cast::<u8>());
    let mut i = 0;
    // SAFETY: both sides hold N bytes: `at` has checked the frame, and N is at most the header's room.
    unsafe {
        while i + 8 <= N {
            *target.add(i).cast::<u64>() = *source.add(i).cast::<u64>();
            i += 8;
        }
        while i + 2 <= N {
            *target.add(i).cast::<u16>() = *source.add(i).cast::<u16>();
            i += 2;
        }
    }
    true
}

#[inline(never)]
fn copy_any(ctx: &XdpContext, path: &Path, length: usize) -> bool {
    let mut i = 0;
    while i < HEADER_ROOM {
        if i >= length {
            return true;
        }
        // SAFETY: `i` is even and below the header's room, which is even.
        let pair = unsafe { *path.header.as_ptr().add(i).cast::<u16>() };
        if !frame::store(ctx, i, pair) {
            return false;
        }
        i += 2;
    }
    true
}

/// Fills in an outer IPv4 header. `length` is what follows it.
#[inline(always)]
fn outer4(ctx: &XdpContext, at: usize, path: &Path, tos: u8, length: u16, protocol: u8) -> bool {
    let Some(header) = frame::at::<[u8; Ipv4Hdr::LEN]>(ctx, at) else {
        return false;
    };
    let header = header.cast::<u8>();
    let length = Be16::new(length + Ipv4Hdr::LEN as u16);
    // DSCP and ECN are copied (RFC 2983, uniform model; RFC 6040, normal mode).
    let sum = path.outer_sum as u64
        + u16::from_ne_bytes([0, tos]) as u64
        + length.0 as u64
        + u16::from_ne_bytes([0, protocol]) as u64;
    // SAFETY: `at` has checked that the frame holds the header.
    unsafe {
        *header.add(1) = tos;
        *header.add(2).cast::<Be16>() = length;
        if protocol != 0 {
            *header.add(9) = protocol;
        }
        *header.add(10).cast::<u16>() = finish(sum);
    }
    true
}

/// Fills in an outer IPv6 header. `length` is what follows it. The flow label carries the flow's entropy (RFC 6438).
#[inline(always)]
fn outer6(ctx: &XdpContext, at: usize, tos: u8, length: u16, protocol: u8, hash: u64) -> bool {
    let Some(header) = frame::at::<[u8; Ipv6Hdr::LEN]>(ctx, at) else {
        return false;
    };
    let header = header.cast::<u8>();
    let head = (6 << 28) | ((tos as u32) << 20) | ((hash >> 7) as u32 & 0xf_ffff);
    // SAFETY: `at` has checked that the frame holds the header.
    unsafe {
        *header.cast::<u32>() = head.to_be();
        *header.add(4).cast::<Be16>() = Be16::new(length);
        if protocol != 0 {
            *header.add(6) = protocol;
        }
    }
    true
}

/// Fills in an outer UDP header. Its checksum stays zero, which tunnels may do over IPv6 as well (RFC 6935).
#[inline(always)]
fn outer_udp(ctx: &XdpContext, at: usize, length: u16, hash: u64) -> bool {
    frame::store(ctx, at, Be16::new(GUE_SOURCE_PORTS | (hash >> 13) as u16 & 0x3fff))
        && frame::store(ctx, at + 4, Be16::new(length + 8))
}

/// Sends a frame back to where a client's packets came from.
#[inline(always)]
pub fn to_client<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service: u16,
    hop: &LastHop,
    outcome: Outcome,
) -> Verdict {
    let length = if hop.outer_tag == 0 {
        EthHdr::LEN
    } else if hop.tags[1] == 0 {
        EthHdr::LEN + TAG_LEN
    } else {
        EthHdr::LEN + 2 * TAG_LEN
    };
    let vlan = Be16::new(ethertype::VLAN).0;
    let ethertype = F::ETHERTYPE.0;
    let done = frame::grow_head(ctx, length as i32 - packet.l3 as i32)
        && frame::store(ctx, 0, hop.macs)
        && if hop.outer_tag == 0 {
            frame::store(ctx, 12, ethertype)
        } else if hop.tags[1] == 0 {
            frame::store(ctx, 12, [hop.outer_tag, hop.tags[0], ethertype])
        } else {
            frame::store(ctx, 12, [hop.outer_tag, hop.tags[0], vlan, hop.tags[1], ethertype])
        };
    if !done {
        return Verdict::drop(service, Outcome::Internal);
    }
    Verdict::new(action_for(ctx, hop.ifindex), service, outcome)
}

/// Largest IP packet of an interface, of that on which the frame came if it is zero; zero if the kernel does not say.
#[inline(always)]
pub fn mtu(ctx: &XdpContext, ifindex: u32) -> u16 {
    let mut mtu = 0u32;
    // SAFETY: the context is the kernel's, and `mtu` lives through the call.
    let result = unsafe { bpf_check_mtu(ctx.ctx.cast(), ifindex, &raw mut mtu, 0, 0) };
    if result < 0 || mtu > u16::MAX as u32 { 0 } else { mtu as u16 }
}
