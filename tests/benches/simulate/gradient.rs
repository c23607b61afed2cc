//! The law that was planned first, to compare the present one with: peak EWMA of each window's 90th percentile, the square
//! root of its ratio to the median as a factor between 0.95 and 1.01 per step of 250 ms.

use std::time::Duration;

use decide::quality::measure::lower_median;
use decide::quality::signal::{Counts, Kind};
use decide::quality::window::Window;

use super::tally::Tally;
use model::ids::ServerId;

const TICK_S: f64 = 0.25;
const TAU_S: f64 = 10.0;
const FAILURE_GAIN: f64 = 10.0;
const DEADBAND: f64 = 0.1;

pub struct Gradient {
    peaks: Vec<Option<f64>>,
    failures: Vec<f64>,
    weights: Vec<f64>,
    published: Vec<f64>,
    published_at: Option<Duration>,
}

impl Gradient {
    pub fn new(servers: usize) -> Self {
        Self {
            peaks: vec![None; servers],
            failures: vec![0.0; servers],
            weights: vec![1.0; servers],
            published: vec![1.0; servers],
            published_at: None,
        }
    }

    pub fn measure(&mut self, server: usize, tally: &Tally) {
        let mut window = Window::default();
        let latencies = tally.latencies.clone();
        let counts = Counts {
            target: ServerId::numbered(0).into(),
            kind: Kind::Response,
            latencies,
            losses: tally.losses,
            errors: 0,
        };
        window.add_counts(&counts, Duration::ZERO);
        for probe in &tally.probes {
            window.add(*probe, Duration::ZERO);
        }
        let Some(p90) = window.quantile(0.9).map(|p90| p90.as_secs_f64()) else { return };
        let keep = (-TICK_S / TAU_S).exp();
        let peak =
            self.peaks[server].map_or(p90, |peak| if p90 > peak { p90 } else { peak * keep + p90 * (1.0 - keep) });
        self.peaks[server] = Some(peak);
        self.failures[server] = self.failures[server] * keep + window.failure() * (1.0 - keep);
    }

    /// New weights, if a ring is due.
    pub fn step(&mut self, now: Duration) -> Option<Vec<f64>> {
        let median = lower_median(self.peaks.iter().flatten().copied())?;
        for ((weight, peak), failures) in self.weights.iter_mut().zip(&self.peaks).zip(&self.failures) {
            let Some(peak) = peak else { continue };
            let ratio = median / (peak * (1.0 + FAILURE_GAIN * failures));
            if (ratio - 1.0).abs() > DEADBAND {
                *weight = (*weight * ratio.sqrt().clamp(0.95, 1.01)).max(0.01);
            }
        }
        let scale = self.weights.len() as f64 / self.weights.iter().sum::<f64>();
        self.weights.iter_mut().for_each(|weight| *weight = (*weight * scale).max(0.01));
        let moved = self.weights.iter().zip(&self.published).any(|(now, then)| (now / then - 1.0).abs() > 0.05);
        let due = self.published_at.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1));
        if !(moved && due) {
            return None;
        }
        self.published_at = Some(now);
        self.published.clone_from(&self.weights);
        Some(self.weights.clone())
    }
}
