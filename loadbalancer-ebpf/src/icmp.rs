//! ICMP and ICMPv6: echo to a VIP, errors about our flows, and the errors that we send ourselves.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::checksum::{finish, replace16, update};
use loadbalancer_common::conntrack::{SAMPLED, Tuple};
use loadbalancer_common::net::{Be16, protocol};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::{Service, Vip, VipKey, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::is_sampled;
use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;

use crate::admit;
use crate::affinity;
use crate::classify;
use crate::family::{DONT_FRAGMENT4, Family, Ip4, Ip6, Rewrite};
use crate::forward;
use crate::frame::{self, LONG_QUOTE};
use crate::maps;
use crate::observe::{self, Key};
use crate::parse::Packet;
use crate::verdict::Verdict;

/// Hop limit of what we send ourselves (RFC 1700).
pub const OWN_TTL: u8 = 64;

/// Message types (IANA), ICMP first, ICMPv6 second.
const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// An error that we answer with.
#[derive(Clone, Copy)]
pub enum Answer {
    TimeExceeded,
    /// Largest packet that fits.
    TooBig(u16),
}

impl Answer {
    /// Type and code.
    #[inline(always)]
    fn kind<F: Family>(self) -> [u8; 2] {
        match (self, F::V6) {
            (Answer::TimeExceeded, false) => [11, 0],
            (Answer::TooBig(_), false) => [3, 4],
            (Answer::TimeExceeded, true) => [3, 0],
            (Answer::TooBig(_), true) => [2, 0],
        }
    }
}

/// An ICMP message to an address of ours, or about a flow of ours.
#[inline(always)]
pub fn to_us<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let [kind, code] = packet.sport.0.to_ne_bytes();
    let is_error = if F::V6 { matches!(kind, 1..=4) } else { kind == 3 || kind == 11 || kind == 12 };
    let address = VipKey { addr: packet.dst, port: Be16(0), protocol: F::ICMP, pad: 0 };
    match F::vip(&address) {
        Some(vip) if vip.kind == Vip::SERVICE => {
            if kind == ECHO_REQUEST[F::V6 as usize] && code == 0 {
                return echo::<F>(ctx, packet, vip.service);
            }
            if is_error {
                return error_to_server::<F>(ctx, settings, packet, vip.service);
            }
            // Neighbour discovery and multicast listener messages are the kernel's (RFC 4861, RFC 3810).
            if F::V6 && matches!(kind, 130..=137 | 143) {
                return Verdict::pass(Outcome::NotOurs);
            }
            Verdict::drop(vip.service, Outcome::IcmpUnknown)
        }
        Some(_) if is_error => error_to_nat_source::<F>(ctx, packet),
        None if is_error && settings.flags & Settings::DNAT != 0 => error_from_dnat_server::<F>(ctx, settings, packet),
        _ => Verdict::pass(Outcome::NotOurs),
    }
}

/// Answers an echo request: type, addresses and checksums are changed in place (RFC 792, RFC 4443).
#[inline(never)]
fn echo<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, service: u16) -> Verdict {
    let (l3, l4) = (packet.l3 as usize, packet.l4 as usize);
    let request = u16::from_ne_bytes([ECHO_REQUEST[F::V6 as usize], 0]);
    let reply = u16::from_ne_bytes([ECHO_REPLY[F::V6 as usize], 0]);
    let Some(checksum) = frame::load::<u16>(ctx, l4 + 2) else {
        return Verdict::drop(service, Outcome::Internal);
    };
    // The pseudo header's sum does not change when source and destination change places. Zero is no checksum of zeros,
    // and an update never gives the other form, which is right for all else as well (RFC 1624, section 3).
    let checksum = match update(checksum, replace16(request, reply)) {
        0 => !0,
        checksum => checksum,
    };
    let done = frame::store(ctx, l4, [reply, checksum])
        && swap_macs(ctx, 0)
        && F::readdress(ctx, l3, packet.dst, packet.src)
        && renew_ttl::<F>(ctx, packet);
    if done { Verdict::answer(service, Outcome::EchoAnswered) } else { Verdict::drop(service, Outcome::Internal) }
}

