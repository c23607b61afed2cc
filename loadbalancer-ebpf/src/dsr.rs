//! To the server, for every mode but `nat`: an affinity entry holds the flow.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::tcp_flag;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_common::settings::{Settings, program};
use loadbalancer_common::signal::is_sampled;

use crate::admit::{self, Choice, Refusal};
use crate::affinity::{self, Found};
use crate::family::{Family, Rewrite, rewrite};
use crate::forward;
use crate::fragment;
use crate::maps;
use crate::observe::{self, Key, Replies};
use crate::parse::{Packet, Part};
use crate::probe;
use crate::queue;
use crate::refuse;
use crate::verdict::Verdict;

#[inline(always)]
pub fn to_server<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
) -> Verdict {
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let now = maps::now() as u16 & TIME_MASK;
    let found = affinity::find(settings, hash);
    let mut chosen = NO_BACKEND;
    if found.is_some() {
        chosen = known_flow(service, settings, packet, &found, now);
    }
    if chosen == NO_BACKEND {
        if probe::probe_is_one(ctx.ctx) != 0 {
            probe::elsewhere::<F>(ctx);
            return Verdict::drop(service_id, Outcome::Internal);
        }
        if packet.tcp_flags & tcp_flag::RST != 0 && queue::queue_hears_resets(service_id as u32) != 0 {
            maps::tail_call(ctx, if F::V6 { program::HOLD6 } else { program::HOLD4 });
        }
        let client = if service.has(Service::CLIENT_AFFINITY) {
            F::client_hash(settings.seed, packet.src, service_id)
        } else {
            0
        };
        let kind = if !packet.is_tcp() {
            Kind::Udp
        } else if packet.is_syn() {
            Kind::Syn
        } else {
            Kind::Middle
        };
        let new = NewFlow { hash, client, service: service_id, now, kind, has_entry: found.is_some() };
        match new_flow(&new).get() {
            Ok(id) => chosen = id,
            Err(outcome) => return refuse::packet::<F>(ctx, packet, service_id, service, outcome),
        }
        if packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
            ended(hash, packet.tcp_flags, now);
        }
        if service.mode == mode::DNAT {
            remember_client::<F>(ctx, packet);
        }
    }
    if service.mode == mode::DNAT && found.is_some() && found.entry.time() != now {
        remember_client::<F>(ctx, packet);
    }
    send::<F>(ctx, packet, service_id, service, chosen, hash, found.entry.state())
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
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let now = maps::now() as u16 & TIME_MASK;
    let found = affinity::find(settings, hash);
    let mut chosen = NO_BACKEND;
    if found.is_some() {
        chosen = known_flow(service, settings, packet, &found, now);
    }
    if chosen != NO_BACKEND {
        // It went to a server on another way meanwhile.
        maps::release(backend);
    } else {
        chosen = backend;
        // A client is not to come back to the responder.
        let client = if service.has(Service::CLIENT_AFFINITY) && !is_local(backend) {
            F::client_hash(settings.seed, packet.src, service_id)
        } else {
            0
        };
        let kind = (!packet.is_tcp() as u32) << 1 | found.is_some() as u32;
        affinity_note_flow(hash, client, (backend as u32) << 16 | now as u32, kind);
    }
    if service.mode == mode::DNAT {
        queue::remember_client::<F>(ctx, packet);
    }
    send::<F>(ctx, packet, service_id, service, chosen, hash, found.entry.state())
}

/// Whether a backend is the controller's own responder.
#[inline(always)]
fn is_local(backend: u16) -> bool {
    maps::backend(backend).is_some_and(|backend| backend.has(Backend::LOCAL))
}

/// Notes the server of a flow that has waited. `kind`: whether it is UDP, and in the lowest bit whether it has an entry.
/// Exported so that the verifier checks it once by itself, with a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_note_flow(hash: u64, client: u64, backend_now: u32, kind: u32) -> u32 {
    let Some(settings) = maps::settings() else {
        return 0;
    };
    let (backend, now) = ((backend_now >> 16) as u16, backend_now as u16);
    note(settings, hash, kind & 1 != 0, backend, if kind & 2 != 0 { state::UDP } else { state::TCP_SYN }, now);
    if client != 0 {
        affinity_note_client(client, backend_now);
    }
    0
}

