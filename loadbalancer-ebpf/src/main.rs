//! The packet path: one XDP program that turns every frame into exactly one verdict.
//!
//! Stages return verdicts; this file alone turns a verdict into what the kernel does and counts it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "compare-exchange on BPF exists only as an intrinsic")]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::settings::Settings;

mod clock;
mod packed;
mod maps;
mod verdict;
mod packet;
mod observe;
mod flow;
mod select;
mod egress;
mod mode;
mod special;
mod pipeline;

use packet::cursor::Frame;
use packet::ipv4::V4;
use packet::ipv6::V6;
use special::{hold, release};
use verdict::{Verdict, redirect};

/// Every frame comes in here.
#[xdp(frags)]
pub fn loadbalancer(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::begin(Frame::of_program(&mut ctx));
    done(&mut ctx, verdict)
}

/// IPv6 and what is rare are programs of their own, so that each gets the verifier's full budget of steps and stack. If
/// one is missing, its frames are left to the kernel.
#[xdp(frags)]
pub fn ipv6(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::with_packet::<V6>(Frame::of_program(&mut ctx), pipeline::stages::<V6>);
    done(&mut ctx, verdict)
}

/// What is not a plain TCP or UDP packet: ICMP and later fragments; and our own probes, and their replies.
#[xdp(frags)]
pub fn special4(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::with_packet::<V4>(Frame::of_program(&mut ctx), pipeline::special::<V4>);
    done(&mut ctx, verdict)
}

#[xdp(frags)]
pub fn special6(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::with_packet::<V6>(Frame::of_program(&mut ctx), pipeline::special::<V6>);
    done(&mut ctx, verdict)
}

/// What no server takes waits with the controller; what it gives back goes on from here.
#[xdp(frags)]
pub fn hold4(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::with_packet::<V4>(Frame::of_program(&mut ctx), hold::handle::<V4>);
    done(&mut ctx, verdict)
}

#[xdp(frags)]
pub fn hold6(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::with_packet::<V6>(Frame::of_program(&mut ctx), hold::handle::<V6>);
    done(&mut ctx, verdict)
}

#[xdp(frags)]
pub fn ticket(mut ctx: XdpContext) -> u32 {
    let verdict = release::take_ticket(Frame::of_program(&mut ctx));
    done(&mut ctx, verdict)
}

#[xdp(frags)]
pub fn release4(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::released::<V4>(Frame::of_program(&mut ctx));
    done(&mut ctx, verdict)
}

#[xdp(frags)]
pub fn release6(mut ctx: XdpContext) -> u32 {
    let verdict = pipeline::released::<V6>(Frame::of_program(&mut ctx));
    done(&mut ctx, verdict)
}

/// Counts the frame: the one place where that happens.
#[inline(always)]
fn done(ctx: &mut XdpContext, verdict: Verdict) -> u32 {
    maps::count(verdict.service(), verdict.outcome());
    let ifindex = Frame::of_program(ctx).ifindex();
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(
        ctx,
        "interface {} service {} outcome {} action {}",
        ifindex,
        verdict.service(),
        verdict.outcome(),
        verdict.action()
    );
    if verdict.action() == xdp_action::XDP_TX
        && maps::settings().is_some_and(|settings| settings.flags & Settings::REDIRECT_BACK != 0)
    {
        return redirect(ifindex);
    }
    verdict.action()
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no path reaches this.
    loop {}
}