#[inline(always)]
fn renew_ttl<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> bool {
    let l3 = packet.l3 as usize;
    if F::V6 {
        return frame::store(ctx, l3 + 7, OWN_TTL);
    }
    let Some(header) = frame::at::<Ip4>(ctx, l3) else {
        return false;
    };
    // SAFETY: `at` has checked the address.
    let ip = unsafe { &mut *header };
    let old = u16::from_ne_bytes(ip.ttl_protocol);
    ip.ttl_protocol[0] = OWN_TTL;
    ip.checksum = update(ip.checksum, replace16(old, u16::from_ne_bytes(ip.ttl_protocol)));
    true
}

/// Swaps the Ethernet addresses at the start, taking them from an offset.
#[inline(always)]
#[must_use]
pub fn swap_macs(ctx: &XdpContext, from: usize) -> bool {
    match frame::load::<[u16; 6]>(ctx, from) {
        Some(m) => frame::store(ctx, 0, [m[3], m[4], m[5], m[0], m[1], m[2]]),
        None => false,
    }
}

/// The packet that an ICMP error quotes: one that we, or a server for us, sent.
struct Quoted<A> {
    src: A,
    dst: A,
    sport: Be16,
    dport: Be16,
    protocol: u8,
    l3: u32,
    l4: u32,
}

/// An error's quote, and what the error becomes. In scratch memory, as it is too large for the stack.
#[repr(C)]
struct Work<A> {
    quoted: Quoted<A>,
    new: Rewritten<A>,
}

/// This CPU's scratch memory with the quote of an error filled in.
#[inline(always)]
fn work<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> Option<&'static mut Work<F::Addr>> {
    let work = maps::scratch::<Work<F::Addr>>()?;
    // SAFETY: this CPU's own memory, of which there is no other reference in this program.
    let work = unsafe { &mut *work };
    if read_quote::<F>(ctx, packet, &mut work.quoted) { Some(work) } else { None }
}

/// Reads the quoted packet: an address at a time, so that little is on the stack.
#[inline(never)]
fn read_quote<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, quoted: &mut Quoted<F::Addr>) -> bool {
    let l3 = packet.l4 as usize + Icmpv4Hdr::LEN;
    let l4;
    if F::V6 {
        let Some(header) = frame::at::<Ip6>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &*header };
        (quoted.src, quoted.dst) = (F::from_v6(ip.src), F::from_v6(ip.dst));
        quoted.protocol = ip.next;
        l4 = l3 + F::HEADER;
    } else {
        let Some(header) = frame::at::<Ip4>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        let ip = unsafe { &*header };
        if ip.fragment.get() & 0x1fff != 0 || ip.version_ihl < 0x45 {
            return false;
        }
        (quoted.src, quoted.dst) = (F::from_v4(ip.src), F::from_v4(ip.dst));
        quoted.protocol = ip.ttl_protocol[1];
        l4 = l3 + (ip.version_ihl & 15) as usize * 4;
    }
    (quoted.l3, quoted.l4) = (l3 as u32, l4 as u32);
    let Some([sport, dport]) = frame::load::<[Be16; 2]>(ctx, l4) else {
        return false;
    };
    (quoted.sport, quoted.dport) = (sport, dport);
    quoted.protocol == protocol::TCP || quoted.protocol == protocol::UDP
}

