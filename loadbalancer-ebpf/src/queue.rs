//! Flows that no server takes: handed over to the controller, and taken back from it.
//!
//! Only the first packet of a flow waits. Once it is released, the flow is like any other.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::admission::accepts;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::{AnyAddr, ethertype, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::queue::{ClassKey, Held, LARGE_FRAME, SMALL_FRAME, Ticket, cookie, kind};
use loadbalancer_common::service::{Service, Vip, mode};
use loadbalancer_common::settings::{Settings, program};
use network_types::eth::EthHdr;

use crate::affinity;
use crate::classify;
use crate::dsr;
use crate::family::Family;
use crate::frame;
use crate::maps;
use crate::nat;
use crate::parse::{self, Packet, Part};
use crate::probe;
use crate::refuse;
use crate::verdict::Verdict;

/// Ticks for which a client need not show again where it is: about a minute.
const VERIFIED_TICKS: u32 = 14;

/// Whether a packet that is to be refused goes to the queue instead.
#[inline(always)]
pub fn takes<A>(packet: &Packet<A>, service_id: u16, service: &Service, outcome: Outcome) -> bool {
    let may_wait = matches!(outcome, Outcome::Full | Outcome::NoServer)
        && (packet.is_syn() || (!packet.is_tcp() && service.has(Service::QUEUE_DATAGRAMS)))
        && packet.part == Part::Whole;
    let may_wait_already = outcome == Outcome::UnknownFlow && packet.tcp_flags & tcp_flag::RST != 0;
    (may_wait && queue_is_open(service_id as u32) != 0)
        || (may_wait_already && queue_hears_resets(service_id as u32) != 0)
}

/// Whether flows that no server takes are handed over. Exported so that the verifier checks it once by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_is_open(service: u32) -> u32 {
    let Some(state) = maps::service_state(service as u16) else {
        return 0;
    };
    // SAFETY: the pointer is to a map value; a plain load of an aligned word.
    let until = unsafe { (&raw const (*state).queue_until).read_volatile() };
    (until != 0 && maps::coarse_ns() < until) as u32
}

/// Whether some flow of a service waits. Exported for the same reason as [`queue_is_open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_waits(service: u32) -> u32 {
    let Some(state) = maps::service_state(service as u16) else {
        return 0;
    };
    // SAFETY: as above.
    let until = unsafe { (&raw const (*state).waiting_until).read_volatile() };
    (until != 0 && maps::coarse_ns() < until) as u32
}

/// Whether resets of unknown flows are for the queue: some flow waits, or clients are challenged, of which the first has
/// nobody waiting before it. Exported for the same reason as [`queue_is_open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_hears_resets(service: u32) -> u32 {
    let Some(state) = maps::service_state(service as u16) else {
        return 0;
    };
    // SAFETY: as above.
    let (open, waiting, challenge) = unsafe {
        (
            (&raw const (*state).queue_until).read_volatile(),
            (&raw const (*state).waiting_until).read_volatile(),
            (&raw const (*state).challenge).read_volatile(),
        )
    };
    let until = if challenge != 0 && open > waiting { open } else { waiting };
    (until != 0 && maps::coarse_ns() < until) as u32
}

/// A record and the frame that is to wait.
#[repr(C)]
struct Record<const N: usize> {
    held: Held,
    frame: [u8; N],
}

/// Hands a flow over to the controller.
#[inline(always)]
pub fn hold<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service_id = match classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return Verdict::pass(Outcome::NotOurs),
    };
    let (Some(service), Some(service_state)) = (maps::service(service_id), maps::service_state(service_id)) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let came_by = queue_came_by();
    let src = any::<F>(packet.src);
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let sequence = if packet.is_tcp() {
        frame::load::<[u32; 2]>(ctx, packet.l4 as usize).map_or(0, |[_, sequence]| u32::from_be(sequence))
    } else {
        0
    };
    let mut held = Held {
        hash,
        time: maps::precise_ns(),
        src,
        // The first time, also if the controller had it meanwhile.
        ifindex: if came_by != 0 { came_by } else { ctx.ingress_ifindex() as u32 },
        sequence,
        service: service_id,
        class: 0,
        preferred: NO_BACKEND,
        length: 0,
        dport: packet.dport,
        kind: kind::FLOW,
        protocol: packet.protocol,
        tos: packet.tos,
        ipv6: F::V6 as u8,
        verified: 0,
        pad: 0,
    };
    if let Some(ticket) = maps::ticket() {
        forget(ticket);
    }
    let now = maps::now();
    if packet.tcp_flags & tcp_flag::RST != 0 && packet.is_tcp() {
        return reset(&mut held, now);
    }
    let verified = maps::verified(&src.0).is_some_and(|then| now.wrapping_sub(then) <= VERIFIED_TICKS);
    held.verified = verified as u8;
    // SAFETY: the pointer is to a map value; a plain load of an aligned word.
    let challenges = unsafe { (&raw const (*service_state).challenge).read_volatile() } != 0;
    // One that comes back has waited already; and its answer would go to where it comes back from.
    if challenges && !verified && came_by == 0 && packet.is_tcp() {
        return challenge::<F>(ctx, packet, service_id, hash);
    }
    held.class = maps::class(&ClassKey::new(service_id, F::V6, src, if F::V6 { 128 } else { 32 })) as u16;
    if service.has(Service::CLIENT_AFFINITY) {
        let client = F::client_hash(settings.seed, packet.src, service_id);
        held.preferred = affinity::server_of_client(settings, client, now as u16 & TIME_MASK);
    }
    let length = frame::bounded(frame::length(ctx));
    if length > LARGE_FRAME {
        return refuse::now::<F>(ctx, packet, service_id, service, Outcome::QueueRefused);
    }
    held.length = length as u16;
    let done = if length <= SMALL_FRAME {
        record::<SMALL_FRAME>(ctx, &held, length)
    } else {
        record::<LARGE_FRAME>(ctx, &held, length)
    };
    Verdict::drop(service_id, if done { Outcome::Queued } else { Outcome::QueueBusy })
}