/// Notes the server that a client's flows go to. What another CPU does meanwhile is as good; the next flow tries again.
/// Exported for the same reason as [`affinity_note_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_note_client(client: u64, backend_now: u32) -> u32 {
    let Some(settings) = maps::settings() else {
        return 0;
    };
    let (backend, now) = ((backend_now >> 16) as u16, backend_now as u16);
    let found = affinity::find(settings, client);
    if !found.is_some() {
        affinity::insert(client, backend, state::CLIENT, now);
    } else {
        affinity::replace(&found, Entry::new(found.entry.tag(), backend, state::CLIENT, now));
    }
    0
}

/// Puts a new flow, counted on its backend already, into the table.
#[inline(always)]
fn note(settings: &Settings, hash: u64, has_entry: bool, backend: u16, first_state: u8, now: u16) {
    let mut replaced = false;
    let found = affinity::find(settings, hash);
    if has_entry && found.is_some() {
        replaced = affinity::replace(&found, Entry::new(found.entry.tag(), backend, first_state, now));
    }
    if !replaced && !affinity::insert(hash, backend, first_state, now) {
        // Without an entry nothing would ever end the flow.
        maps::release(backend);
    }
    maps::count_flow(backend);
}

/// Backend of a flow with an entry, brought up to date; none if the packet must be treated as a new flow's first.
#[inline(always)]
fn known_flow<A>(service: &Service, settings: &Settings, packet: &Packet<A>, found: &Found, now: u16) -> u16 {
    let entry = found.entry;
    let Some(backend) = maps::backend(entry.backend()) else {
        return NO_BACKEND;
    };
    let next = if packet.is_tcp() {
        if packet.is_syn() && (state::is_over(entry.state()) || entry.is_expired(settings, now)) {
            return NO_BACKEND;
        }
        // A connection that never got an answer is free to go elsewhere.
        if packet.is_syn() && backend.has(Backend::DOWN) {
            return NO_BACKEND;
        }
        if !admit::keeps_flows(service, backend) {
            return NO_BACKEND;
        }
        state::after_tcp(entry.state(), packet.tcp_flags, true)
    } else {
        // A datagram has no connection to lose.
        if !backend.has(Backend::PRESENT) || backend.has(Backend::DOWN) {
            return NO_BACKEND;
        }
        state::UDP
    };
    affinity::touch(found, next, now);
    entry.backend()
}

/// A flow that begins with its end was counted as active, like any other, and is not.
#[inline(never)]
fn ended(hash: u64, tcp_flags: u8, now: u16) -> u32 {
    if let Some(settings) = maps::settings() {
        let found = affinity::find(settings, hash);
        if found.is_some() {
            affinity::touch(&found, state::after_tcp(found.entry.state(), tcp_flags, true), now);
        }
    }
    0
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Syn,
    /// TCP, but not the first packet.
    Middle,
    Udp,
}

/// What choosing a server needs to know of a flow.
struct NewFlow {
    hash: u64,
    /// Hash of the client, for services with client affinity; else zero.
    client: u64,
    service: u16,
    now: u16,
    kind: Kind,
    /// There is an entry, of a flow that is over or that lost its server.
    has_entry: bool,
}

#[inline(always)]
fn new_flow(flow: &NewFlow) -> Choice {
    let service_now = (flow.service as u32) << 16 | flow.now as u32;
    let kind = (flow.kind as u32) << 1 | flow.has_entry as u32;
    if flow.client == 0 || flow.kind == Kind::Middle {
        return Choice::from_word(affinity_new_flow(flow.hash, flow.client, service_now, kind));
    }
    // Not below that, as there is not enough stack.
    let choice = Choice::from_word(affinity_client_server(flow.client, flow.service as u32, flow.now as u32));
    if let Ok(id) = choice.get() {
        let is_udp = flow.kind == Kind::Udp;
        affinity_note_flow(
            flow.hash,
            flow.client,
            (id as u32) << 16 | flow.now as u32,
            (is_udp as u32) << 1 | kind & 1,
        );
    }
    choice
}

/// See [`new_flow`]. Exported so that the verifier checks it once by itself, with a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_new_flow(hash: u64, client: u64, service_now: u32, kind: u32) -> u32 {
    let flow = NewFlow {
        hash,
        client,
        service: (service_now >> 16) as u16,
        now: service_now as u16,
        kind: match kind >> 1 {
            0 => Kind::Syn,
            1 => Kind::Middle,
            _ => Kind::Udp,
        },
        has_entry: kind & 1 != 0,
    };
    open(&flow).word()
}