/// A router or the client complains about what a server sent: the server must hear it (path MTU above all).
#[inline(never)]
fn error_to_server<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    address_service: u16,
) -> Verdict {
    let unknown = Verdict::drop(address_service, Outcome::IcmpUnknown);
    let Some(work) = work::<F>(ctx, packet) else {
        return unknown;
    };
    let quoted = &work.quoted;
    let service_id = match classify::vip::<F>(settings, quoted.src, quoted.sport, quoted.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return unknown,
    };
    let Some(service) = maps::service(service_id) else {
        return unknown;
    };
    let new = &mut work.new;
    *new = Rewritten { outer_src: packet.src, outer_dst: packet.dst, inner: sent_as(quoted), changes: false };
    let (hash, backend_id);
    if service.mode == mode::NAT {
        let key = tuple(quoted);
        let Some(found) = F::translation(&key) else {
            return unknown;
        };
        // SAFETY: conntrack values live until a grace period after their removal.
        let flow = unsafe { &*found };
        *new = Rewritten {
            outer_src: flow.src,
            outer_dst: flow.dst,
            inner: Rewrite { src: flow.dst, dst: flow.src, sport: flow.dport, dport: flow.sport },
            changes: true,
        };
        (hash, backend_id) = (forward::nat_hash(flow.sport), flow.backend);
    } else {
        hash = F::hash(settings.seed, quoted.dst, quoted.src, quoted.dport, quoted.sport, quoted.protocol);
        let slot_hash = if service.has(Service::CLIENT_AFFINITY) {
            F::client_hash(settings.seed, quoted.dst, service_id)
        } else {
            hash
        };
        let found = affinity::find(settings, hash);
        backend_id = if found.is_some() {
            found.entry.backend()
        } else {
            match admit::ring_slot(service, slot_hash) {
                Some(id) => id,
                None => return unknown,
            }
        };
    }
    let Some(backend) = maps::backend(backend_id) else {
        return unknown;
    };
    if service.mode == mode::DNAT && !backend.has(Backend::LOCAL) {
        let server = F::addr(&backend.addr);
        new.outer_dst = server;
        new.inner.src = server;
        if backend.port.0 != 0 {
            new.inner.sport = backend.port;
        }
        new.changes = true;
    }
    let path_id = forward::path_of(backend, hash);
    let Some(path) = maps::path(path_id) else {
        return Verdict::drop(service_id, Outcome::NoPath);
    };
    if let Some(verdict) = forward::unanswered_obstacle(packet, service_id, path.ifindex, path.mtu) {
        return verdict;
    }
    if !translate::<F>(ctx, packet, work) {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    maps::count_to_server(backend_id, packet.length);
    forward::by_path::<F>(ctx, packet, service_id, path_id, hash, Outcome::IcmpForwarded)
}

/// The server, or a router on the way to it, complains about what `nat` sent: the client must hear it.
#[inline(never)]
fn error_to_nat_source<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> Verdict {
    let Some(work) = work::<F>(ctx, packet) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    let key = tuple(&work.quoted);
    let Some(found) = F::translation(&key) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    // SAFETY: conntrack values live until a grace period after their removal.
    let flow = unsafe { &*found };
    if flow.flags & SAMPLED != 0 && is_unreachable::<F>(packet) {
        observe::unreachable(Key::Nat(flow.backend, work.quoted.sport), work.quoted.protocol);
    }
    work.new = Rewritten {
        outer_src: flow.src,
        outer_dst: flow.dst,
        inner: Rewrite { src: flow.dst, dst: flow.src, sport: flow.dport, dport: flow.sport },
        changes: true,
    };
    error_to_client::<F>(ctx, packet, work, flow.service, &flow.last_hop)
}

/// The server, or a router on the way to it, complains to the client itself about what `dnat` sent on: what it quotes
/// must look again as the client sent it.
#[inline(never)]
fn error_from_dnat_server<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let pass = Verdict::pass(Outcome::NotOurs);
    let Some(work) = work::<F>(ctx, packet) else {
        return pass;
    };
    let quoted = &work.quoted;
    let Some(reply) = classify::reply::<F>(quoted.dst, quoted.dport, quoted.protocol) else {
        return pass;
    };
    let vip = F::addr(&reply.vip);
    let vip_port = if reply.port.0 == 0 { quoted.dport } else { reply.port };
    let hash = F::hash(settings.seed, quoted.src, vip, quoted.sport, vip_port, quoted.protocol);
    if !affinity::find(settings, hash).is_some() {
        return pass;
    }
    if is_sampled(hash, reply.sample_mask) && is_unreachable::<F>(packet) {
        observe::unreachable(Key::of(hash, reply.sample_mask), quoted.protocol);
    }
    let Some(hop) = F::last_hop(&packet.dst) else {
        return Verdict::drop(reply.service, Outcome::NoReturnPath);
    };
    work.new = Rewritten {
        outer_src: vip,
        outer_dst: packet.dst,
        inner: Rewrite { src: quoted.src, dst: vip, sport: quoted.sport, dport: vip_port },
        changes: true,
    };
    error_to_client::<F>(ctx, packet, work, reply.service, hop)
}

/// Whether an ICMP error says that nobody gets what was sent, rather than that it should be sent in another way.
#[inline(always)]
fn is_unreachable<F: Family>(packet: &Packet<F::Addr>) -> bool {
    let [kind, code] = packet.sport.0.to_ne_bytes();
    if F::V6 { kind == 1 } else { kind == 3 && code != 4 }
}

