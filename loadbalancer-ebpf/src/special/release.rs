//! What has waited: the controller gives it back with a ticket in front, which says where it goes.

use core::cell::Cell;

use aya_ebpf::bindings::xdp_action;
use loadbalancer_common::admission::accepts;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::net::ethertype;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::Ticket;
use loadbalancer_common::service::{Service, Vip, mode};
use loadbalancer_common::settings::{Settings, program};

use crate::egress::refuse;
use crate::egress::reply;
use crate::maps;
use crate::mode::dsr;
use crate::mode::nat;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ingress::{forget_ticket, from_prober};
use crate::packet::last_hop::note_released_client;
use crate::packet::parse::{self, Packet};
use crate::select::classify;
use crate::verdict::{Verdict, redirect};

/// Takes the ticket off a frame that the controller gives back. Everything else on that interface is left to the kernel.
#[inline(always)]
pub fn take_ticket(frame: &mut Frame) -> Verdict {
    let other = Verdict::pass(Outcome::NotIp);
    let (Some(settings), Some(ticket)) = (maps::settings(), maps::ticket()) else {
        return other;
    };
    let Some(found) = frame.load::<Ticket>(0) else {
        return other;
    };
    if !from_prober(frame, settings) {
        return other;
    }
    ticket.set(found);
    if frame.grow_head(-(size_of::<Ticket>() as i32)) {
        match parse::link(frame) {
            Some((ethertype::IPV4, _)) => maps::tail_call(frame, program::RELEASE4),
            Some((ethertype::IPV6, _)) => maps::tail_call(frame, program::RELEASE6),
            _ => {}
        }
    }
    give_back(&found);
    forget_ticket();
    Verdict::drop(found.service, Outcome::Internal)
}

/// The place that the controller has taken for the flow is free again.
#[inline(always)]
fn give_back(ticket: &Ticket) {
    if ticket.backend != NO_BACKEND {
        maps::release(ticket.backend);
    }
}

/// Sends the first packet of a flow to the server that its ticket names.
#[inline(always)]
pub fn handle<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let Some(ticket) = maps::ticket().map(Cell::get) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    let verdict = with_ticket::<F>(frame, settings, packet, &ticket);
    forget_ticket();
    // An answer goes to its client, not to us.
    if verdict.action() == xdp_action::XDP_TX { verdict.with_action(redirect(ticket.ifindex)) } else { verdict }
}

/// What becomes of a frame that was given back, if it is no packet.
#[inline(always)]
pub fn not_released() -> Verdict {
    let Some(ticket) = maps::ticket().map(Cell::get) else {
        return Verdict::pass(Outcome::Malformed);
    };
    give_back(&ticket);
    forget_ticket();
    Verdict::drop(ticket.service, Outcome::Internal)
}

#[inline(always)]
fn with_ticket<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    ticket: &Ticket,
) -> Verdict {
    let service_id = ticket.service;
    let is_same = classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol)
        .is_some_and(|vip| vip.kind == Vip::SERVICE && vip.service == service_id);
    let (true, Some(service)) = (is_same, maps::service(service_id)) else {
        // The service went while the flow waited.
        give_back(ticket);
        return Verdict::drop(service_id, Outcome::NoServer);
    };
    if ticket.backend == NO_BACKEND {
        return without_server::<F>(frame, settings, packet, service, ticket);
    }
    let Some(backend) = maps::backend(ticket.backend).filter(|backend| accepts(backend)) else {
        give_back(ticket);
        // It waits again; the controller knows when it came first.
        maps::tail_call(frame, if F::V6 { program::HOLD6 } else { program::HOLD4 });
        return Verdict::drop(service_id, Outcome::ServerGone);
    };
    if backend.has(Backend::LOCAL) {
        note_released_client::<F>(frame, packet);
    }
    let verdict = if service.mode == mode::NAT {
        nat::released::<F>(frame, settings, packet, service_id, service, ticket.backend)
    } else {
        dsr::released::<F>(frame, settings, packet, service_id, service, ticket.backend)
    };
    if verdict.action() != xdp_action::XDP_TX {
        return verdict;
    }
    // The responder is behind the interface that the frame came back by, where `XDP_TX` would wake nobody: what GRO
    // receives is woken by redirected frames only. All else is an answer to the client.
    let is_sent = verdict.outcome() == Outcome::Forwarded as u32;
    verdict.with_action(redirect(if is_sent { frame.ifindex() } else { ticket.ifindex }))
}

/// The answer to a client that gets no server, or none yet.
#[inline(always)]
fn without_server<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service: &Service,
    ticket: &Ticket,
) -> Verdict {
    if ticket.flags & Ticket::CHALLENGE != 0 {
        let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
        return reply::challenge::<F>(frame, packet, ticket.service, hash);
    }
    if ticket.flags & Ticket::RESET != 0 && refuse::answer::<F>(frame, packet) {
        return Verdict::answer(ticket.service, Outcome::QueueRefused);
    }
    refuse::now::<F>(frame, packet, ticket.service, service, Outcome::QueueRefused)
}
