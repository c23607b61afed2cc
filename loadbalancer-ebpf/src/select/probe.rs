//! Probes through the real data path: the server that each is for, and what may be the reply to one.
//!
//! Nothing of a probe is kept but a `nat` flow, without which there would be no reply: its packets carry what tells the
//! server, so they need no affinity entry, and are never counted as flows.

use aya_ebpf::bindings::xdp_md;
use loadbalancer_common::backend::Backend;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::settings::program;

use crate::maps;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ingress::from_prober;
use crate::packet::parse::Packet;
use crate::select::choice::Choice;
use crate::verdict::Verdict;

/// The server that a probe is for, whether it may get flows or not.
#[inline(always)]
pub fn server<A>(packet: &Packet<A>, service: u16) -> Choice {
    Choice::from_bits(probe_server(packet.sport.get() as u32, packet.protocol as u32, service as u32))
}

/// See [`server`]. Exported so that the verifier checks it once by itself, not anew for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_server(port: u32, protocol: u32, service: u32) -> u32 {
    if let Some(probe) = maps::probe(port)
        && probe.protocol as u32 == protocol
        && probe.service as u32 == service
        && maps::backend(probe.backend).is_some_and(|backend| backend.has(Backend::PRESENT))
    {
        return Choice::backend(probe.backend).to_bits();
    }
    Choice::refused(Outcome::NoServer).to_bits()
}

/// A packet that is of no flow of ours: perhaps the reply to a probe, of which no flow is kept, or what the responder
/// sends; else the kernel's.
#[inline(always)]
pub fn pass_or_probe_reply<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Verdict {
    if probe_may_be_ours(frame.context(), packet.dport.get() as u32) != 0 {
        tail_call_special::<F>(frame);
    }
    Verdict::pass(Outcome::NotOurs)
}

/// Goes on in another program, as there is no stack left in the first: the one that handles probes.
#[inline(always)]
pub fn tail_call_special<F: Family>(frame: &Frame) {
    maps::tail_call(frame, if F::V6 { program::SPECIAL6 } else { program::SPECIAL4 });
}

/// Whether a packet comes from the prober's namespace, or a port stands for a probe. Exported, as what it needs would
/// be on the caller's stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_may_be_ours(ctx: &xdp_md, port: u32) -> u32 {
    let Some(settings) = maps::settings().filter(|settings| settings.prober != 0) else {
        return 0;
    };
    (from_prober(Frame::of(ctx), settings) || maps::probe(port).is_some()) as u32
}
