//! The packet path: one XDP program that turns every frame into exactly one verdict.
//!
//! frame -> parse -> classify -> select (affinity, else ring) -> admit -> rewrite -> forward
//!
//! Stages return verdicts; this file alone turns a verdict into what the kernel does and counts it.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "compare-exchange on BPF exists only as an intrinsic")]

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::net::ethertype;
use loadbalancer_common::outcome::Outcome;

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
mod forward;

use classify::Class;
use family::{Family, V4, V6};
use verdict::Verdict;

#[xdp(frags)]
pub fn loadbalancer(ctx: XdpContext) -> u32 {
    let verdict = process(&ctx);
    maps::count(verdict.service, verdict.outcome);
    verdict.action
}

#[inline(always)]
fn process(ctx: &XdpContext) -> Verdict {
    match parse::link(ctx) {
        Some((ethertype::IPV4, l3)) => pipeline::<V4>(ctx, l3),
        Some((ethertype::IPV6, l3)) => pipeline::<V6>(ctx, l3),
        Some(_) => Verdict::pass(Outcome::NotIp),
        None => Verdict::pass(Outcome::Malformed),
    }
}

#[inline(always)]
fn pipeline<F: Family>(ctx: &XdpContext, l3: usize) -> Verdict {
    let Some(settings) = maps::settings() else {
        return Verdict::pass(Outcome::NotOurs);
    };
    let Some(packet) = F::parse(ctx, l3) else {
        return Verdict::pass(Outcome::Malformed);
    };
    if packet.is_special() {
        return special::<F>(ctx, settings, &packet);
    }
    match classify::classify::<F>(settings, &packet) {
        Class::NotOurs => Verdict::pass(Outcome::NotOurs),
        // ---- From here on the frame is ours: it is forwarded, answered, refused or dropped, with a named reason. ----
        Class::ToService(id) => match maps::service(id) {
            Some(service) if service.mode == loadbalancer_common::service::mode::NAT => {
                nat::to_server::<F>(ctx, settings, &packet, id, service)
            }
            Some(service) => dsr::to_server::<F>(ctx, settings, &packet, id, service),
            None => Verdict::drop(id, Outcome::Internal),
        },
        Class::ToNatSource => nat::to_client::<F>(ctx, &packet),
        Class::FromDnatServer(reply) => dnat::to_client::<F>(ctx, settings, &packet, reply),
    }
}

/// What is not a plain TCP or UDP packet: ICMP and later fragments.
#[inline(never)]
fn special<F: Family>(
    ctx: &XdpContext,
    settings: &loadbalancer_common::settings::Settings,
    packet: &parse::Packet<F::Addr>,
) -> Verdict {
    if packet.is_later_fragment() {
        fragment::later::<F>(ctx, packet)
    } else if packet.protocol == F::ICMP {
        icmp::to_us::<F>(ctx, settings, packet)
    } else {
        Verdict::pass(Outcome::NotOurs)
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no path reaches this.
    loop {}
}
