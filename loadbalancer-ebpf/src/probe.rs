//! Probes through the real data path: the server that each is for, and the way back of its replies.
//!
//! Nothing of a probe is kept but a `nat` flow, without which there would be no reply: its packets carry what tells the
//! server, so they need no affinity entry, and are never counted as flows.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::probe::MAC;
use loadbalancer_common::settings::Settings;

use crate::family::{Family, Rewrite, rewrite};
use crate::forward;
use crate::fragment;
use crate::maps;
use crate::parse::{Packet, Part};
use crate::verdict::Verdict;

/// Whether a frame comes from our own probes.
#[inline(always)]
pub fn is_one(ctx: &XdpContext, settings: &Settings) -> bool {
    ctx.ingress_ifindex() as u32 == settings.prober
}

/// The server that a probe of a service is for, whether it may get flows or not. [`NO_BACKEND`]: none.
#[inline(always)]
pub fn server<A>(packet: &Packet<A>, service: u16) -> u16 {
    probe_server(packet.sport.get() as u32, packet.protocol as u32, service as u32) as u16
}

/// See [`server`]. Exported so that the verifier checks it once by itself, not anew for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_server(port: u32, protocol: u32, service: u32) -> u32 {
    match maps::probe(port) {
        Some(probe) if probe.protocol as u32 == protocol && probe.service as u32 == service => {
            match maps::backend(probe.backend) {
                Some(backend) if backend.has(Backend::PRESENT) => probe.backend as u32,
                _ => NO_BACKEND as u32,
            }
        }
        _ => NO_BACKEND as u32,
    }
}

/// A packet that is of no flow of ours: perhaps the reply to a probe, of which no flow is kept; else the kernel's.
#[inline(always)]
pub fn reply<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if settings.prober == 0 { Verdict::pass(Outcome::NotOurs) } else { to_prober::<F>(ctx, settings.prober, packet) }
}

/// See [`reply`].
#[inline(never)]
fn to_prober<F: Family>(ctx: &XdpContext, prober: u32, packet: &Packet<F::Addr>) -> Verdict {
    let not_ours = Verdict::pass(Outcome::NotOurs);
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
    if vip != packet.src && !rewrite::<F>(ctx, packet, &new) {
        return Verdict::drop(service, Outcome::Internal);
    }
    maps::count_to_client(probe.backend, packet.length);
    forward::to_client::<F>(ctx, packet, service, &hop, Outcome::ReplyForwarded)
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
