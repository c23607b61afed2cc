//! `nat`: source and destination rewritten both ways, with exact tracking of each flow.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::conntrack::{SAMPLED, TO_CLIENT, TO_SERVER, Translation, Tuple};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::Service;
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::is_sampled;

use crate::admit::{self, Choice, Refusal};
use crate::dsr;
use crate::family::{Family, Rewrite, V4, V6, rewrite};
use crate::forward;
use crate::fragment;
use crate::maps;
use crate::observe::{self, Key, Replies};
use crate::parse::{self, Packet, Part};
use crate::probe;
use crate::queue;
use crate::refuse;
use crate::timestamp::{self, Number};
use crate::verdict::Verdict;

/// Ports that are tried for a new flow before it is given up.
const PORT_ATTEMPTS: u32 = 16;
/// So many of them leave connections that have ended their time to rest; then those give way. The server takes the port
/// again at once, because timestamps go on (see [`timestamp`]).
const PATIENT_ATTEMPTS: u32 = 8;

/// A packet's tuple, in scratch memory: both the stack's size and opening a flow ask for that.
#[inline(always)]
fn key_in_scratch<F: Family>(packet: &Packet<F::Addr>) -> Option<&'static Tuple<F::Addr>> {
    let scratch = maps::scratch::<Opening<F::Addr>>()?;
    // SAFETY: this CPU's own memory. The key stays as it is until the program ends.
    let key = unsafe { &mut (*scratch).key };
    (key.src, key.dst, key.sport, key.dport) = (packet.src, packet.dst, packet.sport, packet.dport);
    set_protocol(key, packet.protocol);
    Some(key)
}

/// Protocol and padding in one: the compiler would call a function to clear the padding, which takes stack.
#[inline(always)]
fn set_protocol<A>(key: &mut Tuple<A>, protocol: u8) {
    const { assert!(core::mem::offset_of!(Tuple<A>, pad) == core::mem::offset_of!(Tuple<A>, protocol) + 1) };
    // SAFETY: the protocol is followed by three bytes of padding, and aligned to four.
    unsafe { *(&raw mut key.protocol).cast::<u32>() = protocol as u32 };
}

/// See [`Translation::reverse_key`]; written field by field, as there is little stack.
#[inline(always)]
fn reverse<A: Copy>(key: &mut Tuple<A>, of: &Translation<A>, protocol: u8) {
    (key.src, key.dst, key.sport, key.dport) = (of.dst, of.src, of.dport, of.sport);
    set_protocol(key, protocol);
}

#[inline(always)]
pub fn to_server<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
) -> Verdict {
    let Some(tuple) = key_in_scratch::<F>(packet) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let mut known = F::translation(tuple);
    let mut is_known = known.is_some();
    if let Some(found) = known {
        // SAFETY: conntrack values live until a grace period after their removal.
        let translation = unsafe { &*found };
        let now = maps::now();
        if !goes_on(ctx, service, settings, packet, translation) {
            known = None;
        } else if translation.time != now && refresh::<F>(ctx, packet, found, now) != 0 {
            // Its port is another flow's by now.
            change_state(found, state::TCP_CLOSED);
            F::remove_translation(tuple);
            (known, is_known) = (None, false);
        }
    }
    let found = match known {
        Some(found) => found,
        None => {
            match start::<F>(ctx, settings, packet, service_id, service, is_known).get() {
                Ok(_) => {}
                Err(outcome) => return refuse::packet::<F>(ctx, packet, service_id, service, outcome),
            }
            match F::translation(tuple) {
                Some(found) => found,
                None => return Verdict::drop(service_id, Outcome::Internal),
            }
        }
    };
    forward_known::<F>(ctx, packet, service_id, found)
}

