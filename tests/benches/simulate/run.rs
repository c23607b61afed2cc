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
}

/// One second of a run, with its servers in the order of the scenario.
#[derive(Clone, Debug)]
pub struct Moment {
    pub servers: Vec<ServerMoment>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct ServerMoment {
    /// Share of the ring.
    pub weight: f64,
    /// Share of the requests.
    pub load: f64,
    pub requests: u64,
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

    /// Rings published in a span of seconds, per minute.
    pub fn rings_per_minute(&self, seconds: Range<usize>) -> f64 {
        let inside = |at: &&Duration| (seconds.start as f64..seconds.end as f64).contains(&at.as_secs_f64());
        self.rings.iter().filter(inside).count() as f64 * 60.0 / seconds.len() as f64
    }

    /// Most rings that were published within any second.
    pub fn most_rings_in_a_second(&self) -> u32 {
        let within = |from: &Duration| {
            let span = *from..*from + Duration::from_secs(1);
            self.rings.iter().filter(|at| span.contains(at)).count() as u32
        };
        self.rings.iter().map(within).max().unwrap_or(0)
    }
}
