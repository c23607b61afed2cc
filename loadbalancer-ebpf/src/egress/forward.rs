//! The last stage: the new link and outer headers, and out.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::checksum::finish;
use loadbalancer_common::net::{Be16, ethertype};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::{LastHop, Path, encap};
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::egress::reply::{self, Answer};
use crate::maps;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ipv4::{Ip4, V4};
use crate::packet::ipv6::{Ip6, V6};
use crate::packet::parse::{Packet, TAG_LEN};
use crate::verdict::{Verdict, redirect};

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
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    service: u16,
    ifindex: u32,
    mtu: u16,
) -> Option<Verdict> {
    if ifindex == 0 {
        return Some(Verdict::drop(service, Outcome::NoPath));
    }
    if packet.ttl <= 1 {
        return Some(reply::icmp_error::<F>(frame, packet, service, Answer::TimeExceeded));
    }
    if mtu != 0 && packet.length > mtu {
        return Some(reply::icmp_error::<F>(frame, packet, service, Answer::TooBig(mtu)));
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
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    service: u16,
    path_id: u32,
    hash: u64,
    outcome: Outcome,
) -> Verdict {
    let shape = Shape { l3: packet.l3 as u8, tos: packet.tos, length: packet.length, v6: F::V6 };
    let sent = Verdict::new(0, service, outcome);
    Verdict::from_bits(forward_by_path(frame.context_mut(), path_id, shape.to_bits(), hash, sent.to_bits()))
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
    fn to_bits(&self) -> u64 {
        self.l3 as u64 | (self.tos as u64) << 8 | (self.length as u64) << 16 | (self.v6 as u64) << 32
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self { l3: bits as u8, tos: (bits >> 8) as u8, length: (bits >> 16) as u16, v6: (bits >> 32) & 1 != 0 }
    }
}

/// See [`by_path`]. Exported so that the verifier checks the many kinds of headers once, not anew for every way that
/// leads here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward_by_path(ctx: &mut xdp_md, path_id: u32, shape: u64, hash: u64, verdict: u64) -> u64 {
    let frame = Frame::of_mut(ctx);
    let packet = Shape::from_bits(shape);
    let verdict = Verdict::from_bits(verdict);
    let failed = verdict.instead(xdp_action::XDP_DROP, Outcome::Internal).to_bits();
    let Some(path) = maps::path(path_id) else {
        return failed;
    };
    if !frame.grow_head(path.header_len as i32 - packet.l3 as i32) || !copy_header(frame, path) {
        return failed;
    }
    let l2 = path.l2_len as usize;
    let (ethertype, protocol) = if packet.v6 { (V6::ETHERTYPE, V6::TUNNELLED) } else { (V4::ETHERTYPE, V4::TUNNELLED) };
    let done = match path.encap {
        encap::NONE => frame.store(l2 - 2, ethertype),
        encap::IPV4 => outer4(frame, l2, path, packet.tos, packet.length, protocol),
        encap::IPV6 => outer6(frame, l2, packet.tos, packet.length, protocol, hash),
        encap::GUE_IPV4 => {
            outer4(frame, l2, path, packet.tos, packet.length + 8, 0)
                && outer_udp(frame, l2 + Ipv4Hdr::LEN, packet.length, hash)
        }
        encap::GUE_IPV6 => {
            outer6(frame, l2, packet.tos, packet.length + 8, 0, hash)
                && outer_udp(frame, l2 + Ipv6Hdr::LEN, packet.length, hash)
        }
        _ => false,
    };
    if !done {
        return failed;
    }
    verdict.with_action(action_for(frame, path.ifindex)).to_bits()
}

/// Out of an interface, which may be the one that the frame came from.
#[inline(always)]
fn action_for(frame: &Frame, ifindex: u32) -> u32 {
    if ifindex == frame.ifindex() { xdp_action::XDP_TX } else { redirect(ifindex) }
}

/// Copies the prebuilt header. The usual lengths are copied by a fixed number of words.
#[inline(always)]
fn copy_header(frame: &mut Frame, path: &Path) -> bool {
    match path.header_len as usize {
        14 => frame.write_front::<14, _>(&path.header),
        34 => frame.write_front::<34, _>(&path.header),
        42 => frame.write_front::<42, _>(&path.header),
        54 => frame.write_front::<54, _>(&path.header),
        62 => frame.write_front::<62, _>(&path.header),
        length => frame.write_front_bytes(&path.header, length),
    }
}

/// Fills in an outer IPv4 header. `length` is what follows it; `protocol` zero leaves the path's.
#[inline(always)]
fn outer4(frame: &mut Frame, at: usize, path: &Path, tos: u8, length: u16, protocol: u8) -> bool {
    let Some(ip) = frame.view_mut::<Ip4>(at) else {
        return false;
    };
    let length = Be16::new(length + Ipv4Hdr::LEN as u16);
    // DSCP and ECN are copied (RFC 2983, uniform model; RFC 6040, normal mode).
    let sum = path.outer_sum as u64
        + u16::from_ne_bytes([0, tos]) as u64
        + length.0 as u64
        + u16::from_ne_bytes([0, protocol]) as u64;
    ip.tos = tos;
    ip.length = length;
    if protocol != 0 {
        ip.ttl_protocol[1] = protocol;
    }
    ip.checksum = finish(sum);
    true
}

/// Fills in an outer IPv6 header, as [`outer4`] does. The flow label carries the flow's entropy (RFC 6438).
#[inline(always)]
fn outer6(frame: &mut Frame, at: usize, tos: u8, length: u16, protocol: u8, hash: u64) -> bool {
    let Some(ip) = frame.view_mut::<Ip6>(at) else {
        return false;
    };
    let head = (6 << 28) | ((tos as u32) << 20) | ((hash >> 7) as u32 & 0xf_ffff);
    ip.head = head.to_be();
    ip.length = Be16::new(length);
    if protocol != 0 {
        ip.next = protocol;
    }
    true
}

/// Fills in an outer UDP header. Its checksum stays zero, which tunnels may do over IPv6 as well (RFC 6935).
#[inline(always)]
fn outer_udp(frame: &mut Frame, at: usize, length: u16, hash: u64) -> bool {
    frame.store(at, Be16::new(GUE_SOURCE_PORTS | (hash >> 13) as u16 & 0x3fff))
        && frame.store(at + 4, Be16::new(length + 8))
}

/// Sends a frame back to where a client's packets came from.
#[inline(always)]
pub fn to_client<F: Family>(
    frame: &mut Frame,
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
    let done = frame.grow_head(length as i32 - packet.l3 as i32)
        && frame.store(0, hop.macs)
        && if hop.outer_tag == 0 {
            frame.store(12, ethertype)
        } else if hop.tags[1] == 0 {
            frame.store(12, [hop.outer_tag, hop.tags[0], ethertype])
        } else {
            frame.store(12, [hop.outer_tag, hop.tags[0], vlan, hop.tags[1], ethertype])
        };
    if !done {
        return Verdict::drop(service, Outcome::Internal);
    }
    Verdict::new(action_for(frame, hop.ifindex), service, outcome)
}
