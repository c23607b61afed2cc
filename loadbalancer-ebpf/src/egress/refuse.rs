//! Refusals: what cannot be served is told so, or dropped, as the service is configured.

use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::Service;
use loadbalancer_common::settings::program;

use crate::egress::reply;
use crate::maps;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::parse::Packet;
use crate::select::lease;
use crate::verdict::Verdict;

/// Refuses a packet for a reason, unless its flow may wait.
#[inline(always)]
pub fn packet<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    outcome: Outcome,
) -> Verdict {
    if lease::may_wait(packet, service_id, service, outcome) {
        maps::tail_call(frame, if F::V6 { program::HOLD6 } else { program::HOLD4 });
    }
    now::<F>(frame, packet, service_id, service, outcome)
}

/// The same for what is not to wait.
#[inline(always)]
pub fn now<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    outcome: Outcome,
) -> Verdict {
    let may_answer = matches!(
        outcome,
        Outcome::NoServer | Outcome::Full | Outcome::UnknownFlow | Outcome::ServerGone | Outcome::QueueRefused
    ) && service.has(Service::REFUSE_WITH_RESET);
    if may_answer && answer::<F>(frame, packet) {
        Verdict::answer(service_id, outcome)
    } else {
        Verdict::drop(service_id, outcome)
    }
}

/// Tells the client that it is refused: turns the frame into the answer.
#[inline(never)]
pub fn answer<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> bool {
    if packet.is_tcp() {
        reply::reset::<F>(frame, packet)
    } else {
        let unreachable = if F::V6 { [1, 4] } else { [3, 3] };
        reply::write_icmp_error::<F>(frame, packet, u16::from_ne_bytes(unreachable), 0)
    }
}
