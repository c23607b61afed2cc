//! What is to wait: its first packet is handed over to the controller.

use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::tcp_flag;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{ClassKey, Held, LARGE_FRAME, SMALL_FRAME, cookie, kind};
use loadbalancer_common::service::{Service, Vip};
use loadbalancer_common::settings::Settings;

use crate::clock;
use crate::egress::refuse;
use crate::egress::reply;
use crate::flow::affinity;
use crate::maps;
use crate::packet::cursor::{Frame, bounded};
use crate::packet::family::Family;
use crate::packet::ingress::{self, ingress_before_queue};
use crate::packet::parse::Packet;
use crate::select::classify;
use crate::select::lease;
use crate::verdict::Verdict;

/// Ticks for which a client need not show again where it is: about a minute.
const VERIFIED_TICKS: u32 = 14;

/// Hands a flow over to the controller.
#[inline(always)]
pub fn handle<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service_id = match classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return Verdict::pass(Outcome::NotOurs),
    };
    let (Some(service), Some(state)) = (maps::service(service_id), maps::service_state(service_id)) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let came_by = ingress_before_queue();
    let src = F::any(packet.src);
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let sequence = if packet.is_tcp() {
        frame.load::<[u32; 2]>(packet.l4 as usize).map_or(0, |[_, sequence]| u32::from_be(sequence))
    } else {
        0
    };
    let mut held = Held {
        hash,
        time: clock::precise_ns(),
        src,
        // The first time, also if the controller had it meanwhile.
        ifindex: if came_by != 0 { came_by } else { frame.ifindex() },
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
    ingress::forget_ticket();
    let now = clock::now();
    if packet.tcp_flags & tcp_flag::RST != 0 && packet.is_tcp() {
        return reset(&mut held, now);
    }
    let verified = maps::verified(&src.0).is_some_and(|then| now.wrapping_sub(then) <= VERIFIED_TICKS);
    held.verified = verified as u8;
    let challenges = state.challenge().load() != 0;
    // One that comes back has waited already; and its answer would go to where it comes back from.
    if challenges && !verified && came_by == 0 && packet.is_tcp() {
        return reply::challenge::<F>(frame, packet, service_id, hash);
    }
    held.class = maps::class(&ClassKey::new(service_id, F::V6, src, if F::V6 { 128 } else { 32 })) as u16;
    if service.has(Service::CLIENT_AFFINITY) {
        let client = F::client_hash(settings.seed, packet.src, service_id);
        held.preferred = affinity::server_of_client(settings, client, now as u16 & TIME_MASK);
    }
    let length = bounded(frame.length());
    if length > LARGE_FRAME {
        return refuse::now::<F>(frame, packet, service_id, service, Outcome::QueueRefused);
    }
    held.length = length as u16;
    let done = if length <= SMALL_FRAME {
        maps::hand_over_frame::<SMALL_FRAME>(&held, |room| frame.read_all(room, length))
    } else {
        maps::hand_over_frame::<LARGE_FRAME>(&held, |room| frame.read_all(room, length))
    };
    Verdict::drop(service_id, if done { Outcome::Queued } else { Outcome::QueueBusy })
}

/// A reset: the answer to a challenge, or the client has given up.
#[inline(always)]
fn reset(held: &mut Held, now: u32) -> Verdict {
    let answers = held.sequence == cookie(held.hash, now) || held.sequence == cookie(held.hash, now.wrapping_sub(1));
    held.kind = if answers { kind::VERIFIED } else { kind::RESET };
    if answers {
        maps::set_verified(&held.src.0, now);
    } else if lease::queue_waits(held.service as u32) == 0 {
        // Nobody has given up.
        return Verdict::drop(held.service, Outcome::UnknownFlow);
    }
    let outcome = if maps::hand_over(held) { Outcome::QueueReset } else { Outcome::QueueBusy };
    Verdict::drop(held.service, outcome)
}
