//! Coarse time: the unit in which idle flows age.
//!
//! A tick is 2^32 ns (about 4.295 s), so that the packet path gets it from the kernel's coarse monotonic clock with one
//! shift. The affinity table keeps 13 bits of it (about 9.8 h), which is why no idle time-out may exceed [`MAX_TICKS`].

/// Bits that an affinity entry keeps of the tick count.
pub const TIME_BITS: u32 = 13;
pub const TIME_MASK: u16 = (1 << TIME_BITS) - 1;

/// The longest idle time-out, in ticks: with more, a time in the past could not be told from one in the future.
pub const MAX_TICKS: u16 = 1 << (TIME_BITS - 1);

/// Ticks since boot, from the monotonic clock in nanoseconds.
#[inline(always)]
pub const fn ticks(monotonic_ns: u64) -> u32 {
    (monotonic_ns >> 32) as u32
}

/// Ticks that cover a time of `seconds`, rounded up and at least one.
pub const fn ticks_of_seconds(seconds: u64) -> u64 {
    let ticks = (seconds * 1_000_000_000).div_ceil(1 << 32);
    if ticks == 0 { 1 } else { ticks }
}

/// Seconds that a number of ticks lasts, rounded down.
pub const fn seconds_of_ticks(ticks: u64) -> u64 {
    (ticks << 32) / 1_000_000_000
}

/// Age in ticks of a 13-bit time, as seen at `now`.
#[inline(always)]
pub const fn age(now: u16, then: u16) -> u16 {
    now.wrapping_sub(then) & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_covers_its_time() {
        assert_eq!(ticks_of_seconds(0), 1);
        assert_eq!(ticks_of_seconds(4), 1);
        assert_eq!(ticks_of_seconds(5), 2);
        assert!(seconds_of_ticks(ticks_of_seconds(7440)) >= 7440);
    }

    #[test]
    fn age_survives_the_wrap() {
        assert_eq!(age(2, TIME_MASK), 3);
        assert_eq!(age(7, 7), 0);
    }
}
