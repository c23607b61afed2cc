//! The clocks by which the packet path tells times.

use std::time::Duration;

use loadbalancer_common::clock::ticks;
use nix::time::{ClockId, clock_gettime};

/// Ticks since boot, see [`loadbalancer_common::clock`].
pub fn ticks_now() -> u32 {
    ticks(monotonic().as_nanos() as u64)
}

/// The monotonic clock.
pub fn monotonic() -> Duration {
    // It cannot fail: every kernel has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