#[inline(always)]
fn error_to_client<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    work: &Work<F::Addr>,
    service: u16,
    hop: &LastHop,
) -> Verdict {
    if let Some(verdict) = forward::unanswered_obstacle(packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    if !translate::<F>(ctx, packet, work) {
        return Verdict::drop(service, Outcome::Internal);
    }
    forward::to_client::<F>(ctx, packet, service, hop, Outcome::IcmpForwarded)
}

/// The tuple of the flow's other direction, which is how a map knows it.
#[inline(always)]
fn tuple<A: Copy>(quoted: &Quoted<A>) -> Tuple<A> {
    Tuple {
        src: quoted.dst,
        dst: quoted.src,
        sport: quoted.dport,
        dport: quoted.sport,
        protocol: quoted.protocol,
        pad: [0; 3],
    }
}

#[inline(always)]
fn sent_as<A: Copy>(quoted: &Quoted<A>) -> Rewrite<A> {
    Rewrite { src: quoted.src, dst: quoted.dst, sport: quoted.sport, dport: quoted.dport }
}

/// What an ICMP error becomes.
struct Rewritten<A> {
    outer_src: A,
    outer_dst: A,
    inner: Rewrite<A>,
    /// Anything but the time to live changes.
    changes: bool,
}

/// Rewrites an ICMP error: outer and quoted addresses, quoted ports, checksums. The quoted transport checksum stays, as
/// it is usually cut off and nobody verifies it.
#[inline(always)]
fn translate<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, work: &Work<F::Addr>) -> bool {
    if !F::spend_ttl(ctx, packet.l3 as usize) {
        return false;
    }
    if !work.new.changes {
        return true;
    }
    let mut difference = ports_difference(work);
    if F::V6 {
        // The pseudo header covers the outer addresses, the message the quoted ones. In IPv4 there is no pseudo header,
        // and the quoted header's own checksum takes up the change of its addresses.
        difference += address_difference::<F>(&packet.src, &work.new.outer_src)
            + address_difference::<F>(&packet.dst, &work.new.outer_dst)
            + address_difference::<F>(&work.quoted.src, &work.new.inner.src)
            + address_difference::<F>(&work.quoted.dst, &work.new.inner.dst);
    }
    let at = packet.l4 as usize + 2;
    let Some(checksum) = frame::load::<u16>(ctx, at) else {
        return false;
    };
    frame::store(ctx, at, update(checksum, difference))
        && readdress::<F>(ctx, packet.l3 as usize, &work.new.outer_src, &work.new.outer_dst)
        && readdress::<F>(ctx, work.quoted.l3 as usize, &work.new.inner.src, &work.new.inner.dst)
        && frame::store(ctx, work.quoted.l4 as usize, [work.new.inner.sport, work.new.inner.dport])
}

#[inline(always)]
fn ports_difference<A>(work: &Work<A>) -> u64 {
    replace16(work.quoted.sport.0, work.new.inner.sport.0) + replace16(work.quoted.dport.0, work.new.inner.dport.0)
}

/// Not inlined, for the same reason as [`readdress`].
#[inline(never)]
fn address_difference<F: Family>(old: &F::Addr, new: &F::Addr) -> u64 {
    F::replace(*old, *new)
}

/// Not inlined, so that not all addresses are on the stack at once.
#[inline(never)]
fn readdress<F: Family>(ctx: &XdpContext, l3: usize, src: &F::Addr, dst: &F::Addr) -> bool {
    F::readdress(ctx, l3, *src, *dst)
}

/// Answers a packet with an ICMP error.
#[inline(always)]
pub fn answer<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, service: u16, answer: Answer) -> Verdict {
    let outcome = match answer {
        Answer::TimeExceeded => Outcome::TtlAnswered,
        Answer::TooBig(_) => Outcome::TooBigAnswered,
    };
    let kind = u16::from_ne_bytes(answer.kind::<F>());
    let word = match answer {
        // In ICMPv6 the MTU takes the whole word, in ICMP its lower half (RFC 1191).
        Answer::TooBig(mtu) => mtu,
        Answer::TimeExceeded => 0,
    };
    if error::<F>(ctx, packet, kind, word) {
        Verdict::answer(service, outcome)
    } else {
        Verdict::drop(service, Outcome::Internal)
    }
}

