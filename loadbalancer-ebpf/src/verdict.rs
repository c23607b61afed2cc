//! Verdicts: what a stage decided, before anything is done about it.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::NO_SERVICE;

/// Action, service and outcome in one word: a subprogram can return that in a register. A structure would come back by a
/// pointer to the stack, which the verifier refuses.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Verdict(u64);

impl Verdict {
    /// `action` is an `XDP_*` action.
    #[inline(always)]
    pub fn new(action: u32, service: u16, outcome: Outcome) -> Self {
        Self(((outcome as u64) << 32) | ((service as u64) << 16) | (action as u64 & 0xffff))
    }

    /// Left to the kernel: not ours.
    #[inline(always)]
    pub fn pass(outcome: Outcome) -> Self {
        Self::new(xdp_action::XDP_PASS, NO_SERVICE, outcome)
    }

    #[inline(always)]
    pub fn drop(service: u16, outcome: Outcome) -> Self {
        Self::new(xdp_action::XDP_DROP, service, outcome)
    }

    /// Back out of the interface on which the frame came.
    #[inline(always)]
    pub fn answer(service: u16, outcome: Outcome) -> Self {
        Self::new(xdp_action::XDP_TX, service, outcome)
    }

    #[inline(always)]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The same, with another action.
    #[inline(always)]
    pub fn with_action(self, action: u32) -> Self {
        Self((self.0 & !0xffff) | (action as u64 & 0xffff))
    }

    /// For the same service, something else.
    #[inline(always)]
    pub fn instead(self, action: u32, outcome: Outcome) -> Self {
        Self::new(action, self.service(), outcome)
    }

    #[inline(always)]
    pub fn action(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    #[inline(always)]
    pub fn service(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Index of the outcome.
    #[inline(always)]
    pub fn outcome(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The action that sends a frame out of an interface.
#[inline(always)]
pub fn redirect(ifindex: u32) -> u32 {
    // SAFETY: the helper takes any number; one that is no interface is an aborted frame.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}
