//! Verdicts: what a stage decided, before anything is done about it.

use aya_ebpf::bindings::xdp_action;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::NO_SERVICE;

#[derive(Clone, Copy)]
pub struct Verdict {
    /// An `XDP_*` action.
    pub action: u32,
    pub service: u16,
    pub outcome: Outcome,
}

impl Verdict {
    /// Left to the kernel: not ours.
    #[inline(always)]
    pub fn pass(outcome: Outcome) -> Self {
        Self { action: xdp_action::XDP_PASS, service: NO_SERVICE, outcome }
    }

    #[inline(always)]
    pub fn drop(service: u16, outcome: Outcome) -> Self {
        Self { action: xdp_action::XDP_DROP, service, outcome }
    }

    /// Back out of the interface on which the frame came.
    #[inline(always)]
    pub fn answer(service: u16, outcome: Outcome) -> Self {
        Self { action: xdp_action::XDP_TX, service, outcome }
    }
}
