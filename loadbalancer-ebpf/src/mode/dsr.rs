//! To the server, for every mode but `nat`: an affinity entry holds the flow.

use loadbalancer_common::admission::keeps_flows;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::tcp_flag;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_common::settings::{Settings, program};
use loadbalancer_common::signal::is_sampled;

use crate::clock;
use crate::egress::forward;
use crate::egress::refuse;
use crate::flow::affinity::{self, Beginning, First, Found};
use crate::flow::fragment;
use crate::maps;
use crate::observe::{self, Key, Replies};
use crate::packed::Pair;
use crate::packet::cursor::Frame;
use crate::packet::family::{Family, Rewrite, rewrite};
use crate::packet::ingress::ingress_from_prober;
use crate::packet::last_hop;
use crate::packet::parse::{Packet, Part};
use crate::select::admit;
use crate::select::choice::Choice;
use crate::select::lease;
use crate::select::probe;
use crate::verdict::Verdict;

#[inline(always)]
pub fn to_server<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
) -> Verdict {
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let now = clock::now() as u16 & TIME_MASK;
    let found = affinity::find(settings, hash);
    let mut chosen = NO_BACKEND;
    if found.is_some() {
        chosen = known_flow(service, settings, packet, &found, now);
    }
    if chosen == NO_BACKEND {
        if ingress_from_prober(frame.context()) != 0 {
            probe::tail_call_special::<F>(frame);
            return Verdict::drop(service_id, Outcome::Internal);
        }
        if packet.tcp_flags & tcp_flag::RST != 0 && lease::queue_wants_resets(service_id as u32) != 0 {
            maps::tail_call(frame, if F::V6 { program::HOLD6 } else { program::HOLD4 });
        }
        let client = if service.has(Service::CLIENT_AFFINITY) {
            F::client_hash(settings.seed, packet.src, service_id)
        } else {
            0
        };
        let first = if !packet.is_tcp() {
            First::Datagram
        } else if packet.is_syn() {
            First::Syn
        } else {
            First::Middle
        };
        let beginning = Beginning::new(first, found.is_some());
        let new = NewFlow { hash, client, service: service_id, now, beginning };
        match new_flow(&new).get() {
            Ok(id) => chosen = id,
            Err(outcome) => return refuse::packet::<F>(frame, packet, service_id, service, outcome),
        }
        if packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
            ended(hash, packet.tcp_flags, now);
        }
        if service.mode == mode::DNAT {
            last_hop::note_client::<F>(frame, packet);
        }
    }
    if service.mode == mode::DNAT && found.is_some() && found.entry.time() != now {
        last_hop::note_client::<F>(frame, packet);
    }
    send::<F>(frame, packet, service_id, service, chosen, hash, found.entry.state())
}

/// A flow that has waited, to the server that the controller has chosen, and counted as having it.
#[inline(always)]
pub fn released<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    backend: u16,
) -> Verdict {
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let now = clock::now() as u16 & TIME_MASK;
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
        let first = if packet.is_tcp() { First::Syn } else { First::Datagram };
        affinity::note_flow(hash, client, backend, now, Beginning::new(first, found.is_some()));
    }
    if service.mode == mode::DNAT {
        last_hop::note_released_client::<F>(frame, packet);
    }
    send::<F>(frame, packet, service_id, service, chosen, hash, found.entry.state())
}

/// Whether a backend is the controller's own responder.
#[inline(always)]
fn is_local(backend: u16) -> bool {
    maps::backend(backend).is_some_and(|backend| backend.has(Backend::LOCAL))
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
        if !keeps_flows(service, backend) {
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

/// What choosing a server needs to know of a flow.
struct NewFlow {
    hash: u64,
    /// Hash of the client, for services with client affinity; else zero.
    client: u64,
    service: u16,
    now: u16,
    beginning: Beginning,
}

#[inline(always)]
fn new_flow(flow: &NewFlow) -> Choice {
    if flow.client == 0 || flow.beginning.is(First::Middle) {
        let service_now = Pair(flow.service, flow.now).to_bits();
        return Choice::from_bits(affinity_new_flow(flow.hash, flow.client, service_now, flow.beginning.to_bits()));
    }
    // Not below that, as there is not enough stack.
    let choice = admit::new_flow_of_client(flow.service, flow.client, flow.now);
    if let Ok(id) = choice.get() {
        affinity::note_flow(flow.hash, flow.client, id, flow.now, flow.beginning);
    }
    choice
}

/// See [`new_flow`]. Exported so that the verifier checks it once by itself, with a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_new_flow(hash: u64, client: u64, service_now: u32, beginning: u32) -> u32 {
    let Pair(service, now) = Pair::from_bits(service_now);
    open(&NewFlow { hash, client, service, now, beginning: Beginning::from_bits(beginning) }).to_bits()
}

#[inline(always)]
fn open(flow: &NewFlow) -> Choice {
    // A middle packet whose server is gone cannot go on anywhere.
    if flow.beginning.has_entry() && flow.beginning.is(First::Middle) {
        return Choice::refused(Outcome::ServerGone);
    }
    let (Some(settings), Some(service)) = (maps::settings(), maps::service(flow.service)) else {
        return Choice::refused(Outcome::Internal);
    };
    let choice = choose(service, flow);
    let Ok(id) = choice.get() else {
        return choice;
    };
    affinity::note(settings, flow.hash, id, flow.now, flow.beginning);
    choice
}

/// A server, counted as having one more flow.
#[inline(always)]
fn choose(service: &Service, flow: &NewFlow) -> Choice {
    if flow.beginning.is(First::Middle) {
        // Another gateway, or an entry that was given up: the ring is what all agree on.
        let hash = if flow.client != 0 { flow.client } else { flow.hash };
        return match admit::ring_slot(service, hash) {
            Some(id) => {
                maps::reserve(id, u32::MAX);
                Choice::backend(id)
            }
            None => Choice::refused(Outcome::NoServer),
        };
    }
    if admit::has_to_wait(flow.service) {
        return Choice::refused(Outcome::Full);
    }
    admit::new_flow(flow.service, flow.hash, NO_BACKEND)
}

/// Sends a packet to its server. `before` is the flow's state before the packet.
#[inline(always)]
pub fn send<F: Family>(
    frame: &mut Frame,
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
    if let Some(verdict) = forward::obstacle::<F>(frame, packet, service_id, path.ifindex, path.mtu) {
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
        rewrite::<F>(frame, packet, &new)
    } else {
        F::spend_ttl(frame, packet.l3 as usize)
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
        observe::client(frame, packet, Key::of(hash, service.sample_mask), backend_id, path_id, replies);
    }
    forward::by_path::<F>(frame, packet, service_id, path_id, hash, Outcome::Forwarded)
}