/// A flow that has waited, to the server that the controller has chosen, and counted as having it.
#[inline(always)]
pub fn released<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    backend: u16,
) -> Verdict {
    let Some(tuple) = key_in_scratch::<F>(packet) else {
        maps::release(backend);
        return Verdict::drop(service_id, Outcome::Internal);
    };
    if let Some(found) = F::translation(tuple) {
        // SAFETY: conntrack values live until a grace period after their removal.
        if goes_on(ctx, service, settings, packet, unsafe { &*found }) {
            // It went to a server on another way meanwhile.
            maps::release(backend);
            return forward_known::<F>(ctx, packet, service_id, found);
        }
    }
    let hash = if F::V6 { nat_begin6(service_id as u32) } else { nat_begin4(service_id as u32) };
    if maps::backend(backend).is_some_and(|backend| backend.has(Backend::LOCAL)) {
        let service_backend = (service_id as u32) << 16 | backend as u32;
        if (if F::V6 { nat_keep6(service_backend) } else { nat_keep4(service_backend) }) == 0 {
            maps::release(backend);
            return Verdict::drop(service_id, Outcome::Internal);
        }
        maps::count_flow(backend);
    } else {
        if service.has(Service::CLIENT_AFFINITY) {
            let now = maps::now() as u16 & TIME_MASK;
            dsr::affinity_note_client(hash, (backend as u32) << 16 | now as u32);
        }
        if let Err(outcome) = start_at::<F>(ctx, settings, packet, service_id, backend).get() {
            return Verdict::drop(service_id, outcome);
        }
    }
    match F::translation(tuple) {
        Some(found) => forward_known::<F>(ctx, packet, service_id, found),
        None => Verdict::drop(service_id, Outcome::Internal),
    }
}

/// Sends the packet of a flow with entries.
#[inline(always)]
fn forward_known<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service_id: u16,
    found: *mut Translation<F::Addr>,
) -> Verdict {
    // SAFETY: conntrack values live until a grace period after their removal; other CPUs change only state and time, each a word.
    let translation = unsafe { &*found };
    let mut next = translation.state as u8;
    if packet.is_tcp() {
        next = state::after_tcp(next, packet.tcp_flags, true);
    }
    if next as u32 != translation.state {
        change_state(found, next);
    }
    let backend_id = translation.backend;
    let Some(backend) = maps::backend(backend_id) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let path_id = forward::path_of(backend, forward::nat_hash(translation.sport));
    let Some(path) = maps::path(path_id) else {
        return Verdict::drop(service_id, Outcome::NoPath);
    };
    if let Some(verdict) = forward::obstacle::<F>(ctx, packet, service_id, path.ifindex, path.mtu) {
        return verdict;
    }
    if packet.part == Part::First {
        fragment::remember::<F>(packet, translation.src, translation.dst, service_id, backend_id, path_id, None);
    }
    if !rewrite::<F>(ctx, packet, &of(translation)) {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    timestamp::shift(ctx, packet.l4, Number::Value, translation.timestamps);
    maps::count_to_server(backend_id, packet.length);
    if translation.flags & SAMPLED != 0 {
        observe::client(ctx, packet, Key::Nat(backend_id, translation.sport), backend_id, path_id, Replies::All);
    }
    forward::by_path::<F>(ctx, packet, service_id, path_id, 0, Outcome::Forwarded)
}

/// A packet to an address that we use as source: the reply to a flow of ours, or the kernel's.
#[inline(always)]
pub fn to_client<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> Verdict {
    let Some(found) = key_in_scratch::<F>(packet).and_then(|tuple| F::translation(tuple)) else {
        return probe::perhaps_reply::<F>(ctx, packet);
    };
    // SAFETY: conntrack values live until a grace period after their removal.
    let translation = unsafe { &*found };
    // A service may be named like a server's address; only what goes to a client is a reply.
    if translation.direction != TO_CLIENT {
        return Verdict::pass(Outcome::NotOurs);
    }
    let now = maps::now();
    if translation.time != now || packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
        reply_seen::<F>(packet, found, now);
    }
    let service = translation.service;
    let hop = translation.last_hop;
    if let Some(verdict) = forward::obstacle::<F>(ctx, packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    if packet.part == Part::First {
        fragment::remember::<F>(
            packet,
            translation.src,
            translation.dst,
            service,
            translation.backend,
            0,
            Some(&translation.last_hop),
        );
    }
    if !rewrite::<F>(ctx, packet, &of(translation)) {
        return Verdict::drop(service, Outcome::Internal);
    }
    timestamp::shift(ctx, packet.l4, Number::Echo, translation.timestamps.wrapping_neg());
    maps::count_to_client(translation.backend, packet.length);
    if translation.flags & SAMPLED != 0 {
        observe::server(ctx, packet, Key::Nat(translation.backend, packet.dport));
    }
    forward::to_client::<F>(ctx, packet, service, &hop, Outcome::ReplyForwarded)
}

#[inline(always)]
fn of<A: Copy>(translation: &Translation<A>) -> Rewrite<A> {
    Rewrite { src: translation.src, dst: translation.dst, sport: translation.sport, dport: translation.dport }
}

/// Whether a packet of a known flow is part of it, rather than the first of a new one with the same tuple.
#[inline(always)]
fn goes_on<A>(
    ctx: &XdpContext,
    service: &Service,
    settings: &Settings,
    packet: &Packet<A>,
    translation: &Translation<A>,
) -> bool {
    let Some(backend) = maps::backend(translation.backend) else {
        return false;
    };
    let flow_state = translation.state as u8;
    if !packet.is_tcp() {
        // One that is over is a probe's: each of its datagrams goes where it is to go now.
        return backend.has(Backend::PRESENT) && !backend.has(Backend::DOWN) && !state::is_over(flow_state);
    }
    if packet.is_syn() {
        return !state::is_over(flow_state)
            && !backend.has(Backend::DOWN)
            && maps::now().wrapping_sub(translation.time) <= settings.timeouts[flow_state as usize & 7] as u32;
    }
    admit::keeps_flows(service, backend) || (backend.has(Backend::PRESENT) && probe::is_one(ctx, settings))
}

/// Starts a flow, whose tuple is in scratch memory: a server, then a source port and both entries.
///
/// The steps are exported functions: the verifier checks each once by itself, and their stacks do not add up.
#[inline(always)]
fn start<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    is_known: bool,
) -> Choice {
    if packet.is_tcp() && !packet.is_syn() {
        return Choice::refused(if is_known { Refusal::ServerGone } else { Refusal::UnknownFlow });
    }
    let hash = if F::V6 { nat_begin6(service_id as u32) } else { nat_begin4(service_id as u32) };
    let choice = if probe::is_one(ctx, settings) {
        probe::server(probe::word(packet), service_id)
    } else if admit::has_to_wait(service_id) {
        Choice::refused(Refusal::Full)
    } else if service.has(Service::CLIENT_AFFINITY) {
        let choice = Choice::from_word(dsr::affinity_client_server(hash, service_id as u32, maps::now()));
        if let Ok(backend) = choice.get() {
            let now = maps::now() as u16 & TIME_MASK;
            dsr::affinity_note_client(hash, (backend as u32) << 16 | now as u32);
        }
        choice
    } else {
        admit::new_flow(service_id, hash, NO_BACKEND)
    };
    match choice.get() {
        Ok(backend) => start_at::<F>(ctx, settings, packet, service_id, backend),
        Err(_) => choice,
    }
}