#[inline(always)]
fn open(flow: &NewFlow) -> Choice {
    // A middle packet whose server is gone cannot go on anywhere.
    if flow.has_entry && flow.kind == Kind::Middle {
        return Choice::refused(Refusal::ServerGone);
    }
    let (Some(settings), Some(service)) = (maps::settings(), maps::service(flow.service)) else {
        return Choice::refused(Refusal::Internal);
    };
    let choice = choose(service, flow);
    let Ok(id) = choice.get() else {
        return choice;
    };
    let first_state = if flow.kind == Kind::Udp { state::UDP } else { state::TCP_SYN };
    note(settings, flow.hash, flow.has_entry, id, first_state, flow.now);
    choice
}

/// A server, counted as having one more flow.
#[inline(always)]
fn choose(service: &Service, flow: &NewFlow) -> Choice {
    if flow.kind == Kind::Middle {
        // Another gateway, or an entry that was given up: the ring is what all agree on.
        let hash = if flow.client != 0 { flow.client } else { flow.hash };
        return match admit::ring_slot(service, hash) {
            Some(id) => {
                maps::reserve(id, u32::MAX);
                Choice::backend(id)
            }
            None => Choice::refused(Refusal::NoServer),
        };
    }
    if admit::has_to_wait(flow.service) {
        return Choice::refused(Refusal::Full);
    }
    admit::new_flow(flow.service, flow.hash, NO_BACKEND)
}

/// A server for a flow of a client that is to stay on one server; who asks notes it with [`affinity_note_client`], as there is
/// not enough stack for that below. Exported for the same reason as [`affinity_new_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_client_server(client: u64, service: u32, now: u32) -> u32 {
    if admit::has_to_wait(service as u16) {
        return Choice::refused(Refusal::Full).word();
    }
    let Some(settings) = maps::settings() else {
        return Choice::refused(Refusal::Internal).word();
    };
    let preferred = affinity::server_of_client(settings, client, now as u16 & TIME_MASK);
    admit::new_flow(service as u16, client, preferred).word()
}

/// Notes where a client's packets come from, so that replies that pass through the gateway go there.
#[inline(never)]
fn remember_client<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> u32 {
    let Some(hop) = crate::parse::last_hop(ctx, packet.l3) else {
        return 0;
    };
    match F::last_hop(&packet.src) {
        Some(known) if *known == hop => {}
        _ => F::insert_last_hop(&packet.src, &hop),
    }
    0
}

/// Sends a packet to its server. `before` is the flow's state before the packet.
#[inline(always)]
pub fn send<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    backend_id: u16,
    hash: u64,
    before: u8,
) -> Verdict {
    let Some(backend) = maps::backend(backend_id) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let path_id = forward::path_of(backend, hash);
    let Some(path) = maps::path(path_id) else {
        return Verdict::drop(service_id, Outcome::NoPath);
    };
    if let Some(verdict) = forward::obstacle::<F>(ctx, packet, service_id, path.ifindex, path.mtu) {
        return verdict;
    }
    let is_rewritten = service.mode == mode::DNAT && !backend.has(Backend::LOCAL);
    let fits = if is_rewritten {
        let new = Rewrite {
            src: packet.src,
            dst: F::addr(&backend.addr),
            sport: packet.sport,
            dport: if backend.port.0 == 0 { packet.dport } else { backend.port },
        };
        rewrite::<F>(ctx, packet, &new)
    } else {
        F::spend_ttl(ctx, packet.l3 as usize)
    };
    if !fits {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    if packet.part == Part::First {
        let dst = if is_rewritten { F::addr(&backend.addr) } else { packet.dst };
        fragment::remember::<F>(packet, packet.src, dst, service_id, backend_id, path_id, None);
    }
    maps::count_to_server(backend_id, packet.length);
    if is_sampled(hash, service.sample_mask) {
        let replies = match service.mode {
            mode::DNAT => Replies::All,
            _ if before == state::TCP_SYN => Replies::Told,
            _ => Replies::None,
        };
        observe::client(ctx, packet, Key::of(hash, service.sample_mask), backend_id, path_id, replies);
    }
    forward::by_path::<F>(ctx, packet, service_id, path_id, hash, Outcome::Forwarded)
}
