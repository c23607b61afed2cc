//! Exact tracking of flows, for `nat`: opening, reclaiming and ageing the two entries of each.

use aya_ebpf::bindings::xdp_md;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::conntrack::{SAMPLED, TO_CLIENT, TO_SERVER, Translation, Tuple};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Be16, protocol};
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::Service;
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::is_sampled;

use crate::clock;
use crate::maps::{self, Live};
use crate::packed::Pair;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ingress::{self, from_prober};
use crate::packet::ipv4::V4;
use crate::packet::ipv6::V6;
use crate::packet::last_hop::last_hop;
use crate::packet::parse::Packet;
use crate::packet::tcp_timestamp;

/// Ports that are tried for a new flow before it is given up.
const PORT_ATTEMPTS: u32 = 16;
/// So many of them leave connections that have ended their time to rest; then those give way. The server takes the port
/// again at once, because timestamps go on (see [`tcp_timestamp`]).
const PATIENT_ATTEMPTS: u32 = 8;

/// The entry of a packet's tuple, which stays in scratch memory: both the stack's size and opening a flow ask for that.
#[inline(always)]
pub fn find<F: Family>(packet: &Packet<F::Addr>) -> Option<Live<Translation<F::Addr>>> {
    let key = &mut opening::<F>()?.key;
    (key.src, key.dst, key.sport, key.dport) = (packet.src, packet.dst, packet.sport, packet.dport);
    (key.protocol, key.pad) = (packet.protocol, [0; 3]);
    maps::flow(key)
}

/// The entry of the tuple in scratch memory, once it is opened.
#[inline(always)]
pub fn opened<F: Family>() -> Option<Live<Translation<F::Addr>>> {
    maps::flow(&opening::<F>()?.key)
}

/// Removes the entry of the tuple in scratch memory.
#[inline(always)]
pub fn remove<F: Family>() {
    if let Some(opening) = opening::<F>() {
        maps::remove_flow(&opening.key);
    }
}

/// This CPU's scratch memory for a flow that is being opened.
#[inline(always)]
fn opening<F: Family>() -> Option<&'static mut Opening<F::Addr>> {
    // SAFETY: each function here takes it anew, and is done with it when it calls the next.
    unsafe { maps::scratch() }
}

/// See [`Translation::reverse_key`]; written field by field, as there is little stack.
#[inline(always)]
fn reverse<A: Copy>(key: &mut Tuple<A>, of: &Translation<A>, protocol: u8) {
    (key.src, key.dst, key.sport, key.dport) = (of.dst, of.src, of.dport, of.sport);
    (key.protocol, key.pad) = (protocol, [0; 3]);
}

/// Ends the old flow of the tuple in scratch memory, if there is one, and gives the hash by which a server is chosen for the
/// new one.
///
/// This and what follows are exported functions: the verifier checks each once by itself, and their stacks do not add up.
#[inline(always)]
pub fn begin<F: Family>(service_id: u16) -> u64 {
    if F::V6 { nat_begin6(service_id as u32) } else { nat_begin4(service_id as u32) }
}

/// Opens the flow whose tuple is in scratch memory at a server: a source port and both entries. False: no port is free.
#[inline(always)]
pub fn open<F: Family>(frame: &Frame, packet: &Packet<F::Addr>, service_id: u16, backend: u16) -> bool {
    let service_backend = Pair(service_id, backend).to_bits();
    let l4_l3 = Pair(packet.l4, packet.l3).to_bits();
    let ctx = frame.context();
    let opened = if F::V6 { nat_open6(ctx, service_backend, l4_l3) } else { nat_open4(ctx, service_backend, l4_l3) };
    let (mut attempt, mut taken) = (0, 0);
    while opened != 0 && taken == 0 && attempt < PORT_ATTEMPTS {
        taken = if F::V6 { nat_take_port6(service_backend, attempt) } else { nat_take_port4(service_backend, attempt) };
        attempt += 1;
    }
    taken != 0
}

/// Starts a flow, whose tuple is in scratch memory, that stays as its client sends it. It needs no port, and no entry
/// for replies: those find the client as the responder's in other modes do.
#[inline(always)]
pub fn keep<F: Family>(service_id: u16, backend: u16) -> bool {
    let service_backend = Pair(service_id, backend).to_bits();
    (if F::V6 { nat_keep6(service_backend) } else { nat_keep4(service_backend) }) != 0
}