/// Turns the frame into an ICMP error that quotes it.
#[inline(never)]
pub fn error<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, kind: u16, mtu: u16) -> bool {
    let l3 = packet.l3 as usize & 31;
    let header = F::HEADER + Icmpv4Hdr::LEN;
    let quote = if packet.length as usize >= LONG_QUOTE && frame::start(ctx) + l3 + LONG_QUOTE <= frame::end(ctx) {
        LONG_QUOTE
    } else if F::V6 {
        F::HEADER + 8
    } else {
        ((packet.l4 - packet.l3) as usize & 63) + 8
    };
    if !frame::cut_to(ctx, l3 + quote, frame::length(ctx)) || !frame::grow_head(ctx, header as i32) {
        return false;
    }
    if !swap_macs(ctx, header) || !move_link_rest(ctx, header, l3) {
        return false;
    }
    let word = [Be16(0), Be16::new(mtu)];
    let quoted = if quote == LONG_QUOTE {
        frame::sum_long_quote(ctx, l3 + header)
    } else {
        sum_short_quote(ctx, l3 + header, quote)
    };
    let Some(quoted) = quoted else {
        return false;
    };
    let message = quoted + kind as u64 + word[1].0 as u64;
    let length = header + quote;
    write_ip::<F>(ctx, packet, length, F::ICMP)
        && frame::store(
            ctx,
            l3 + F::HEADER,
            [kind, finish(message + pseudo::<F>(packet, length - F::HEADER)), word[0].0, word[1].0],
        )
}

/// Moves what follows the Ethernet addresses to the new start of the frame.
#[inline(always)]
fn move_link_rest(ctx: &XdpContext, by: usize, l3: usize) -> bool {
    let mut at = EthHdr::LEN - 2;
    while at < 22 {
        if at >= l3 {
            break;
        }
        match frame::load::<u16>(ctx, at + by) {
            Some(pair) => {
                if !frame::store(ctx, at, pair) {
                    return false;
                }
            }
            None => return false,
        }
        at += 2;
    }
    true
}

/// Sum of a quote that holds a header with options and eight bytes, at most.
#[inline(always)]
fn sum_short_quote(ctx: &XdpContext, from: usize, length: usize) -> Option<u64> {
    let mut sum = 0u64;
    let mut at = 0;
    while at < 68 {
        if at >= length {
            break;
        }
        sum += frame::load::<u16>(ctx, from + at)? as u64;
        at += 2;
    }
    Some(sum)
}

/// ICMPv6 covers a pseudo header (RFC 8200, section 8.1), ICMP does not.
#[inline(always)]
fn pseudo<F: Family>(packet: &Packet<F::Addr>, length: usize) -> u64 {
    if F::V6 { address_sum::<F>(packet) + Be16::new(length as u16).0 as u64 + protocol_word(F::ICMP) } else { 0 }
}

/// A protocol number as it lies in a pseudo header.
#[inline(always)]
pub fn protocol_word(protocol: u8) -> u64 {
    u16::from_ne_bytes([0, protocol]) as u64
}

/// Sum of a packet's addresses.
#[inline(always)]
pub fn address_sum<F: Family>(packet: &Packet<F::Addr>) -> u64 {
    F::sum(packet.src) + F::sum(packet.dst)
}

/// Writes an IP header from the packet's destination to its source.
#[inline(never)]
#[must_use]
pub fn write_ip<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, length: usize, protocol: u8) -> bool {
    let l3 = packet.l3 as usize;
    if F::V6 {
        let Some(header) = frame::at::<Ip6>(ctx, l3) else {
            return false;
        };
        // SAFETY: `at` has checked the address.
        let header = unsafe { &mut *header };
        header.head = (6u32 << 28).to_be();
        header.length = Be16::new((length - F::HEADER) as u16);
        header.next = protocol;
        header.hop_limit = OWN_TTL;
        header.src = F::to_v6(packet.dst);
        header.dst = F::to_v6(packet.src);
        return true;
    }
    let Some(header) = frame::at::<Ip4>(ctx, l3) else {
        return false;
    };
    // SAFETY: `at` has checked the address.
    let header = unsafe { &mut *header };
    let sum = u16::from_ne_bytes([0x45, 0]) as u64
        + Be16::new(length as u16).0 as u64
        + Be16::new(DONT_FRAGMENT4).0 as u64
        + u16::from_ne_bytes([OWN_TTL, protocol]) as u64
        + address_sum::<F>(packet);
    header.version_ihl = 0x45;
    header.tos = 0;
    header.length = Be16::new(length as u16);
    header.id = 0;
    header.fragment = Be16::new(DONT_FRAGMENT4);
    header.ttl_protocol = [OWN_TTL, protocol];
    header.checksum = finish(sum);
    header.src = F::to_v4(packet.dst);
    header.dst = F::to_v4(packet.src);
    true
}