/// The same at a server that is chosen, and counts the flow as active unless it is a probe's.
#[inline(always)]
fn start_at<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    backend: u16,
) -> Choice {
    let is_flow = !probe::is_one(ctx, settings) || queue::is_released();
    let service_backend = (service_id as u32) << 16 | backend as u32;
    let l4_l3 = (packet.l4 as u32) << 16 | packet.l3 as u32;
    let opened =
        if F::V6 { nat_open6(ctx.ctx, service_backend, l4_l3) } else { nat_open4(ctx.ctx, service_backend, l4_l3) };
    let mut attempt = 0;
    while opened != 0 && attempt < PORT_ATTEMPTS {
        let taken =
            if F::V6 { nat_take_port6(service_backend, attempt) } else { nat_take_port4(service_backend, attempt) };
        if taken != 0 {
            if is_flow {
                maps::count_flow(backend);
            }
            return Choice::backend(backend);
        }
        attempt += 1;
    }
    if is_flow {
        maps::release(backend);
    }
    Choice::refused(Refusal::PortsExhausted)
}

/// See [`start`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin4(service: u32) -> u64 {
    begin::<V4>(service as u16)
}

/// See [`start`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_begin6(service: u32) -> u64 {
    begin::<V6>(service as u16)
}

/// Ends the old flow of the tuple, if there is one, and gives the hash by which a server is chosen for the new one.
#[inline(always)]
fn begin<F: Family>(service_id: u16) -> u64 {
    let (Some(scratch), Some(settings), Some(service)) =
        (maps::scratch::<Opening<F::Addr>>(), maps::settings(), maps::service(service_id))
    else {
        return 0;
    };
    // SAFETY: this CPU's own memory, in which the packet's tuple is.
    let opening = unsafe { &mut *scratch };
    if let Some(old) = F::translation(&opening.key) {
        opening.old_key = opening.key;
        // SAFETY: conntrack values live until a grace period after their removal.
        close::<F>(opening, unsafe { &*old });
    }
    let key = &opening.key;
    if service.has(Service::CLIENT_AFFINITY) {
        return F::client_hash(settings.seed, key.src, service_id);
    }
    F::hash(settings.seed, key.src, key.dst, key.sport, key.dport, key.protocol)
}

