//! The packet path: one XDP program that turns every frame into exactly one verdict.
//!
//! frame -> parse -> classify -> select (affinity, else ring) -> admit -> rewrite -> forward
//!
//! Stages return verdicts; this file alone turns a verdict into what the kernel does and counts it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "compare-exchange on BPF exists only as an intrinsic")]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::net::ethertype;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::TICKET;
use loadbalancer_common::service::mode;
use loadbalancer_common::settings::{Settings, program};

mod frame;
mod maps;
mod verdict;
mod parse;
mod family;
mod classify;
mod affinity;
mod admit;
mod dsr;
mod nat;
mod dnat;
mod fragment;
mod icmp;
mod refuse;
mod timestamp;
mod observe;
mod probe;
mod queue;
mod forward;

use classify::Class;
use family::{Family, V4, V6};
use parse::Packet;
use verdict::Verdict;

#[xdp(frags)]
pub fn loadbalancer(ctx: XdpContext) -> u32 {
    let verdict = match parse::link(&ctx) {
        Some((ethertype::IPV4, l3)) => ipv4(&ctx, l3),
        Some((ethertype::IPV6, _)) => {
            maps::tail_call(&ctx, program::IPV6);
            Verdict::pass(Outcome::NotOurs)
        }
        Some((TICKET, _)) => {
            maps::tail_call(&ctx, program::TICKET);
            Verdict::pass(Outcome::NotIp)
        }
        Some(_) => Verdict::pass(Outcome::NotIp),
        None => Verdict::pass(Outcome::Malformed),
    };
    done(&ctx, verdict)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, l3: usize) -> Verdict {
    let Some(settings) = maps::settings() else {
        return Verdict::pass(Outcome::NotOurs);
    };
    match V4::parse(ctx, parse::opaque(settings, l3)) {
        Some(packet) => pipeline::<V4>(ctx, settings, &packet),
        None => Verdict::pass(Outcome::Malformed),
    }
}

/// IPv6 and what is rare are programs of their own, so that each gets the verifier's full budget of steps and stack. If
/// one is missing, its frames are left to the kernel.
#[xdp(frags)]
pub fn ipv6(ctx: XdpContext) -> u32 {
    done(&ctx, with_packet::<V6>(&ctx, pipeline::<V6>))
}

/// Counts the frame: the one place where that happens.
#[inline(always)]
fn done(ctx: &XdpContext, verdict: Verdict) -> u32 {
    maps::count(verdict.service(), verdict.outcome());
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(
        ctx,
        "interface {} service {} outcome {} action {}",
        ctx.ingress_ifindex() as u32,
        verdict.service(),
        verdict.outcome(),
        verdict.action()
    );
    if verdict.action() == xdp_action::XDP_TX
        && maps::settings().is_some_and(|settings| settings.flags & Settings::REDIRECT_BACK != 0)
    {
        // SAFETY: the helper takes any number.
        return unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as u32 };
    }
    verdict.action()
}

#[inline(always)]
fn pipeline<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if packet.is_special() {
        maps::tail_call(ctx, if F::V6 { program::SPECIAL6 } else { program::SPECIAL4 });
        return Verdict::pass(Outcome::NotOurs);
    }
    match classify::classify::<F>(settings, packet) {
        Class::NotOurs => probe::perhaps_reply::<F>(ctx, packet),
        // ---- From here on the frame is ours: it is forwarded, answered, refused or dropped, with a named reason. ----
        Class::ToService(id) => match maps::service(id) {
            Some(service) if service.mode == mode::NAT => nat::to_server::<F>(ctx, settings, packet, id, service),
            Some(service) => dsr::to_server::<F>(ctx, settings, packet, id, service),
            None => Verdict::drop(id, Outcome::Internal),
        },
        Class::ToNatSource => nat::to_client::<F>(ctx, packet),
        Class::FromDnatServer(reply) => dnat::to_client::<F>(ctx, settings, packet, reply),
    }
}

/// What is not a plain TCP or UDP packet: ICMP and later fragments; and our own probes, and their replies.
#[xdp(frags)]
pub fn special4(ctx: XdpContext) -> u32 {
    done(&ctx, with_packet::<V4>(&ctx, special::<V4>))
}

#[xdp(frags)]
pub fn special6(ctx: XdpContext) -> u32 {
    done(&ctx, with_packet::<V6>(&ctx, special::<V6>))
}

#[inline(always)]
fn special<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &Packet<F::Addr>) -> Verdict {
    if packet.is_later_fragment() {
        fragment::later::<F>(ctx, packet)
    } else if packet.protocol == F::ICMP {
        icmp::to_us::<F>(ctx, settings, packet)
    } else if packet.is_special() {
        Verdict::pass(Outcome::NotOurs)
    } else {
        probe::handle::<F>(ctx, settings, packet)
    }
}

/// What no server takes waits with the controller; what it gives back goes on from here.
#[xdp(frags)]
pub fn hold4(ctx: XdpContext) -> u32 {
    done(&ctx, with_packet::<V4>(&ctx, queue::hold::<V4>))
}

#[xdp(frags)]
pub fn hold6(ctx: XdpContext) -> u32 {
    done(&ctx, with_packet::<V6>(&ctx, queue::hold::<V6>))
}

#[xdp(frags)]
pub fn ticket(ctx: XdpContext) -> u32 {
    done(&ctx, queue::take_ticket(&ctx))
}

#[xdp(frags)]
pub fn release4(ctx: XdpContext) -> u32 {
    done(&ctx, release::<V4>(&ctx))
}

#[xdp(frags)]
pub fn release6(ctx: XdpContext) -> u32 {
    done(&ctx, release::<V6>(&ctx))
}

#[inline(always)]
fn release<F: Family>(ctx: &XdpContext) -> Verdict {
    let verdict = with_packet::<F>(ctx, queue::release::<F>);
    // With its ticket still there it was not even a packet.
    if queue::is_released() { queue::not_released() } else { verdict }
}

/// Does something with the parsed packet, which is not on the stack here: IPv6 and the rare paths need that themselves.
#[inline(always)]
fn with_packet<F: Family>(
    ctx: &XdpContext,
    then: impl FnOnce(&XdpContext, &Settings, &Packet<F::Addr>) -> Verdict,
) -> Verdict {
    let (Some(settings), Some(packet)) = (maps::settings(), maps::packet::<Packet<F::Addr>>()) else {
        return Verdict::pass(Outcome::NotOurs);
    };
    // SAFETY: this CPU's own memory, of which there is no other reference in this program.
    let packet = unsafe { &mut *packet };
    if parse_to::<F>(ctx, settings, packet) { then(ctx, settings, packet) } else { Verdict::pass(Outcome::Malformed) }
}

#[inline(never)]
fn parse_to<F: Family>(ctx: &XdpContext, settings: &Settings, packet: &mut Packet<F::Addr>) -> bool {
    let Some((_, l3)) = parse::link(ctx) else {
        return false;
    };
    match F::parse(ctx, parse::opaque(settings, l3)) {
        Some(parsed) => {
            *packet = parsed;
            true
        }
        None => false,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no path reaches this.
    loop {}
}
