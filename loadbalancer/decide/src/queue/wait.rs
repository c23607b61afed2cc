//! How long was waited: counts in buckets that tell quantiles to an eighth.

use std::time::Duration;

/// As far as 2^32 µs, which is 71 minutes.
const BUCKETS: usize = 240;
/// Microseconds, in eight buckets for each octave.
type Eighths = loadbalancer_common::histogram::Histogram<u64, BUCKETS, 0, 3>;

/// What is remembered is between one and two of these.
const HALF: Duration = Duration::from_secs(30);

/// Waits that were counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    eighths: Eighths,
    count: u64,
}

/// Quantiles of the last minute (30 to 60 s of it), and sums of all time.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// The half that is being filled, and since when.
    present: Histogram,
    since: Duration,
    before: Histogram,
    count: u64,
    sum: Duration,
}

fn bucket(wait: Duration) -> usize {
    Eighths::bucket(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX))
}

impl Histogram {
    /// Counts a wait; longer ones as 71 minutes.
    pub fn record(&mut self, wait: Duration) {
        self.eighths.buckets[bucket(wait)] += 1;
        self.count += 1;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Forgets a wait that was counted.
    fn remove(&mut self, wait: Duration) {
        let count = &mut self.eighths.buckets[bucket(wait)];
        if *count > 0 {
            *count -= 1;
            self.count -= 1;
        }
    }

    /// Wait that a share of all stays below, within a bucket's eighth; None: nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let mut below = share.clamp(0.0, 1.0) * self.count as f64;
        let filled = || self.eighths.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        for (index, count) in filled() {
            let count = *count as f64;
            if below <= count {
                let (least, width) = Eighths::bounds(index);
                return Some(Duration::from_nanos(((least as f64 + width as f64 * below / count) * 1e3) as u64));
            }
            below -= count;
        }
        // Differences of large counts are not exact, and a share may be no number.
        filled()
            .next_back()
            .map(|(index, _)| Eighths::bounds(index))
            .map(|(least, width)| Duration::from_micros(least + width))
    }

    /// Takes in what another one has.
    pub fn merge(&mut self, other: &Self) {
        self.eighths.merge(&other.eighths);
        self.count += other.count;
    }
}

impl Recent {
    pub fn record(&mut self, wait: Duration, now: Duration) {
        let halves = self.halves_since(now);
        if halves > 0 {
            let present = std::mem::take(&mut self.present);
            self.before = if halves == 1 { present } else { Histogram::default() };
            self.since += HALF * halves;
        }
        self.present.record(wait);
        self.count += 1;
        self.sum = self.sum.saturating_add(wait);
    }

    /// Forgets a wait that was recorded a moment ago: it has not ended after all.
    pub fn take_back(&mut self, wait: Duration) {
        self.present.remove(wait);
        self.count = self.count.saturating_sub(1);
        self.sum = self.sum.saturating_sub(wait);
    }

    /// Wait that a share of those of the last minute stays below; None: there were none.
    pub fn quantile(&self, share: f64, now: Duration) -> Option<Duration> {
        match self.halves_since(now) {
            0 => {
                let mut both = self.before.clone();
                both.merge(&self.present);
                both.quantile(share)
            }
            1 => self.present.quantile(share),
            _ => None,
        }
    }

    /// How many there were of all time.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all time.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Whole halves that have passed.
    fn halves_since(&self, now: Duration) -> u32 {
        let halves = now.saturating_sub(self.since).as_nanos() / HALF.as_nanos();
        u32::try_from(halves).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn buckets_join_without_gap_and_reach_seventy_one_minutes() {
        let mut end = 0;
        for index in 0..BUCKETS {
            let (least, width) = Eighths::bounds(index);
            assert_eq!(least, end, "bucket {index}");
            for us in [least, least + width - 1] {
                assert_eq!(bucket(Duration::from_micros(us)), index, "{us} µs");
            }
            assert!(width == 1 || width * 8 <= least, "bucket {index} is wider than an eighth");
            end = least + width;
        }
        assert_eq!(end, 1 << 32);
        for long in [Duration::from_micros(end), Duration::MAX] {
            assert_eq!(bucket(long), BUCKETS - 1);
        }
    }

    #[test]
    fn recent_quantiles_forget_after_a_minute_and_sums_do_not() {
        let mut recent = Recent::default();
        let p50 = |recent: &Recent, second: u32| recent.quantile(0.5, second * SECOND).map(|wait| wait.as_secs());
        assert_eq!(p50(&recent, 0), None);
        recent.record(8 * SECOND, 10 * SECOND);
        for (second, wanted) in [(10, Some(8)), (59, Some(8)), (60, None), (1_000_000, None)] {
            assert_eq!(p50(&recent, second), wanted, "after {second} s");
        }
        // A younger one keeps only itself.
        recent.record(2 * SECOND, 40 * SECOND);
        assert!(recent.quantile(1.0, 59 * SECOND) > Some(8 * SECOND));
        assert!(recent.quantile(1.0, 60 * SECOND) < Some(3 * SECOND));
        recent.record(SECOND, 500 * SECOND);
        assert_eq!(p50(&recent, 500), Some(1));
        assert_eq!((recent.count(), recent.sum()), (3, 11 * SECOND));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_bucket(
            mut waits in prop::collection::vec(0u64..1 << 33, 1..300),
            share in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            waits.iter().for_each(|us| histogram.record(Duration::from_micros(*us)));
            waits.sort_unstable();
            let rank = (share * waits.len() as f64).ceil() as usize;
            let exact = (waits[rank.saturating_sub(1)]).min((1 << 32) - 1) as f64;
            let found = histogram.quantile(share).expect("there are samples").as_secs_f64() * 1e6;
            prop_assert!((found - exact).abs() <= exact / 8.0 + 1.0, "{found} instead of {exact}");
        }
    }

    #[test]
    fn shares_that_are_none_do_no_harm() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.record(Duration::from_micros(3));
        for share in [f64::NAN, -1.0, 0.0, 1.0, 7.0] {
            let found = histogram.quantile(share).expect("there is a sample").as_nanos();
            assert!((3_000..=4_000).contains(&found), "{share}: {found} ns");
        }
    }
}
