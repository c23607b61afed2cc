//! The last seconds of one kind of signal.

use std::time::Duration;

use super::signal::{Counts, Failure, Octaves, nanoseconds};

/// Standard deviations within which time-outs are noise.
const SURE: f64 = 2.0;

/// Sums that fade with a time constant, so that the last seconds count most.
#[derive(Clone, Debug, Default)]
pub struct Window {
    octaves: Octaves<f64>,
    sum_ns: f64,
    count: f64,
    /// Of those that were not answered in time: how many, and how long they were waited for.
    late: f64,
    waited_ns: f64,
    losses: f64,
    errors: f64,
    /// When something last came in.
    last: Option<Duration>,
}

impl Window {
    pub fn add(&mut self, result: Result<Duration, Failure>, now: Duration) {
        self.last = Some(now);
        match result {
            Ok(latency) => {
                let ns = nanoseconds(latency);
                self.octaves.buckets[Octaves::<f64>::bucket(ns)] += 1.0;
                self.sum_ns += ns as f64;
                self.count += 1.0;
            }
            Err(Failure::Loss) => self.losses += 1.0,
            Err(Failure::Late(waited)) => {
                self.losses += 1.0;
                self.late += 1.0;
                self.waited_ns += nanoseconds(waited) as f64;
            }
            Err(Failure::Error) => self.errors += 1.0,
        }
    }

    pub fn add_counts(&mut self, counts: &Counts, now: Duration) {
        let count = counts.latencies.count();
        if count + counts.losses + counts.errors == 0 {
            return;
        }
        self.last = Some(now);
        for (sum, count) in self.octaves.buckets.iter_mut().zip(counts.latencies.octaves.buckets) {
            *sum += count as f64;
        }
        self.sum_ns += counts.latencies.sum();
        self.count += count as f64;
        self.losses += counts.losses as f64;
        self.errors += counts.errors as f64;
    }

    /// Lets `elapsed` pass.
    pub fn fade(&mut self, elapsed: Duration, time_constant: Duration) {
        let keep = (-elapsed.as_secs_f64() / time_constant.as_secs_f64()).exp();
        for sum in &mut self.octaves.buckets {
            *sum *= keep;
        }
        let sums = [
            &mut self.sum_ns,
            &mut self.count,
            &mut self.late,
            &mut self.waited_ns,
            &mut self.losses,
            &mut self.errors,
        ];
        for sum in sums {
            *sum *= keep;
        }
    }

    /// Successes that are left.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// Latencies that are left, of those that were waited for in vain too.
    pub fn latencies(&self) -> f64 {
        self.count + self.late
    }

    pub fn last(&self) -> Option<Duration> {
        self.last
    }

    /// Mean latency in nanoseconds; None without samples.
    ///
    /// A time-out is a latency of its length at least, and so much longer than others that a single lost packet would look
    /// like a slow server. So of `k` among `n` only those count that are more than noise: two standard deviations of a
    /// binomial distribution are taken off, which is nothing where all are late.
    pub fn mean_ns(&self) -> Option<f64> {
        let late = self.late - SURE * (self.late * self.count / self.latencies()).sqrt();
        if self.late > 0.0 && late > 0.0 {
            return Some((self.sum_ns + late * self.waited_ns / self.late) / (self.count + late));
        }
        (self.count > 0.0).then(|| self.sum_ns / self.count)
    }