/// Interface that the frame at hand came by before the controller had it; zero: the controller did not give it back.
/// Exported, as the verifier takes no pointer that may be of the context or of a map.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_came_by() -> u32 {
    // SAFETY: this CPU's own memory.
    maps::ticket().map_or(0, |ticket| unsafe { (*ticket).ifindex })
}

#[inline(always)]
fn any<F: Family>(addr: F::Addr) -> AnyAddr {
    if F::V6 { AnyAddr(F::to_v6(addr).0) } else { AnyAddr([F::to_v4(addr).0, 0, 0, 0]) }
}

/// A reset: the answer to a challenge, or the client has given up.
#[inline(always)]
fn reset(held: &mut Held, now: u32) -> Verdict {
    let answers = held.sequence == cookie(held.hash, now) || held.sequence == cookie(held.hash, now.wrapping_sub(1));
    held.kind = if answers { kind::VERIFIED } else { kind::RESET };
    if answers {
        maps::set_verified(&held.src.0, now);
    } else if queue_waits(held.service as u32) == 0 {
        // Nobody has given up.
        return Verdict::drop(held.service, Outcome::UnknownFlow);
    }
    let Some(mut entry) = maps::queue_record::<Held>() else {
        return Verdict::drop(held.service, Outcome::QueueBusy);
    };
    entry.write(*held);
    entry.submit(0);
    Verdict::drop(held.service, Outcome::QueueReset)
}