/// See [`begin`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin4(service: u32) -> u64 {
    end_old::<V4>(service as u16)
}

/// See [`begin`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin6(service: u32) -> u64 {
    end_old::<V6>(service as u16)
}

#[inline(always)]
fn end_old<F: Family>(service_id: u16) -> u64 {
    let (Some(opening), Some(settings), Some(service)) = (opening::<F>(), maps::settings(), maps::service(service_id))
    else {
        return 0;
    };
    if let Some(old) = maps::flow(&opening.key) {
        opening.old_key = opening.key;
        close::<F>(opening, old.get());
    }
    let key = &opening.key;
    if service.has(Service::CLIENT_AFFINITY) {
        return F::client_hash(settings.seed, key.src, service_id);
    }
    F::hash(settings.seed, key.src, key.dst, key.sport, key.dport, key.protocol)
}

/// See [`open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_open4(ctx: &xdp_md, service_backend: u32, l4_l3: u32) -> u32 {
    fill::<V4>(Frame::of(ctx), service_backend, l4_l3) as u32
}

/// See [`open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_open6(ctx: &xdp_md, service_backend: u32, l4_l3: u32) -> u32 {
    fill::<V6>(Frame::of(ctx), service_backend, l4_l3) as u32
}

#[inline(always)]
fn fill<F: Family>(frame: &Frame, service_backend: u32, l4_l3: u32) -> bool {
    let (Pair(service_id, backend_id), Pair(l4, l3)) = (Pair::from_bits(service_backend), Pair::from_bits(l4_l3));
    let (Some(opening), Some(settings), Some(backend), Some(hop)) =
        (opening::<F>(), maps::settings(), maps::backend(backend_id), last_hop(frame, l3))
    else {
        return false;
    };
    fill_both::<F>(opening, backend, clock::now(), &hop);
    if from_prober(frame, settings) {
        if ingress::is_released() {
            ingress::restore_ingress(frame, &mut opening.reply.last_hop);
        } else {
            // It is no active flow, and gives its port up first.
            opening.forward.state = state::TCP_CLOSED as u32;
        }
    }
    (opening.forward.service, opening.forward.backend) = (service_id, backend_id);
    (opening.reply.service, opening.reply.backend) = (service_id, backend_id);
    let timestamps = if opening.key.protocol == protocol::TCP { tcp_timestamp::offset(frame, l4) } else { 0 };
    (opening.forward.timestamps, opening.reply.timestamps) = (timestamps, timestamps);
    true
}

/// See [`keep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_keep4(service_backend: u32) -> u32 {
    insert_kept::<V4>(service_backend) as u32
}

/// See [`keep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_keep6(service_backend: u32) -> u32 {
    insert_kept::<V6>(service_backend) as u32
}

#[inline(always)]
fn insert_kept<F: Family>(service_backend: u32) -> bool {
    let Some(opening) = opening::<F>() else {
        return false;
    };
    let (key, forward) = (&opening.key, &mut opening.forward);
    (forward.src, forward.dst, forward.sport, forward.dport) = (key.src, key.dst, key.sport, key.dport);
    Pair(forward.service, forward.backend) = Pair::from_bits(service_backend);
    (forward.time, forward.state) = (clock::now(), state::TCP_SYN as u32);
    (forward.direction, forward.flags, forward.timestamps) = (TO_SERVER, 0, 0);
    forward.last_hop = LastHop { ifindex: 0, macs: [0; 6], tags: [0; 2], mtu: 0, outer_tag: 0 };
    maps::insert_flow(key, forward)
}

/// The next source port to try. Ports are taken in turn, so that each rests as long as possible, but from a secret start
/// of the backend's own and in strides of the golden ratio, so that the next one is not simply one more (RFC 6056). If
/// that one is taken, others are tried at random: another backend with the same address may be walking the same way. Those that
/// give way in need are again taken in turn, as the server may still wait for the last segment of one that has just ended.
#[inline(always)]
fn port(settings: &Settings, service: &Service, backend: u16, attempt: u32) -> u32 {
    let ports = (service.nat_port_last - service.nat_port_first) as u32 + 1;
    let own = hash::mix(settings.seed ^ backend as u64);
    let number = maps::next_port_number(backend);
    let place = if attempt == 0 || attempt >= PATIENT_ATTEMPTS {
        own.wrapping_add(number.wrapping_mul(0x9e37_79b9) << 32)
    } else {
        hash::mix(own ^ number)
    };
    service.nat_port_first as u32 + hash::scale(place, ports)
}

