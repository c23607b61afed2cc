//! ICMP and ICMPv6: echo to a VIP, and errors about our flows.

use loadbalancer_common::backend::Backend;
use loadbalancer_common::checksum::{replace16, update};
use loadbalancer_common::conntrack::{SAMPLED, Tuple};
use loadbalancer_common::net::{Be16, protocol};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::{Service, Vip, VipKey, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::is_sampled;
use network_types::icmp::Icmpv4Hdr;

use crate::egress::forward;
use crate::egress::reply;
use crate::flow::affinity;
use crate::maps;
use crate::observe::{self, Key};
use crate::packet::cursor::Frame;
use crate::packet::family::{Family, Rewrite};
use crate::packet::parse::Packet;
use crate::select::admit;
use crate::select::classify;
use crate::verdict::Verdict;

/// An ICMP message to an address of ours, or about a flow of ours.
#[inline(always)]
pub fn handle<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let [kind, code] = packet.sport.0.to_ne_bytes();
    let is_error = if F::V6 { matches!(kind, 1..=4) } else { kind == 3 || kind == 11 || kind == 12 };
    let address = VipKey { addr: packet.dst, port: Be16(0), protocol: F::ICMP, pad: 0 };
    match maps::vip(&address) {
        Some(vip) if vip.kind == Vip::SERVICE => {
            if kind == reply::ECHO_REQUEST[F::V6 as usize] && code == 0 {
                return reply::echo::<F>(frame, packet, vip.service);
            }
            if is_error {
                return error_to_server::<F>(frame, settings, packet, vip.service);
            }
            // Neighbour discovery and multicast listener messages are the kernel's (RFC 4861, RFC 3810).
            if F::V6 && matches!(kind, 130..=137 | 143) {
                return Verdict::pass(Outcome::NotOurs);
            }
            Verdict::drop(vip.service, Outcome::IcmpUnknown)
        }
        Some(_) if is_error => error_to_nat_source::<F>(frame, packet),
        None if is_error && settings.flags & Settings::DNAT != 0 => {
            error_from_dnat_server::<F>(frame, settings, packet)
        }
        _ => Verdict::pass(Outcome::NotOurs),
    }
}

/// The packet that an ICMP error quotes: one that we, or a server for us, sent.
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
struct Work<A> {
    quoted: Quoted<A>,
    new: Rewritten<A>,
}

/// This CPU's scratch memory with the quote of an error filled in.
#[inline(always)]
fn work<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Option<&'static mut Work<F::Addr>> {
    // SAFETY: a program that handles an error has no other use for it, and asks once.
    let work = unsafe { maps::scratch::<Work<F::Addr>>()? };
    if read_quote::<F>(frame, packet, &mut work.quoted) { Some(work) } else { None }
}

/// Reads the quoted packet: an address at a time, so that little is on the stack.
#[inline(never)]
fn read_quote<F: Family>(frame: &Frame, packet: &Packet<F::Addr>, quoted: &mut Quoted<F::Addr>) -> bool {
    let l3 = packet.l4 as usize + Icmpv4Hdr::LEN;
    let Some((src, dst, protocol, l4)) = F::quoted(frame, l3) else {
        return false;
    };
    (quoted.src, quoted.dst, quoted.protocol) = (src, dst, protocol);
    (quoted.l3, quoted.l4) = (l3 as u32, l4 as u32);
    let Some([sport, dport]) = frame.load::<[Be16; 2]>(l4) else {
        return false;
    };
    (quoted.sport, quoted.dport) = (sport, dport);
    quoted.protocol == protocol::TCP || quoted.protocol == protocol::UDP
}

/// A router or the client complains about what a server sent: the server must hear it (path MTU above all).
#[inline(never)]
fn error_to_server<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    address_service: u16,
) -> Verdict {
    let unknown = Verdict::drop(address_service, Outcome::IcmpUnknown);
    let Some(work) = work::<F>(frame, packet) else {
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
        let Some(found) = maps::flow(&key) else {
            return unknown;
        };
        let flow = found.get();
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
    if !translate::<F>(frame, packet, work) {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    maps::count_to_server(backend_id, packet.length);
    forward::by_path::<F>(frame, packet, service_id, path_id, hash, Outcome::IcmpForwarded)
}

/// The server, or a router on the way to it, complains about what `nat` sent: the client must hear it.
#[inline(never)]
fn error_to_nat_source<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Verdict {
    let Some(work) = work::<F>(frame, packet) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    let key = tuple(&work.quoted);
    let Some(found) = maps::flow(&key) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    let flow = found.get();
    if flow.flags & SAMPLED != 0 && is_unreachable::<F>(packet) {
        observe::unreachable(Key::Nat(flow.backend, work.quoted.sport), work.quoted.protocol);
    }
    work.new = Rewritten {
        outer_src: flow.src,
        outer_dst: flow.dst,
        inner: Rewrite { src: flow.dst, dst: flow.src, sport: flow.dport, dport: flow.sport },
        changes: true,
    };
    error_to_client::<F>(frame, packet, work, flow.service, &flow.last_hop)
}

/// The server, or a router on the way to it, complains to the client itself about what `dnat` sent on: what it quotes
/// must look again as the client sent it.
#[inline(never)]
fn error_from_dnat_server<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let pass = Verdict::pass(Outcome::NotOurs);
    let Some(work) = work::<F>(frame, packet) else {
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
    let Some(hop) = maps::last_hop(&packet.dst) else {
        return Verdict::drop(reply.service, Outcome::NoReturnPath);
    };
    work.new = Rewritten {
        outer_src: vip,
        outer_dst: packet.dst,
        inner: Rewrite { src: quoted.src, dst: vip, sport: quoted.sport, dport: vip_port },
        changes: true,
    };
    error_to_client::<F>(frame, packet, work, reply.service, hop)
}

/// Whether an ICMP error says that nobody gets what was sent, rather than that it should be sent in another way.
#[inline(always)]
fn is_unreachable<F: Family>(packet: &Packet<F::Addr>) -> bool {
    let [kind, code] = packet.sport.0.to_ne_bytes();
    if F::V6 { kind == 1 } else { kind == 3 && code != 4 }
}

#[inline(always)]
fn error_to_client<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    work: &Work<F::Addr>,
    service: u16,
    hop: &LastHop,
) -> Verdict {
    if let Some(verdict) = forward::unanswered_obstacle(packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    if !translate::<F>(frame, packet, work) {
        return Verdict::drop(service, Outcome::Internal);
    }
    forward::to_client::<F>(frame, packet, service, hop, Outcome::IcmpForwarded)
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
#[derive(Clone, Copy)]
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
fn translate<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, work: &Work<F::Addr>) -> bool {
    if !F::spend_ttl(frame, packet.l3 as usize) {
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
    let Some(checksum) = frame.view_mut::<u16>(packet.l4 as usize + 2) else {
        return false;
    };
    *checksum = update(*checksum, difference);
    readdress::<F>(frame, packet.l3 as usize, &work.new.outer_src, &work.new.outer_dst)
        && readdress::<F>(frame, work.quoted.l3 as usize, &work.new.inner.src, &work.new.inner.dst)
        && frame.store(work.quoted.l4 as usize, [work.new.inner.sport, work.new.inner.dport])
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
fn readdress<F: Family>(frame: &mut Frame, l3: usize, src: &F::Addr, dst: &F::Addr) -> bool {
    F::readdress(frame, l3, *src, *dst)
}
