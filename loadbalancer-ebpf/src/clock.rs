//! The kernel's monotonic clock.

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use loadbalancer_common::clock::ticks;

/// Coarse time in ticks.
#[inline(always)]
pub fn now() -> u32 {
    ticks(coarse_ns())
}

/// Coarse time in nanoseconds, some milliseconds behind at most.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Time in nanoseconds.
#[inline(always)]
pub fn precise_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}