    /// Latency that a share of the samples stays below, within a bucket's factor of 2; None without samples.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        if self.latencies() * share > self.count && self.late > 0.0 {
            // No answer took longer than what was waited for.
            return Some(Duration::from_nanos((self.waited_ns / self.late) as u64));
        }
        self.below(self.latencies() * share)
    }

    /// The same of the answers alone, without those that were waited for in vain.
    pub fn answered_in(&self, share: f64) -> Option<Duration> {
        self.below(self.count * share)
    }

    /// Latency that so many answers stay below.
    fn below(&self, mut below: f64) -> Option<Duration> {
        for (index, count) in self.octaves.buckets.iter().enumerate() {
            if *count > 0.0 && below <= *count {
                return Some(Duration::from_nanos((index as f64 + below / count).exp2() as u64));
            }
            below -= count;
        }
        None
    }

    /// The same with losses counted as answers that take so long at the least.
    pub fn quantile_with_losses(&self, share: f64, lost: Duration) -> Option<Duration> {
        let answered = (self.count + self.losses) * share / self.count;
        if answered <= 1.0 {
            self.answered_in(answered)
        } else {
            (self.losses > 0.0).then(|| lost.max(self.quantile(1.0).unwrap_or_default()))
        }
    }

    /// Takes in what another one has.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.octaves.buckets.iter_mut().zip(&other.octaves.buckets) {
            *sum += more;
        }
        self.sum_ns += other.sum_ns;
        self.count += other.count;
        self.late += other.late;
        self.waited_ns += other.waited_ns;
        self.losses += other.losses;
        self.errors += other.errors;
        self.last = self.last.max(other.last);
    }

    /// Share of losses among all.
    pub fn loss(&self) -> f64 {
        self.rate(self.losses)
    }

    /// Share of errors among all.
    pub fn error(&self) -> f64 {
        self.rate(self.errors)
    }

    /// Share of losses and errors among all.
    pub fn failure(&self) -> f64 {
        self.rate(self.losses + self.errors)
    }

    /// Successes and failures that are left.
    pub fn attempts(&self) -> f64 {
        self.count + self.losses + self.errors
    }

    fn rate(&self, failures: f64) -> f64 {
        if self.attempts() > 0.0 { failures / self.attempts() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAU: Duration = Duration::from_secs(4);

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut window = Window::default();
        for ms in 1..=1000 {
            window.add(Ok(Duration::from_millis(ms)), Duration::ZERO);
        }
        for (share, ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let found = window.quantile(share).expect("there are samples").as_secs_f64() * 1e3;
            assert!((0.5..2.0).contains(&(found / ms)), "{share}: {found} ms");
        }
        assert_eq!(Window::default().quantile(0.9), None);
    }

    #[test]
    fn losses_are_late_answers_if_so_wished() {
        let lost = Duration::from_secs(1);
        for (answers, losses, wanted) in [(0, 0, None), (0, 9, Some(1_000)), (90, 9, Some(10)), (90, 11, Some(1_000))] {
            let mut window = Window::default();
            (0..answers).for_each(|_| window.add(Ok(Duration::from_millis(10)), Duration::ZERO));
            (0..losses).for_each(|_| window.add(Err(Failure::Loss), Duration::ZERO));
            let found = window.quantile_with_losses(0.9, lost).map(|p90| p90.as_millis());
            let near = |(found, wanted): (u128, u128)| (wanted / 2..=wanted * 2).contains(&found);
            assert!(
                found.zip(wanted).is_some_and(near) || (found, wanted) == (None, None),
                "{answers} {losses}: {found:?}"
            );
        }
    }

    #[test]
    fn what_was_long_ago_counts_little() {
        let mut window = Window::default();
        for _ in 0..100 {
            window.add(Ok(Duration::from_millis(100)), Duration::ZERO);
        }
        window.fade(4 * TAU, TAU);
        for _ in 0..100 {
            window.add(Ok(Duration::from_millis(10)), 4 * TAU);
        }
        let mean_ms = window.mean_ns().expect("there are samples") / 1e6;
        assert!((10.0..12.0).contains(&mean_ms), "{mean_ms}");
    }

    #[test]
    fn time_outs_are_latencies_once_they_are_more_than_noise() {
        let mean_ms = |good: u32, late: u32| {
            let mut window = Window::default();
            (0..good).for_each(|_| window.add(Ok(Duration::from_millis(1)), Duration::ZERO));
            (0..late).for_each(|_| window.add(Err(Failure::Late(Duration::from_secs(1))), Duration::ZERO));
            assert_eq!(window.attempts(), f64::from(good + late));
            assert_eq!(window.failure(), f64::from(late) / f64::from(good + late));
            window.mean_ns().expect("there are samples") / 1e6
        };
        for (good, late, from, to) in [
            (40, 0, 1.0, 1.0),
            (40, 1, 1.0, 1.0),
            (40, 3, 1.0, 1.0),
            (40, 8, 50.0, 100.0),
            (10, 10, 300.0, 500.0),
            (0, 5, 1e3, 1e3),
        ] {
            let found = mean_ms(good, late);
            assert!((from - 1e-6..=to + 1e-6).contains(&found), "{late} beside {good}: {found} ms");
        }
    }

    #[test]
    fn quantiles_know_time_outs() {
        let mut window = Window::default();
        (0..8).for_each(|_| window.add(Ok(Duration::from_millis(1)), Duration::ZERO));
        (0..2).for_each(|_| window.add(Err(Failure::Late(Duration::from_millis(300))), Duration::ZERO));
        assert_eq!(window.quantile(0.9), Some(Duration::from_millis(300)));
        assert!(window.quantile(0.5) < Some(Duration::from_millis(3)));
    }

    #[test]
    fn fading_keeps_means_and_rates() {
        let mut window = Window::default();
        window.add(Ok(Duration::from_millis(8)), Duration::ZERO);
        window.add(Err(Failure::Loss), Duration::ZERO);
        window.fade(TAU, TAU);
        let mean_ns = window.mean_ns().expect("there is a sample");
        assert!((mean_ns - 8e6).abs() < 1.0, "{mean_ns}");
        assert!((window.failure() - 0.5).abs() < 1e-9 && (window.loss() - 0.5).abs() < 1e-9);
        assert_eq!(window.error(), 0.0);
    }
}