/// See [`start`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_open4(ctx: *mut xdp_md, service_backend: u32, l4_l3: u32) -> u32 {
    open::<V4>(&XdpContext::new(ctx), service_backend, l4_l3) as u32
}

/// See [`start`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_open6(ctx: *mut xdp_md, service_backend: u32, l4_l3: u32) -> u32 {
    open::<V6>(&XdpContext::new(ctx), service_backend, l4_l3) as u32
}

#[inline(always)]
fn open<F: Family>(ctx: &XdpContext, service_backend: u32, l4_l3: u32) -> bool {
    let (service_id, backend_id) = ((service_backend >> 16) as u16, service_backend as u16);
    let (Some(scratch), Some(settings), Some(backend), Some(hop)) = (
        maps::scratch::<Opening<F::Addr>>(),
        maps::settings(),
        maps::backend(backend_id),
        parse::last_hop(ctx, l4_l3 as u16),
    ) else {
        return false;
    };
    // SAFETY: this CPU's own memory, in which the packet's tuple is.
    let opening = unsafe { &mut *scratch };
    fill::<F>(opening, backend, maps::now(), &hop);
    if probe::is_one(ctx, settings) {
        if queue::is_released() {
            queue::correct(ctx, &mut opening.reply.last_hop);
        } else {
            // It is no active flow, and gives its port up first.
            opening.forward.state = state::TCP_CLOSED as u32;
        }
    }
    (opening.forward.service, opening.forward.backend) = (service_id, backend_id);
    (opening.reply.service, opening.reply.backend) = (service_id, backend_id);
    let timestamps =
        if opening.key.protocol == protocol::TCP { timestamp::offset(ctx, (l4_l3 >> 16) as u16) } else { 0 };
    (opening.forward.timestamps, opening.reply.timestamps) = (timestamps, timestamps);
    true
}

/// See [`keep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_keep4(service_backend: u32) -> u32 {
    keep::<V4>(service_backend) as u32
}

/// See [`keep`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_keep6(service_backend: u32) -> u32 {
    keep::<V6>(service_backend) as u32
}