/// Copies a frame of a length that fits.
#[inline(always)]
fn record<const N: usize>(ctx: &XdpContext, held: &Held, length: usize) -> bool {
    let Some(mut entry) = maps::queue_record::<Record<N>>() else {
        return false;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry has room for the record; the kernel copies into the frame's room, in which `length` fits.
    let copied = unsafe {
        (&raw mut (*record).held).write(*held);
        // Older verifiers conclude nothing from "not zero".
        length > EthHdr::LEN
            && length <= N
            && bpf_xdp_load_bytes(ctx.ctx, 0, (&raw mut (*record).frame).cast(), length as u32) == 0
    };
    if copied {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    copied
}

/// Takes the ticket off a frame that the controller gives back. Everything else on that interface is left to the kernel.
#[inline(always)]
pub fn take_ticket(ctx: &XdpContext) -> Verdict {
    let other = Verdict::pass(Outcome::NotIp);
    let (Some(settings), Some(ticket)) = (maps::settings(), maps::ticket()) else {
        return other;
    };
    let Some(found) = frame::load::<Ticket>(ctx, 0) else {
        return other;
    };
    if !probe::is_one(ctx, settings) {
        return other;
    }
    // SAFETY: this CPU's own memory.
    unsafe { ticket.write(found) };
    if frame::grow_head(ctx, -(size_of::<Ticket>() as i32)) {
        match parse::link(ctx) {
            Some((ethertype::IPV4, _)) => maps::tail_call(ctx, program::RELEASE4),
            Some((ethertype::IPV6, _)) => maps::tail_call(ctx, program::RELEASE6),
            _ => {}
        }
    }
    give_back(&found);
    forget(ticket);
    Verdict::drop(found.service, Outcome::Internal)
}

/// The place that the controller has taken for the flow is free again.
#[inline(always)]
fn give_back(ticket: &Ticket) {
    if ticket.backend != NO_BACKEND {
        maps::release(ticket.backend);
    }
}

/// So that probes, which come by the same interface, are not taken for what is given back.
#[inline(always)]
fn forget(ticket: *mut Ticket) {
    // SAFETY: this CPU's own memory.
    unsafe { (*ticket).ifindex = 0 };
}

/// Sends the first packet of a flow to the server that its ticket names.
#[inline(always)]
pub fn release<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let Some(ticket) = maps::ticket() else {
        return Verdict::pass(Outcome::NotOurs);
    };
    // SAFETY: this CPU's own memory, which `take_ticket` has filled.
    let found = unsafe { *ticket };
    let verdict = with_ticket::<F>(ctx, settings, packet, &found);
    forget(ticket);
    // An answer goes to its client, not to us.
    if verdict.action() == xdp_action::XDP_TX { verdict.with_action(redirect(found.ifindex)) } else { verdict }
}

/// What becomes of a frame that was given back, if it is no packet.
#[inline(always)]
pub fn not_released() -> Verdict {
    let Some(ticket) = maps::ticket() else {
        return Verdict::pass(Outcome::Malformed);
    };
    // SAFETY: this CPU's own memory, which `take_ticket` has filled.
    let found = unsafe { *ticket };
    give_back(&found);
    forget(ticket);
    Verdict::drop(found.service, Outcome::Internal)
}

#[inline(always)]
fn with_ticket<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>, ticket: &Ticket) -> Verdict {
    let service_id = ticket.service;
    let is_same = classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol)
        .is_some_and(|vip| vip.kind == Vip::SERVICE && vip.service == service_id);
    let (true, Some(service)) = (is_same, maps::service(service_id)) else {
        // The service went while the flow waited.
        give_back(ticket);
        return Verdict::drop(service_id, Outcome::NoServer);
    };
    if ticket.backend == NO_BACKEND {
        return without_server::<F>(ctx, settings, packet, service, ticket);
    }
    let Some(backend) = maps::backend(ticket.backend).filter(|backend| accepts(backend)) else {
        give_back(ticket);
        // It waits again; the controller knows when it came first.
        maps::tail_call(ctx, if F::V6 { program::HOLD6 } else { program::HOLD4 });
        return Verdict::drop(service_id, Outcome::ServerGone);
    };
    if backend.has(Backend::LOCAL) {
        remember_client::<F>(ctx, packet);
    }
    let verdict = if service.mode == mode::NAT {
        nat::released::<F>(ctx, settings, packet, service_id, service, ticket.backend)
    } else {
        dsr::released::<F>(ctx, settings, packet, service_id, service, ticket.backend)
    };
    if verdict.action() != xdp_action::XDP_TX {
        return verdict;
    }
    // The responder is behind the interface that the frame came back by, where `XDP_TX` would wake nobody: what GRO
    // receives is woken by redirected frames only. All else is an answer to the client.
    let is_sent = verdict.outcome() == Outcome::Forwarded as u32;
    verdict.with_action(redirect(if is_sent { ctx.ingress_ifindex() as u32 } else { ticket.ifindex }))
}

/// The answer to a client that gets no server, or none yet.
#[inline(always)]
fn without_server<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service: &Service,
    ticket: &Ticket,
) -> Verdict {
    if ticket.flags & Ticket::CHALLENGE != 0 {
        let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
        return challenge::<F>(ctx, packet, ticket.service, hash);
    }
    if ticket.flags & Ticket::RESET != 0 && refuse::answer::<F>(ctx, packet) {
        return Verdict::answer(ticket.service, Outcome::QueueRefused);
    }
    refuse::now::<F>(ctx, packet, ticket.service, service, Outcome::QueueRefused)
}

/// Turns the frame into the challenge that answers it.
#[inline(always)]
fn challenge<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>, service: u16, hash: u64) -> Verdict {
    if refuse::segment::<F>(ctx, packet, 0, cookie(hash, maps::now()).to_be(), tcp_flag::ACK) {
        Verdict::answer(service, Outcome::Challenged)
    } else {
        Verdict::drop(service, Outcome::Internal)
    }
}

#[inline(always)]
fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper takes any number; one that is no interface is an aborted frame.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// Notes where replies to a frame that the controller gave back go.
#[inline(never)]
pub fn remember_client<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> u32 {
    let Some(mut hop) = parse::last_hop(ctx, packet.l3) else {
        return 0;
    };
    correct(ctx, &mut hop);
    F::insert_last_hop(&packet.src, &hop);
    0
}

/// The interface by which the frame came before the controller had it.
#[inline(always)]
pub fn correct(ctx: &XdpContext, hop: &mut LastHop) {
    hop.ifindex = queue_came_by();
    hop.mtu = crate::forward::mtu(ctx, hop.ifindex);
}

/// Whether the frame at hand was given back by the controller.
#[inline(always)]
pub fn is_released() -> bool {
    queue_came_by() != 0
}
