//! Probes through the real data path: the server that each is for, and the way back of its replies.
//!
//! Nothing of a probe is kept but a `nat` flow, without which there would be no reply: its packets carry what tells the
//! server, so they need no affinity entry, and are never counted as flows.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::probe::MAC;
use loadbalancer_common::service::Vip;
use loadbalancer_common::settings::{Settings, program};

use crate::admit::{Choice, Refusal};
use crate::classify;
use crate::dsr;
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

/// See [`is_one`]. Exported, for those who have no stack left for the settings.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_is_one(ctx: *mut xdp_md) -> u32 {
    maps::settings().is_some_and(|settings| is_one(&XdpContext::new(ctx), settings)) as u32
}

/// What tells which probe a packet is of.
#[inline(always)]
pub fn word<A>(packet: &Packet<A>) -> u64 {
    (packet.protocol as u64) << 16 | packet.sport.get() as u64
}

/// The server that the probe of a word is for, whether it may get flows or not.
#[inline(always)]
pub fn server(word: u64, service: u16) -> Choice {
    Choice::from_word(probe_server(word, service as u32))
}

/// See [`server`]. Exported so that the verifier checks it once by itself, not anew for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_server(word: u64, service: u32) -> u32 {
    if let Some(probe) = maps::probe(word as u16 as u32)
        && probe.protocol == (word >> 16) as u8
        && probe.service as u32 == service
        && maps::backend(probe.backend).is_some_and(|backend| backend.has(Backend::PRESENT))
    {
        return Choice::backend(probe.backend).word();
    }
    Choice::refused(Refusal::NoServer).word()
}

/// A packet that is of no flow of ours: perhaps the reply to a probe, of which no flow is kept, or what the responder
/// sends; else the kernel's.
#[inline(always)]
pub fn perhaps_reply<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> Verdict {
    if probe_may_be_ours(ctx.ctx, packet.dport.get() as u32) != 0 {
        elsewhere::<F>(ctx);
    }
    Verdict::pass(Outcome::NotOurs)
}

/// Goes on in another program, as there is no stack left in the first: with [`handle`].
#[inline(always)]
pub fn elsewhere<F: Family>(ctx: &XdpContext) {
    maps::tail_call(ctx, if F::V6 { program::SPECIAL6 } else { program::SPECIAL4 });
}

/// A probe that is not of `nat`, what may be the reply to one, or what the responder sends.
#[inline(always)]
pub fn handle<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if is_one(ctx, settings) { to_server::<F>(ctx, settings, packet) } else { to_prober::<F>(ctx, settings, packet) }
}

#[inline(never)]
fn to_server<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service_id = match classify::vip::<F>(settings, packet.dst, packet.dport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return from_responder::<F>(ctx, settings, packet),
    };
    let Some(service) = maps::service(service_id) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    let backend = match server(word(packet), service_id).get() {
        Ok(backend) => backend,
        Err(outcome) => return Verdict::drop(service_id, outcome),
    };
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    dsr::send::<F>(ctx, packet, service_id, service, backend, hash, state::FREE)
}

/// What the responder sends bears the VIP already, and goes back to where its client's packets came from. It was sent
/// by this machine, so it has spent no hop yet.
#[inline(never)]
fn from_responder<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    let service = match classify::vip::<F>(settings, packet.src, packet.sport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => vip.service,
        _ => return Verdict::pass(Outcome::NotOurs),
    };
    let Some(hop) = F::last_hop(&packet.dst) else {
        return Verdict::drop(service, Outcome::NoReturnPath);
    };
    if let Some(verdict) = forward::unanswered_obstacle(packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    forward::to_client::<F>(ctx, packet, service, hop, Outcome::ReplyForwarded)
}

/// Whether a packet comes from the prober's namespace, or a port stands for a probe. Exported, as what it needs would
/// be on the caller's stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_may_be_ours(ctx: *mut xdp_md, port: u32) -> u32 {
    let Some(settings) = maps::settings().filter(|settings| settings.prober != 0) else {
        return 0;
    };
    (is_one(&XdpContext::new(ctx), settings) || maps::probe(port).is_some()) as u32
}

/// See [`perhaps_reply`].
#[inline(never)]
fn to_prober<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
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
