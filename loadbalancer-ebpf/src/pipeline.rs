//! The stages in one screen.
//!
//! frame -> parse -> classify -> select (affinity, else ring) -> admit -> rewrite -> forward

use loadbalancer_common::net::ethertype;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::TICKET;
use loadbalancer_common::service;
use loadbalancer_common::settings::{Settings, program};

use crate::maps;
use crate::mode::{dnat, dsr, nat};
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ingress::is_released;
use crate::packet::ipv4::V4;
use crate::packet::parse::{self, Packet};
use crate::select::classify::{self, Class};
use crate::select::probe;
use crate::special::{self, icmp, later_fragment, release};
use crate::verdict::Verdict;

/// By link header: IPv4 goes on here, all else in programs of its own. If one is missing, its frames are left to the kernel.
#[inline(always)]
pub fn begin(frame: &mut Frame) -> Verdict {
    match parse::link(frame) {
        Some((ethertype::IPV4, l3)) => ipv4(frame, l3),
        Some((ethertype::IPV6, _)) => {
            maps::tail_call(frame, program::IPV6);
            Verdict::pass(Outcome::NotOurs)
        }
        Some((TICKET, _)) => {
            maps::tail_call(frame, program::TICKET);
            Verdict::pass(Outcome::NotIp)
        }
        Some(_) => Verdict::pass(Outcome::NotIp),
        None => Verdict::pass(Outcome::Malformed),
    }
}

#[inline(always)]
fn ipv4(frame: &mut Frame, l3: usize) -> Verdict {
    let Some(settings) = maps::settings() else {
        return Verdict::pass(Outcome::NotOurs);
    };
    match V4::parse(frame, parse::opaque(settings, l3)) {
        Some(packet) => stages::<V4>(frame, settings, &packet),
        None => Verdict::pass(Outcome::Malformed),
    }
}

#[inline(always)]
pub fn stages<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if packet.is_special() {
        maps::tail_call(frame, if F::V6 { program::SPECIAL6 } else { program::SPECIAL4 });
        return Verdict::pass(Outcome::NotOurs);
    }
    match classify::classify::<F>(settings, packet) {
        Class::NotOurs => probe::pass_or_probe_reply::<F>(frame, packet),
        // ---- From here on the frame is ours: it is forwarded, answered, refused or dropped, with a named reason. ----
        Class::ToService(id) => match maps::service(id) {
            Some(service) if service.mode == service::mode::NAT => {
                nat::to_server::<F>(frame, settings, packet, id, service)
            }
            Some(service) => dsr::to_server::<F>(frame, settings, packet, id, service),
            None => Verdict::drop(id, Outcome::Internal),
        },
        Class::ToNatSource => nat::to_client::<F>(frame, packet),
        Class::FromDnatServer(reply) => dnat::to_client::<F>(frame, settings, packet, reply),
    }
}

#[inline(always)]
pub fn special<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if packet.is_later_fragment() {
        later_fragment::handle::<F>(frame, packet)
    } else if packet.protocol == F::ICMP {
        icmp::handle::<F>(frame, settings, packet)
    } else if packet.is_special() {
        Verdict::pass(Outcome::NotOurs)
    } else {
        special::probe::handle::<F>(frame, settings, packet)
    }
}

#[inline(always)]
pub fn released<F: Family>(frame: &mut Frame) -> Verdict {
    let verdict = with_packet::<F>(frame, release::handle::<F>);
    // With its ticket still there it was not even a packet.
    if is_released() { release::not_released() } else { verdict }
}

/// Does something with the parsed packet, which is not on the stack here: IPv6 and the rare paths need that themselves.
#[inline(always)]
pub fn with_packet<F: Family>(
    frame: &mut Frame,
    then: impl FnOnce(&mut Frame, &Settings, &Packet<F::Addr>) -> Verdict,
) -> Verdict {
    // SAFETY: a program asks once.
    let (Some(settings), Some(packet)) = (maps::settings(), unsafe { maps::packet::<Packet<F::Addr>>() }) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    if parse_to::<F>(frame, settings, packet) {
        then(frame, settings, packet)
    } else {
        Verdict::pass(Outcome::Malformed)
    }
}

#[inline(never)]
fn parse_to<F: Family>(frame: &Frame, settings: &Settings, packet: &mut Packet<F::Addr>) -> bool {
    let Some((_, l3)) = parse::link(frame) else {
        return false;
    };
    match F::parse(frame, parse::opaque(settings, l3)) {
        Some(parsed) => {
            *packet = parsed;
            true
        }
        None => false,
    }
}
