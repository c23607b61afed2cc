//! What came of a simulation.

use std::ops::Range;
use std::time::Duration;

/// A run of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Latencies in seconds, by the second in which the request came. What never ended counts as long as it had waited.
    pub latencies: Vec<Vec<f32>>,
    /// One moment for each second.
    pub series: Vec<Moment>,
    /// When new rings were published.
    pub rings: Vec<Duration>,
    /// When servers were ejected, with their places in the scenario.
    pub ejections: Vec<(Duration, usize)>,
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

/// One second of a run.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Its end.
    pub at: Duration,
    /// In the order of the scenario.
    pub servers: Vec<ServerMoment>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ServerMoment {
    /// Share of the ring.
    pub weight: f64,
    /// Share of the requests.
    pub load: f64,
    pub active: u32,
    /// Mean of the requests that ended, in seconds.
    pub latency: f64,
}

impl Run {
    /// Latency in seconds that a share of the requests stayed below which came in a span of seconds.
    pub fn quantile(&self, seconds: Range<usize>, share: f64) -> f64 {
        let end = seconds.end.min(self.latencies.len());
        let mut all: Vec<f32> = self.latencies[seconds.start.min(end)..end].iter().flatten().copied().collect();
        if all.is_empty() {
            return 0.0;
        }
        let place = ((all.len() - 1) as f64 * share) as usize;
        let (_, value, _) = all.select_nth_unstable_by(place, f32::total_cmp);
        f64::from(*value)
    }

    /// Mean share of the requests that a server got in a span of seconds.
    pub fn load(&self, server: usize, seconds: Range<usize>) -> f64 {
        let end = seconds.end.min(self.series.len());
        let span = &self.series[seconds.start.min(end)..end];
        span.iter().map(|moment| moment.servers[server].load).sum::<f64>() / span.len().max(1) as f64
    }

    /// Largest difference of a server's weight from its mean over a span of seconds, as a part of it.
    pub fn largest_deviation(&self, server: usize, seconds: Range<usize>) -> f64 {
        let end = seconds.end.min(self.series.len());
        let weights = || self.series[seconds.start.min(end)..end].iter().map(|moment| moment.servers[server].weight);
        let mean = weights().sum::<f64>() / weights().count().max(1) as f64;
        weights().map(|weight| (weight / mean - 1.0).abs()).fold(0.0, f64::max)
    }

    /// Seconds after a moment from which on the 99th percentile of each second stays below a bound, except in one second
    /// of ten; None if that is never so.
    pub fn recovered_after(&self, moment: usize, until: usize, bound_s: f64) -> Option<usize> {
        let good: Vec<bool> = (moment..until).map(|at| self.quantile(at..at + 1, 0.99) <= bound_s).collect();
        (0..good.len()).find(|from| {
            let rest = &good[*from..];
            rest[0] && rest.iter().filter(|good| !**good).count() * 10 <= rest.len()
        })
    }

    /// Rings published in a span of seconds, per minute.
    pub fn rings_per_minute(&self, seconds: Range<usize>) -> f64 {
        let inside = |at: &&Duration| (seconds.start as f64..seconds.end as f64).contains(&at.as_secs_f64());
        self.rings.iter().filter(inside).count() as f64 * 60.0 / seconds.len() as f64
    }
}