/// What both entries hold beside service, backend and source port.
#[inline(never)]
fn fill_both<F: Family>(opening: &mut Opening<F::Addr>, backend: &Backend, now: u32, hop: &LastHop) -> u32 {
    let key = &opening.key;
    let forward = &mut opening.forward;
    forward.src = F::addr(&backend.source);
    forward.dst = F::addr(&backend.addr);
    forward.dport = if backend.port.0 == 0 { key.dport } else { backend.port };
    forward.time = now;
    forward.state = if key.protocol == protocol::TCP { state::TCP_SYN } else { state::UDP } as u32;
    forward.direction = TO_SERVER;
    forward.last_hop = LastHop { ifindex: 0, macs: [0; 6], tags: [0; 2], mtu: 0, outer_tag: 0 };
    let reply = &mut opening.reply;
    (reply.src, reply.dst, reply.sport, reply.dport) = (key.dst, key.src, key.dport, key.sport);
    reply.time = now;
    reply.state = 0;
    reply.direction = TO_CLIENT;
    reply.last_hop = *hop;
    0
}

/// The entries of a flow that is being opened. They are too large for the stack.
#[repr(C)]
#[derive(Clone, Copy)]
struct Opening<A> {
    key: Tuple<A>,
    reply_key: Tuple<A>,
    /// Both keys of an older flow that gives way.
    old_key: Tuple<A>,
    old_reply_key: Tuple<A>,
    forward: Translation<A>,
    reply: Translation<A>,
}

/// Takes a source port for the flow in the scratch memory, if it is free: the entry for replies, which must be new, is
/// what owns it. Exported so that the verifier does not walk it once per attempt.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_take_port4(service_backend: u32, attempt: u32) -> u32 {
    take_port::<V4>(service_backend, attempt) as u32
}

/// See [`nat_take_port4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_take_port6(service_backend: u32, attempt: u32) -> u32 {
    take_port::<V6>(service_backend, attempt) as u32
}

#[inline(always)]
fn take_port<F: Family>(service_backend: u32, attempt: u32) -> bool {
    let Pair(service_id, backend) = Pair::from_bits(service_backend);
    let (Some(opening), Some(settings), Some(service)) = (opening::<F>(), maps::settings(), maps::service(service_id))
    else {
        return false;
    };
    let port = port(settings, service, backend, attempt) as u16;
    opening.forward.sport = Be16::new(port);
    let hash = hash::nat_flow(settings.seed, backend, opening.forward.sport, opening.key.protocol);
    let is_probe = opening.forward.state == state::TCP_CLOSED as u32;
    let flags = if is_sampled(hash, service.sample_mask) && !is_probe { SAMPLED } else { 0 };
    (opening.forward.flags, opening.reply.flags) = (flags, flags);
    reverse(&mut opening.reply_key, &opening.forward, opening.key.protocol);
    let mut owned = maps::insert_new_flow(&opening.reply_key, &opening.reply);
    if !owned && reclaim::<F>(settings, opening, attempt >= PATIENT_ATTEMPTS) {
        owned = maps::insert_new_flow(&opening.reply_key, &opening.reply);
    }
    owned && maps::insert_flow(&opening.key, &opening.forward)
}

/// Frees the wanted port if its flow has been idle for longer than its state allows, or if it has ended and there is need.
#[inline(always)]
fn reclaim<F: Family>(settings: &Settings, opening: &mut Opening<F::Addr>, need: bool) -> bool {
    let Some(reply) = maps::flow(&opening.reply_key) else {
        return true;
    };
    let now = opening.forward.time;
    let reply = reply.get();
    reverse(&mut opening.old_key, reply, opening.reply_key.protocol);
    if let Some(forward) = maps::flow(&opening.old_key) {
        let forward = forward.get();
        // The client may have a newer flow with another port: then this one is over.
        if forward.sport == opening.reply_key.dport && forward.dst == opening.reply_key.src {
            let idle = core::cmp::min(now.wrapping_sub(forward.time), now.wrapping_sub(reply.time));
            let has_ended = forward.state as u8 == state::TCP_CLOSED;
            if idle <= settings.timeouts[forward.state as usize & 7] as u32 && !(need && has_ended) {
                return false;
            }
            close::<F>(opening, forward);
            return true;
        }
    }
    maps::remove_flow(&opening.reply_key);
    true
}

