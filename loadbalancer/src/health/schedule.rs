//! When probes start: spread evenly over the interval, then one interval apart, for ever.

use std::time::{Duration, Instant};

/// 2^64 divided by the golden ratio. Multiples of it, modulo 2^64, lie as evenly as any sequence can after each step
/// (Knuth, The Art of Computer Programming, volume 3, section 6.4).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Deals out the delays of first probes, so that however many checks there are, they start evenly spread.
#[derive(Clone, Debug)]
pub struct Spread {
    /// In parts of 2^64 of an interval.
    position: u64,
}

impl Spread {
    /// `seed` sets where the first one lies, so that gateways started together do not ask the same server together.
    pub fn new(seed: u64) -> Self {
        Self { position: seed }
    }

    /// Delay of the next check's first probe: from zero to less than `interval`, which may be up to 584 years.
    pub fn next_delay(&mut self, interval: Duration) -> Duration {
        self.position = self.position.wrapping_add(STEP);
        let nanoseconds = (u128::from(whole_nanoseconds(interval)) * u128::from(self.position)) >> 64;
        Duration::from_nanos(nanoseconds as u64)
    }
}

/// First probes are put together by this much: most of what a probe costs is that the processor wakes up for it, and that
/// is once for all that are due at one time.
pub const BATCH: Duration = Duration::from_millis(10);

/// The moment on the grid that all checks share, which began at `epoch`, at or before `moment`. Checks whose interval is a
/// multiple of [`BATCH`] stay on it.
pub fn batched(epoch: Instant, moment: Instant) -> Instant {
    let since = whole_nanoseconds(moment.saturating_duration_since(epoch));
    epoch + Duration::from_nanos(since - since % whole_nanoseconds(BATCH))
}

/// The first of `first`, `first + interval`, ... that lies after `now`. Slots that were missed are not made up for, and
/// the grid never shifts.
pub fn next_slot(first: Instant, interval: Duration, now: Instant) -> Instant {
    let Some(elapsed) = now.checked_duration_since(first) else {
        return first;
    };
    let interval = whole_nanoseconds(interval).max(1);
    now + Duration::from_nanos(interval - whole_nanoseconds(elapsed) % interval)
}

fn whole_nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn first_probes_are_evenly_spread_for_any_number_of_checks(seed: u64, checks in 20usize..2_000) {
            const PARTS: usize = 10;
            let interval = Duration::from_secs(1);
            let mut spread = Spread::new(seed);
            let mut starts = [0usize; PARTS];
            for _ in 0..checks {
                let delay = spread.next_delay(interval);
                prop_assert!(delay < interval);
                starts[delay.as_millis() as usize * PARTS / 1_000] += 1;
            }
            for count in starts {
                prop_assert!(count.abs_diff(checks / PARTS) <= 4, "{:?}", starts);
            }
        }

        #[test]
        fn next_slot_is_the_first_of_the_grid_after_now(interval in 1u64..100_000_000_000, rounds in 0u32..1_000, late in 0u64..100_000_000_000) {
            let first = Instant::now();
            let step = Duration::from_nanos(interval);
            let late = Duration::from_nanos(late % interval);
            let now = first + step * rounds + late;
            prop_assert_eq!(next_slot(first, step, now), first + step * (rounds + 1));
        }
    }

    #[test]
    fn moments_are_put_together_on_a_grid() {
        let epoch = Instant::now();
        for (moment, expected) in [(0, 0), (9_999, 0), (10_000, 10_000), (10_001, 10_000), (1_234_567, 1_230_000)] {
            let at = |us| epoch + Duration::from_micros(us);
            assert_eq!(batched(epoch, at(moment)), at(expected));
        }
    }

    #[test]
    fn before_the_first_slot_the_first_is_next() {
        let now = Instant::now();
        let first = now + Duration::from_secs(3);
        assert_eq!(next_slot(first, Duration::from_secs(1), now), first);
    }
}
