//! Probes of modes that keep no flow for them, the way back of their replies, and what the responder sends.

use loadbalancer_common::affinity::state;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::probe::MAC;
use loadbalancer_common::service::Vip;
use loadbalancer_common::settings::Settings;

use crate::egress::forward;
use crate::flow::fragment;
use crate::maps;
use crate::mode::dsr;
use crate::packet::cursor::Frame;
use crate::packet::family::{Family, Rewrite, rewrite};
use crate::packet::ingress::from_prober;
use crate::packet::parse::{Packet, Part};
use crate::select::classify;
use crate::select::probe::server;
use crate::verdict::Verdict;

/// A probe that is not of `nat`, what may be the reply to one, or what the responder sends.
#[inline(always)]
pub fn handle<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if from_prober(frame, settings) {
        to_server::<F>(frame, settings, packet)
    } else {
        to_prober::<F>(frame, settings, packet)
    }
}

#[inline(never)]
fn to_server<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service_id = match classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return from_responder::<F>(frame, settings, packet),
    };
    let Some(service) = maps::service(service_id) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let backend = match server(packet, service_id).get() {
        Ok(backend) => backend,
        Err(outcome) => return Verdict::drop(service_id, outcome),
    };
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    dsr::send::<F>(frame, packet, service_id, service, backend, hash, state::FREE)
}

/// What the responder sends bears the VIP already, and goes back to where its client's packets came from. It was sent
/// by this machine, so it has spent no hop yet.
#[inline(never)]
fn from_responder<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service = match classify::vip::<F>(settings, packet.src, packet.sport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return Verdict::pass(Outcome::NotOurs),
    };
    let Some(hop) = maps::last_hop(&packet.dst) else {
        return Verdict::drop(service, Outcome::NoReturnPath);
    };
    if let Some(verdict) = forward::unanswered_obstacle(packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    forward::to_client::<F>(frame, packet, service, hop, Outcome::ReplyForwarded)
}

/// What answers a probe gets the VIP back as its source.
#[inline(never)]
fn to_prober<F: Family>(frame: &mut Frame, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let not_ours = Verdict::pass(Outcome::NotOurs);
    let prober = settings.prober;
    let Some(probe) = maps::probe(packet.dport.get() as u32) else {
        return not_ours;
    };
    if packet.sport.0 != probe.replier_port.0
        || packet.protocol != probe.protocol
        || packet.dst != F::addr(&probe.source)
        || packet.src != F::addr(&probe.replier)
    {
        return not_ours;
    }
    let service = probe.service;
    let vip = F::addr(&probe.vip);
    let hop = LastHop { ifindex: prober, macs: MACS, tags: [0; 2], mtu: 0, outer_tag: 0 };
    if packet.part == Part::First {
        fragment::remember::<F>(packet, vip, packet.dst, service, probe.backend, 0, Some(&hop));
    }
    let new = Rewrite { src: vip, dst: packet.dst, sport: probe.vip_port, dport: packet.dport };
    if vip != packet.src && !rewrite::<F>(frame, packet, &new) {
        return Verdict::drop(service, Outcome::Internal);
    }
    maps::count_to_client(probe.backend, packet.length);
    forward::to_client::<F>(frame, packet, service, &hop, Outcome::ReplyForwarded)
}

/// Destination and source on the link to the prober, which takes what bears its own address.
const MACS: [u16; 6] = {
    let words = [
        u16::from_ne_bytes([MAC[0], MAC[1]]),
        u16::from_ne_bytes([MAC[2], MAC[3]]),
        u16::from_ne_bytes([MAC[4], MAC[5]]),
    ];
    [words[0], words[1], words[2], words[0], words[1], words[2]]
};
