//! `nat`: source and destination rewritten both ways, with exact tracking of each flow.

use loadbalancer_common::admission::keeps_flows;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::conntrack::{SAMPLED, TO_CLIENT, Translation};
use loadbalancer_common::net::tcp_flag;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::Service;
use loadbalancer_common::settings::Settings;

use crate::clock;
use crate::egress::forward;
use crate::egress::refuse;
use crate::flow::affinity;
use crate::flow::conntrack;
use crate::flow::fragment;
use crate::maps::{self, Live};
use crate::observe::{self, Key, Replies};
use crate::packet::cursor::Frame;
use crate::packet::family::{Family, Rewrite, rewrite};
use crate::packet::ingress::{from_prober, is_released};
use crate::packet::parse::{Packet, Part};
use crate::packet::tcp_timestamp::{self, Number};
use crate::select::admit;
use crate::select::choice::Choice;
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
    let mut known = conntrack::find::<F>(packet);
    let mut is_known = known.is_some();
    if let Some(found) = known {
        let now = clock::now();
        if !goes_on(frame, service, settings, packet, found.get()) {
            known = None;
        } else if found.get().time != now && conntrack::refresh::<F>(frame, packet, found, now) != 0 {
            // Its port is another flow's by now.
            conntrack::change_state(found, state::TCP_CLOSED);
            conntrack::remove::<F>();
            (known, is_known) = (None, false);
        }
    }
    let found = match known {
        Some(found) => found,
        None => {
            match start::<F>(frame, settings, packet, service_id, service, is_known).get() {
                Ok(_) => {}
                Err(outcome) => return refuse::packet::<F>(frame, packet, service_id, service, outcome),
            }
            match conntrack::opened::<F>() {
                Some(found) => found,
                None => return Verdict::drop(service_id, Outcome::Internal),
            }
        }
    };
    forward_known::<F>(frame, packet, service_id, found)
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
    if let Some(found) = conntrack::find::<F>(packet)
        && goes_on(frame, service, settings, packet, found.get())
    {
        // It went to a server on another way meanwhile.
        maps::release(backend);
        return forward_known::<F>(frame, packet, service_id, found);
    }
    let hash = conntrack::begin::<F>(service_id);
    if maps::backend(backend).is_some_and(|backend| backend.has(Backend::LOCAL)) {
        if !conntrack::keep::<F>(service_id, backend) {
            maps::release(backend);
            return Verdict::drop(service_id, Outcome::Internal);
        }
        maps::count_flow(backend);
    } else {
        if service.has(Service::CLIENT_AFFINITY) {
            affinity::note_client(hash, backend, clock::now() as u16 & TIME_MASK);
        }
        if let Err(outcome) = start_at::<F>(frame, settings, packet, service_id, backend).get() {
            return Verdict::drop(service_id, outcome);
        }
    }
    match conntrack::opened::<F>() {
        Some(found) => forward_known::<F>(frame, packet, service_id, found),
        None => Verdict::drop(service_id, Outcome::Internal),
    }
}

