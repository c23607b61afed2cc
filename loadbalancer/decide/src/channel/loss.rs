//! How much is lost, as far as it is sure.
//!
//! One loss says little: of `k` losses the square root of `k` is taken off, their standard deviation. What began a short
//! while ago must not hide behind the good time before it, so each span that ends now is looked at, and the worst counts.

use std::collections::VecDeque;
use std::time::Duration;

/// What was tried, and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub attempts: u64,
    pub losses: u64,
}

/// Counts of the last intervals.
#[derive(Clone, Debug, Default)]
pub struct LossWindow {
    /// Numbers of intervals, attempts in them and how many of these were lost, newest last.
    counts: VecDeque<(u64, u64, u64)>,
    attempts: u64,
    losses: u64,
}

impl LossWindow {
    /// Adds counts and forgets intervals that are too long ago.
    pub fn add(&mut self, attempts: u32, losses: u32, now: Duration, interval: Duration, window: usize) {
        let (attempts, losses) = (u64::from(attempts), u64::from(losses));
        if attempts == 0 {
            return;
        }
        let number = number(now, interval);
        match self.counts.back_mut() {
            Some(last) if last.0 == number => *last = (number, last.1 + attempts, last.2 + losses),
            _ => self.counts.push_back((number, attempts, losses)),
        }
        self.attempts += attempts;
        self.losses += losses;
        while let Some((first, attempts, losses)) = self.counts.front().copied()
            && first + window as u64 <= number
        {
            self.counts.pop_front();
            self.attempts -= attempts;
            self.losses -= losses;
        }
    }

    /// Share of the attempts in the window that were lost.
    pub fn rate(&self) -> f64 {
        if self.attempts == 0 { 0.0 } else { self.losses as f64 / self.attempts as f64 }
    }

    /// Share that is surely lost, in the worst span that ends now and has so many intervals.
    ///
    /// `sure`: standard deviations that are taken off.
    pub fn sure_rate(&self, sure: f64, least_intervals: usize) -> f64 {
        let (mut attempts, mut losses, mut worst) = (0, 0, 0.0f64);
        let last = self.counts.len();
        for (span, (_, some_attempts, some_losses)) in (1..).zip(self.counts.iter().rev()) {
            attempts += some_attempts;
            losses += some_losses;
            if losses > 1 && (span == last || span >= least_intervals) {
                let lost = losses as f64 - sure * (losses as f64).sqrt();
                worst = worst.max(lost / attempts.max(least_intervals as u64) as f64);
            }
        }
        worst.min(1.0)
    }

    /// Share that may be lost at most: two standard deviations more than was in the window, and with no loss three attempts
    /// of all (the "rule of three", 95 %).
    pub fn most(&self) -> f64 {
        let losses = self.losses as f64;
        ((losses + 2.0 * losses.sqrt() + 3.0) / self.attempts.max(1) as f64).min(1.0)
    }

    /// Counts over the last so many intervals until now.
    pub fn last<const N: usize>(&self, intervals: [usize; N], now: Duration, interval: Duration) -> [Counts; N] {
        let newest = number(now, interval);
        let from = intervals.map(|intervals| (newest + 1).saturating_sub(intervals as u64));
        let mut spans = [Counts::default(); N];
        for (number, attempts, losses) in &self.counts {
            for (span, _) in spans.iter_mut().zip(from).filter(|(_, from)| number >= from) {
                span.attempts += attempts;
                span.losses += losses;
            }
        }
        spans
    }
}

fn number(now: Duration, interval: Duration) -> u64 {
    (now.as_nanos() / interval.as_nanos().max(1)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    fn window(lost: &[usize], of: usize) -> LossWindow {
        let mut window = LossWindow::default();
        for probe in 0..of {
            window.add(1, u32::from(lost.contains(&probe)), TICK * probe as u32, TICK, 100);
        }
        window
    }

    #[test]
    fn what_is_sure_grows_with_the_number_of_losses() {
        for (name, lost, of, wanted) in [
            ("none", &[][..], 100, 0.0),
            ("one says nothing", &[99], 100, 0.0),
            ("two just now", &[90, 99], 100, 0.029),
            ("two long ago", &[0, 1], 100, 0.006),
            ("five of a hundred", &[5, 25, 45, 65, 85], 100, 0.029),
            ("forgotten", &[0, 1, 2, 3, 4], 110, 0.0),
        ] {
            let rate = window(lost, of).sure_rate(1.0, 20);
            assert!((rate - wanted).abs() < 0.001, "{name}: {rate}");
        }
    }

    #[test]
    fn a_good_time_before_does_not_hide_what_began_now() {
        let mut window = LossWindow::default();
        for interval in 0..99 {
            window.add(100, 0, TICK * interval, TICK, 100);
        }
        window.add(100, 5, TICK * 99, TICK, 100);
        assert!(window.rate() < 0.001 && window.sure_rate(1.0, 1) > 0.02, "{window:?}");
        assert!(window.sure_rate(1.0, 20) < 0.002, "in a second it may be chance");
    }

    #[test]
    fn probes_and_traffic_of_an_interval_are_counted_together() {
        let mut window = window(&[98, 99], 100);
        window.add(80, 0, TICK * 99, TICK, 100);
        assert!(window.sure_rate(1.0, 20) < 0.008, "{window:?}");
    }

    #[test]
    fn what_may_be_lost_at_most_shrinks_with_attempts() {
        for (name, lost, of, wanted) in [
            ("nothing known", &[][..], 0, 1.0),
            ("few", &[], 10, 0.3),
            ("many", &[], 100, 0.03),
            ("four of a hundred", &[1, 2, 3, 4], 100, 0.11),
        ] {
            let most = window(lost, of).most();
            assert!((most - wanted).abs() < 0.001, "{name}: {most}");
        }
    }

    #[test]
    fn the_last_intervals_are_counted_by_themselves() {
        let window = window(&[1, 85, 99], 100);
        for (now, wanted) in [(99, [(10, 1), (20, 2), (100, 3)]), (114, [(0, 0), (5, 1), (100, 3)])] {
            let counts = window.last([10, 20, 200], TICK * now, TICK);
            assert_eq!(counts.map(|counts| (counts.attempts, counts.losses)), wanted, "at {now}");
        }
    }

    #[test]
    fn a_window_of_nothing_has_lost_nothing() {
        assert_eq!((LossWindow::default().rate(), LossWindow::default().sure_rate(1.0, 20)), (0.0, 0.0));
    }
}