/// Starts a flow, whose tuple is in scratch memory, that stays as its client sends it. It needs no port, and no entry
/// for replies: those find the client as the responder's in other modes do.
#[inline(always)]
fn keep<F: Family>(service_backend: u32) -> bool {
    let Some(scratch) = maps::scratch::<Opening<F::Addr>>() else {
        return false;
    };
    // SAFETY: this CPU's own memory, in which the packet's tuple is.
    let opening = unsafe { &mut *scratch };
    let (key, forward) = (&opening.key, &mut opening.forward);
    (forward.src, forward.dst, forward.sport, forward.dport) = (key.src, key.dst, key.sport, key.dport);
    (forward.service, forward.backend) = ((service_backend >> 16) as u16, service_backend as u16);
    (forward.time, forward.state) = (maps::now(), state::TCP_SYN as u32);
    (forward.direction, forward.flags, forward.timestamps) = (TO_SERVER, 0, 0);
    forward.last_hop = LastHop { ifindex: 0, macs: [0; 6], tags: [0; 2], mtu: 0, outer_tag: 0 };
    F::insert_translation(key, forward, 0)
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
fn fill<F: Family>(opening: &mut Opening<F::Addr>, backend: &Backend, now: u32, hop: &LastHop) -> u32 {
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
    let (Some(scratch), Some(settings), Some(service)) =
        (maps::scratch::<Opening<F::Addr>>(), maps::settings(), maps::service((service_backend >> 16) as u16))
    else {
        return false;
    };
    let port = port(settings, service, service_backend as u16, attempt) as u16;
    // SAFETY: this CPU's own memory, which `open` has filled.
    let opening = unsafe { &mut *scratch };
    opening.forward.sport = Be16::new(port);
    let hash = hash::nat_flow(settings.seed, service_backend as u16, opening.forward.sport, opening.key.protocol);
    let is_probe = opening.forward.state == state::TCP_CLOSED as u32;
    let flags = if is_sampled(hash, service.sample_mask) && !is_probe { SAMPLED } else { 0 };
    (opening.forward.flags, opening.reply.flags) = (flags, flags);
    reverse(&mut opening.reply_key, &opening.forward, opening.key.protocol);
    let mut owned = F::insert_translation(&opening.reply_key, &opening.reply, maps::ONLY_NEW);
    if !owned && reclaim::<F>(settings, opening, attempt >= PATIENT_ATTEMPTS) {
        owned = F::insert_translation(&opening.reply_key, &opening.reply, maps::ONLY_NEW);
    }
    owned && F::insert_translation(&opening.key, &opening.forward, 0)
}

/// Frees the wanted port if its flow has been idle for longer than its state allows, or if it has ended and there is need.
#[inline(always)]
fn reclaim<F: Family>(settings: &Settings, opening: &mut Opening<F::Addr>, need: bool) -> bool {
    let Some(reply) = F::translation(&opening.reply_key) else {
        return true;
    };
    let now = opening.forward.time;
    // SAFETY: conntrack values live until a grace period after their removal.
    let reply = unsafe { &*reply };
    reverse(&mut opening.old_key, reply, opening.reply_key.protocol);
    if let Some(forward) = F::translation(&opening.old_key) {
        // SAFETY: as above.
        let forward = unsafe { &*forward };
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
    F::remove_translation(&opening.reply_key);
    true
}

/// Removes both entries of the flow with the old key.
#[inline(always)]
fn close<F: Family>(opening: &mut Opening<F::Addr>, forward: &Translation<F::Addr>) {
    reverse(&mut opening.old_reply_key, forward, opening.old_key.protocol);
    let (backend, was_active) = (forward.backend, state::is_active(forward.state as u8));
    let key = &opening.old_key;
    if let Some(reply) = F::translation(&opening.old_reply_key)
        // SAFETY: conntrack values live until a grace period after their removal.
        && answers(unsafe { &*reply }, key.src, key.sport, key.dst, key.dport)
    {
        F::remove_translation(&opening.old_reply_key);
    }
    F::remove_translation(&opening.old_key);
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
fn change_state<A>(translation: *mut Translation<A>, next: u8) {
    // SAFETY: the pointer is to a map value.
    let (word, old, backend) = unsafe {
        (&raw mut (*translation).state, (&raw const (*translation).state).read_volatile(), (*translation).backend)
    };
    if maps::compare_exchange32(word, old, next as u32) && state::is_active(old as u8) && !state::is_active(next) {
        maps::release(backend);
    }
}

/// Once a tick: the time, the way back, and the other direction's entry, which the kernel would otherwise evict as
/// unused when packets flow one way only. Not zero if it was evicted and another flow has taken the port.
#[inline(never)]
fn refresh<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    translation: *mut Translation<F::Addr>,
    now: u32,
) -> u32 {
    // SAFETY: the pointer is to a map value; time is one word.
    let current = unsafe {
        (&raw mut (*translation).time).write_volatile(now);
        &*translation
    };
    let (Some(scratch), Some(hop)) = (maps::scratch::<Opening<F::Addr>>(), parse::last_hop(ctx, packet.l3)) else {
        return 0;
    };
    // SAFETY: this CPU's own memory; a flow that was opened by this packet is in the map by now.
    let scratch = unsafe { &mut *scratch };
    scratch.reply_key = current.reverse_key(packet.protocol);
    match F::translation(&scratch.reply_key) {
        Some(reply) => {
            // SAFETY: the pointer is to a map value. A reply that reads half of each hop is lost like any other packet
            // on a link that is being changed.
            unsafe {
                if !answers(&*reply, packet.src, packet.sport, packet.dst, packet.dport) {
                    return 1;
                }
                if (*reply).last_hop != hop {
                    (*reply).last_hop = hop;
                }
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
            F::insert_translation(&scratch.reply_key, &scratch.reply, maps::ONLY_NEW);
        }
    }
    0
}

/// A reply's effect on its flow: time once a tick, the state when a side ends the connection.
#[inline(never)]
fn reply_seen<F: Family>(packet: &Packet<F::Addr>, reply: *mut Translation<F::Addr>, now: u32) -> u32 {
    // SAFETY: the pointer is to a map value; time is one word.
    let current = unsafe {
        (&raw mut (*reply).time).write_volatile(now);
        &*reply
    };
    let forward_key = current.reverse_key(packet.protocol);
    if let Some(forward) = F::translation(&forward_key)
        && packet.is_tcp()
    {
        // SAFETY: the pointer is to a map value.
        let old = unsafe { (*forward).state } as u8;
        let next = state::after_tcp(old, packet.tcp_flags, false);
        if next != old {
            change_state(forward, next);
        }
    }
    0
}