/// Sends the packet of a flow with entries.
#[inline(always)]
fn forward_known<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    service_id: u16,
    found: Live<Translation<F::Addr>>,
) -> Verdict {
    let translation = found.get();
    let mut next = translation.state as u8;
    if packet.is_tcp() {
        next = state::after_tcp(next, packet.tcp_flags, true);
    }
    if next as u32 != translation.state {
        conntrack::change_state(found, next);
    }
    let backend_id = translation.backend;
    let Some(backend) = maps::backend(backend_id) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let path_id = forward::path_of(backend, forward::nat_hash(translation.sport));
    let Some(path) = maps::path(path_id) else {
        return Verdict::drop(service_id, Outcome::NoPath);
    };
    if let Some(verdict) = forward::obstacle::<F>(frame, packet, service_id, path.ifindex, path.mtu) {
        return verdict;
    }
    if packet.part == Part::First {
        fragment::remember::<F>(packet, translation.src, translation.dst, service_id, backend_id, path_id, None);
    }
    if !rewrite::<F>(frame, packet, &of(translation)) {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    tcp_timestamp::shift(frame, packet.l4, Number::Value, translation.timestamps);
    maps::count_to_server(backend_id, packet.length);
    if translation.flags & SAMPLED != 0 {
        observe::client(frame, packet, Key::Nat(backend_id, translation.sport), backend_id, path_id, Replies::All);
    }
    forward::by_path::<F>(frame, packet, service_id, path_id, 0, Outcome::Forwarded)
}

/// A packet to an address that we use as source: the reply to a flow of ours, or the kernel's.
#[inline(always)]
pub fn to_client<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Verdict {
    let Some(found) = conntrack::find::<F>(packet) else {
        return probe::pass_or_probe_reply::<F>(frame, packet);
    };
    let translation = found.get();
    // A service may be named like a server's address; only what goes to a client is a reply.
    if translation.direction != TO_CLIENT {
        return Verdict::pass(Outcome::NotOurs);
    }
    let now = clock::now();
    if translation.time != now || packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
        conntrack::reply_seen::<F>(packet, found, now);
    }
    let service = translation.service;
    let hop = translation.last_hop;
    if let Some(verdict) = forward::obstacle::<F>(frame, packet, service, hop.ifindex, hop.mtu) {
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
    if !rewrite::<F>(frame, packet, &of(translation)) {
        return Verdict::drop(service, Outcome::Internal);
    }
    tcp_timestamp::shift(frame, packet.l4, Number::Echo, translation.timestamps.wrapping_neg());
    maps::count_to_client(translation.backend, packet.length);
    if translation.flags & SAMPLED != 0 {
        observe::server(frame, packet, Key::Nat(translation.backend, packet.dport));
    }
    forward::to_client::<F>(frame, packet, service, &hop, Outcome::ReplyForwarded)
}

#[inline(always)]
fn of<A: Copy>(translation: &Translation<A>) -> Rewrite<A> {
    Rewrite { src: translation.src, dst: translation.dst, sport: translation.sport, dport: translation.dport }
}

/// Whether a packet of a known flow is part of it, rather than the first of a new one with the same tuple.
#[inline(always)]
fn goes_on<A>(
    frame: &Frame,
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
            && clock::now().wrapping_sub(translation.time) <= settings.timeouts[flow_state as usize & 7] as u32;
    }
    keeps_flows(service, backend) || (backend.has(Backend::PRESENT) && from_prober(frame, settings))
}

/// Starts a flow, whose tuple is in scratch memory: a server, then a source port and both entries.
#[inline(always)]
fn start<F: Family>(
    frame: &Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    is_known: bool,
) -> Choice {
    if packet.is_tcp() && !packet.is_syn() {
        return Choice::refused(if is_known { Outcome::ServerGone } else { Outcome::UnknownFlow });
    }
    let hash = conntrack::begin::<F>(service_id);
    let choice = if from_prober(frame, settings) {
        probe::server(packet, service_id)
    } else if admit::has_to_wait(service_id) {
        Choice::refused(Outcome::Full)
    } else if service.has(Service::CLIENT_AFFINITY) {
        let now = clock::now() as u16 & TIME_MASK;
        let choice = admit::new_flow_of_client(service_id, hash, now);
        if let Ok(backend) = choice.get() {
            affinity::note_client(hash, backend, now);
        }
        choice
    } else {
        admit::new_flow(service_id, hash, NO_BACKEND)
    };
    match choice.get() {
        Ok(backend) => start_at::<F>(frame, settings, packet, service_id, backend),
        Err(_) => choice,
    }
}

/// The same at a server that is chosen, and counts the flow as active unless it is a probe's.
#[inline(always)]
fn start_at<F: Family>(
    frame: &Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    backend: u16,
) -> Choice {
    let is_flow = !from_prober(frame, settings) || is_released();
    if conntrack::open::<F>(frame, packet, service_id, backend) {
        if is_flow {
            maps::count_flow(backend);
        }
        return Choice::backend(backend);
    }
    if is_flow {
        maps::release(backend);
    }
    Choice::refused(Outcome::PortsExhausted)
}
