//! Where a frame came from: a link, our own prober, or the controller, which had it for a while.

use aya_ebpf::bindings::xdp_md;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::queue::Ticket;
use loadbalancer_common::settings::Settings;

use crate::maps;
use crate::packet::cursor::Frame;

/// Whether a frame comes from our own probes.
#[inline(always)]
pub fn from_prober(frame: &Frame, settings: &Settings) -> bool {
    frame.ifindex() == settings.prober
}

/// See [`from_prober`]. Exported, for those who have no stack left for the settings.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ingress_from_prober(ctx: &xdp_md) -> u32 {
    maps::settings().is_some_and(|settings| from_prober(Frame::of(ctx), settings)) as u32
}

/// Interface that the frame at hand came by before the controller had it; zero: the controller did not give it back.
/// Exported, as the verifier takes no pointer that may be of the context or of a map.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ingress_before_queue() -> u32 {
    maps::ticket().map_or(0, |ticket| ticket.get().ifindex)
}

/// Whether the frame at hand was given back by the controller.
#[inline(always)]
pub fn is_released() -> bool {
    ingress_before_queue() != 0
}

/// Puts the interface by which the frame came before the controller had it into the way back.
#[inline(always)]
pub fn restore_ingress(frame: &Frame, hop: &mut LastHop) {
    hop.ifindex = ingress_before_queue();
    hop.mtu = frame.mtu(hop.ifindex);
}

/// So that probes, which come by the same interface, are not taken for what is given back.
#[inline(always)]
pub fn forget_ticket() {
    if let Some(ticket) = maps::ticket() {
        ticket.set(Ticket { ifindex: 0, ..ticket.get() });
    }
}