/// Removes both entries of the flow with the old key.
#[inline(always)]
fn close<F: Family>(opening: &mut Opening<F::Addr>, forward: &Translation<F::Addr>) {
    reverse(&mut opening.old_reply_key, forward, opening.old_key.protocol);
    let (backend, was_active) = (forward.backend, state::is_active(forward.state as u8));
    let key = &opening.old_key;
    if let Some(reply) = maps::flow(&opening.old_reply_key)
        && answers(reply.get(), key.src, key.sport, key.dst, key.dport)
    {
        maps::remove_flow(&opening.old_reply_key);
    }
    maps::remove_flow(&opening.old_key);
    if was_active {
        maps::release(backend);
    }
}

/// Whether a reply entry is that of a client's flow, and not of one that took the port after the kernel evicted it.
#[inline(always)]
fn answers<A: PartialEq>(reply: &Translation<A>, src: A, sport: Be16, dst: A, dport: Be16) -> bool {
    reply.dst == src && reply.dport == sport && reply.src == dst && reply.sport == dport
}

/// Moves a flow to another state; whoever ends it counts it off.
#[inline(always)]
pub fn change_state<A: 'static>(flow: Live<Translation<A>>, next: u8) {
    let old = flow.state().load();
    let backend = flow.get().backend;
    if flow.state().compare_exchange(old, next as u32) && state::is_active(old as u8) && !state::is_active(next) {
        maps::release(backend);
    }
}

/// Once a tick: the time, the way back, and the other direction's entry, which the kernel would otherwise evict as
/// unused when packets flow one way only. Not zero if it was evicted and another flow has taken the port.
#[inline(never)]
pub fn refresh<F: Family>(frame: &Frame, packet: &Packet<F::Addr>, flow: Live<Translation<F::Addr>>, now: u32) -> u32 {
    flow.time().store(now);
    let current = flow.get();
    let (Some(scratch), Some(hop)) = (opening::<F>(), last_hop(frame, packet.l3)) else {
        return 0;
    };
    scratch.reply_key = current.reverse_key(packet.protocol);
    match maps::flow(&scratch.reply_key) {
        Some(reply) => {
            let known = reply.get();
            if !answers(known, packet.src, packet.sport, packet.dst, packet.dport) {
                return 1;
            }
            if known.last_hop != hop {
                reply.set_last_hop(&hop);
            }
        }
        None => {
            // The kernel evicted it. What it held follows from the packet and the other entry.
            let reply = &mut scratch.reply;
            (reply.src, reply.dst) = (packet.dst, packet.src);
            (reply.sport, reply.dport) = (packet.dport, packet.sport);
            (reply.service, reply.backend) = (current.service, current.backend);
            (reply.time, reply.state) = (now, 0);
            (reply.direction, reply.flags) = (TO_CLIENT, current.flags);
            reply.timestamps = current.timestamps;
            reply.last_hop = hop;
            // If it fails, another CPU has just done it, or the map is full of younger entries.
            maps::insert_new_flow(&scratch.reply_key, &scratch.reply);
        }
    }
    0
}

/// A reply's effect on its flow: time once a tick, the state when a side ends the connection.
#[inline(never)]
pub fn reply_seen<F: Family>(packet: &Packet<F::Addr>, reply: Live<Translation<F::Addr>>, now: u32) -> u32 {
    reply.time().store(now);
    let forward_key = reply.get().reverse_key(packet.protocol);
    if let Some(forward) = maps::flow(&forward_key)
        && packet.is_tcp()
    {
        let old = forward.get().state as u8;
        let next = state::after_tcp(old, packet.tcp_flags, false);
        if next != old {
            change_state(forward, next);
        }
    }
    0
}
