//! The queue's leases: whether flows of a service may wait, and whether some do.

use loadbalancer_common::net::tcp_flag;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::Service;

use crate::clock;
use crate::maps;
use crate::packet::parse::{Packet, Part};

/// Whether a packet that is to be refused goes to the queue instead.
#[inline(always)]
pub fn may_wait<A>(packet: &Packet<A>, service_id: u16, service: &Service, outcome: Outcome) -> bool {
    let is_first = matches!(outcome, Outcome::Full | Outcome::NoServer)
        && (packet.is_syn() || (!packet.is_tcp() && service.has(Service::QUEUE_DATAGRAMS)))
        && packet.part == Part::Whole;
    let is_reset = outcome == Outcome::UnknownFlow && packet.tcp_flags & tcp_flag::RST != 0;
    (is_first && queue_is_open(service_id as u32) != 0) || (is_reset && queue_wants_resets(service_id as u32) != 0)
}

/// Whether flows that no server takes are handed over. Exported so that the verifier checks it once by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_is_open(service: u32) -> u32 {
    maps::service_state(service as u16).is_some_and(|state| is_running(state.queue_until().load())) as u32
}

/// Whether some flow of a service waits. Exported for the same reason as [`queue_is_open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_waits(service: u32) -> u32 {
    maps::service_state(service as u16).is_some_and(|state| is_running(state.waiting_until().load())) as u32
}

/// Whether resets of unknown flows are for the queue: some flow waits, or clients are challenged, of which the first has
/// nobody waiting before it. Exported for the same reason as [`queue_is_open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn queue_wants_resets(service: u32) -> u32 {
    let Some(state) = maps::service_state(service as u16) else {
        return 0;
    };
    let (open, waiting) = (state.queue_until().load(), state.waiting_until().load());
    let until = if state.challenge().load() != 0 && open > waiting { open } else { waiting };
    is_running(until) as u32
}

/// Whether a lease until some time goes on; zero: there is none.
#[inline(always)]
fn is_running(until: u64) -> bool {
    until != 0 && clock::coarse_ns() < until
}
