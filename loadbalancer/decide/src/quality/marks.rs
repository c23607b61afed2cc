//! High-water marks that follow from measured latency: how many flows a server may have at once.
//!
//! The law is the gradient of Netflix's concurrency-limits (`Gradient2Limit`; "Performance Under Load", 2018), after
//! TCP Vegas: while latency is within `tolerance` of the baseline, a mark grows by its square root, beyond it shrinks
//! in proportion. By Little's law a server of `S` workers with `m` flows, `m > S`, answers after `m / S` times the
//! baseline, so a mark under standing load ends where `m = tolerance * S + sqrt(m)`.
//!
//! # The baseline
//!
//! Netflix's is a slow mean of the same latency. Here the queue keeps servers at their marks for as long as there is
//! too much load, a mean would come to take that for usual, and the mark would creep up to `max`; so would a minimum
//! over some minutes once they are over. So the baseline is what the server needs while it has few flows, measured
//! again now and then: Envoy's `minRTT` (adaptive concurrency filter), BBR's `ProbeRTT` (draft-ietf-ccwg-bbr).
//!
//! - Few is `mark / (2 * tolerance)`, `min` at least. Were there still more than workers, the mark that followed would
//!   be half of the one before and its square root: marks come down to the knee from wherever they are, and stay.
//! - Where a server has no more than that by itself, all that is measured tells the baseline.
//! - While its mark is what limits it, the mark is lowered to that for a moment: when the baseline is old, when the
//!   mark has fallen to half (as if all had become slower), and when latency is well below the baseline. Flows that do
//!   not end soon are not waited for; then the baseline moves by a tenth towards what is measured.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use super::explain::MarkReport;
use super::signal::{Counts, Kind, Sample};
use super::window::Window;

/// Netflix's defaults are a tolerance of 1.5, a smoothing of 0.2, and 20 to 200 flows; the range is wider here, since
/// flows of all sorts are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub min: u32,
    pub max: u32,
    /// Latency, as a multiple of the usual one, that is not yet taken to be overload.
    pub tolerance: f64,
    /// Share of a new mark in the one that is used.
    pub smoothing: f64,
    /// Age from which a baseline is measured again. Envoy has no default. In simulations of 6 to 64 workers 5 min cost
    /// 0.3 % of the throughput at most with 0.1 s of service, 2.3 % with 1 s.
    pub baseline_age: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { min: 4, max: 1_000, tolerance: 1.5, smoothing: 0.2, baseline_age: Duration::from_secs(300) }
    }
}

/// Least time between updates, a step of the loop.
const LEAST_INTERVAL: Duration = Duration::from_millis(250);
/// Latencies between updates: what a mark has changed is seen once flows that began after it have ended.
const INTERVAL: f64 = 2.0;
/// Netflix's windows have ten samples.
const MIN_SAMPLES: f64 = 10.0;
/// Samples that end a measurement of the baseline, twice Envoy's `request_count`: of exponential latencies they give
/// the mean within a tenth.
const ENOUGH_SAMPLES: f64 = 100.0;
/// Latencies under load after which fewer samples do.
const ENOUGH: f64 = 8.0;
/// Time after that in which not even those came that a mean needs.
const NOTHING: Duration = Duration::from_secs(30);
/// Latencies, and time at least, until the mark is lowered again. Half of them it may take.
const PAUSE: f64 = 20.0;
const LEAST_PAUSE: Duration = Duration::from_secs(10);
/// A measurement of so many samples counts as much as all before.
const KNOWN_SAMPLES: f64 = 10.0;
/// By how much of its distance a baseline falls that is above latency under load: Netflix's 0.95.
const FALL: f64 = 0.05;
/// The same towards latency while flows do not end.
const GROWTH: f64 = 0.1;
/// Latency, as a part of the baseline, that noise does not explain.
const FASTER: f64 = 0.7;
/// Updates in a row with the mark reached, after which it is what limits, and no burst.
const LIMITED: u32 = 4;
/// A given mark is changed for a twentieth: the packet path need not be told of noise.
const NEWS: f64 = 0.05;

/// Latency of a server with few flows.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    latency_s: f64,
    /// When it was measured; None: under load alone.
    known: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Follows,
    /// The mark is lowered; flows beyond are to end by then.
    Drains {
        until: Duration,
    },
    /// What comes in tells the baseline.
    Measures {
        enough: Duration,
        until: Duration,
    },
}

/// The mark of a server.
#[derive(Debug)]
pub struct Mark {
    mark: f64,
    given: u32,
    /// What came in since the last update.
    heard: BTreeMap<Kind, Window>,
    baselines: BTreeMap<Kind, Baseline>,
    kind: Option<Kind>,
    /// Of the last update.
    latency_s: f64,
    /// Most active flows since the last update.
    peak: u32,
    limited: u32,
    /// Largest mark since the baseline was last looked for.
    highest: f64,
    phase: Phase,
    /// Before, nothing is updated.
    due: Duration,
    /// Before, what ends began with another mark.
    settled: Duration,
    /// Before, the mark is not lowered again.
    again: Duration,
}

impl Mark {
    /// Starts at `min`, where the first latency is that of a server with few flows; else the baseline would be one
    /// under load, or the configured mark, which may be far too high. With as many flows as it has already, so that
    /// servers that an earlier controller has left in full work keep it.
    pub fn new(settings: &Settings, active: u32) -> Self {
        let given = settings.min.max(active.min(settings.max));
        Self {
            mark: f64::from(given),
            given,
            heard: BTreeMap::new(),
            baselines: BTreeMap::new(),
            kind: None,
            latency_s: 0.0,
            peak: 0,
            limited: 0,
            highest: f64::from(given),
            phase: Phase::Follows,
            due: Duration::ZERO,
            settled: Duration::ZERO,
            again: Duration::ZERO,
        }
    }

    /// Flows that the server may have now.
    pub fn mark(&self, settings: &Settings) -> u32 {
        if self.is_lowered() { self.few(settings).min(self.given) } else { self.given }
    }

    /// Its mark is lowered to look for the baseline.
    pub fn is_lowered(&self) -> bool {
        self.phase != Phase::Follows
    }

    pub fn sample(&mut self, sample: &Sample, now: Duration) {
        self.heard.entry(sample.kind).or_default().add(sample.result, now);
    }

    pub fn counts(&mut self, counts: &Counts, now: Duration) {
        self.heard.entry(counts.kind).or_default().add_counts(counts, now);
    }

    /// One step of the loop, by the kind of signal that is nearest to clients; None: too little is measured, all stays
    /// as it is. The mark is lowered only if it `may_lower`: not all servers at once.
    pub fn step(&mut self, settings: &Settings, kind: Option<Kind>, active: u32, may_lower: bool, now: Duration) {
        self.peak = self.peak.max(active);
        self.set(self.mark, settings);
        if kind.is_none() || kind != self.kind {
            (self.kind, self.phase, self.limited) = (kind, Phase::Follows, 0);
            self.heard.clear();
        }
        let Some(kind) = kind else { return };
        if now < self.settled {
            self.heard.clear();
            return;
        }
        match self.phase {
            Phase::Follows => self.follow(settings, kind, may_lower, now),
            Phase::Drains { until } => self.drain(settings, kind, active, until, now),
            Phase::Measures { enough, until } => self.measure(kind, enough, until, now),
        }
    }

    pub fn explain(&self, settings: &Settings) -> MarkReport {
        let known = |value: f64| (value > 0.0).then_some(value);
        MarkReport {
            flows: self.mark(settings),
            baseline_s: self.kind.and_then(|kind| self.baselines.get(&kind)).map(|it| it.latency_s),
            latency_s: self.kind.and_then(|_| known(self.latency_s)),
            signal: self.kind,
            lowered: self.is_lowered(),
        }
    }

    /// Flows with which latency is that of a server without load.
    fn few(&self, settings: &Settings) -> u32 {
        ((self.mark / (2.0 * settings.tolerance)) as u32).max(settings.min)
    }

    fn follow(&mut self, settings: &Settings, kind: Kind, may_lower: bool, now: Duration) {
        if now < self.due {
            return;
        }
        let Some((latency_s, samples)) = self.take(kind, MIN_SAMPLES) else { return };
        self.latency_s = latency_s;
        let peak = std::mem::take(&mut self.peak);
        self.due = now + LEAST_INTERVAL.max(Duration::from_secs_f64(INTERVAL * latency_s));
        let idle = peak <= self.few(settings);
        let baseline = self.baselines.entry(kind).or_insert(Baseline { latency_s, known: None });
        let doubted = latency_s < baseline.latency_s * FASTER;
        if idle {
            baseline.learn(latency_s, samples, now);
            self.highest = self.mark;
        } else if latency_s < baseline.latency_s {
            baseline.latency_s += FALL * (latency_s - baseline.latency_s);
        }
        let baseline = *baseline;
        self.limited = if peak >= self.given { self.limited + 1 } else { 0 };
        if f64::from(peak) * 2.0 < self.mark {
            return;
        }
        let gradient = (settings.tolerance * baseline.latency_s / latency_s).clamp(0.5, 1.0);
        let wanted = self.mark * gradient + self.mark.sqrt();
        self.set(self.mark + settings.smoothing * (wanted - self.mark), settings);
        self.highest = self.highest.max(self.mark);
        let old = baseline.known.is_none_or(|at| now.saturating_sub(at) >= settings.baseline_age);
        let fallen = self.mark * 2.0 < self.highest;
        let lowers = may_lower && self.limited >= LIMITED && now >= self.again && self.few(settings) < self.given;
        if lowers && (old || fallen || (doubted && !idle)) {
            // In one latency all have ended that are there.
            self.phase = Phase::Drains { until: now + self.latencies(2.0) + Duration::from_secs(1) };
        }
    }

    fn drain(&mut self, settings: &Settings, kind: Kind, active: u32, until: Duration, now: Duration) {
        self.heard.clear();
        if active <= self.few(settings) {
            // What ends first has waited behind those that have ended now.
            self.settled = now + self.latencies(1.0);
            let enough = self.settled + self.latencies(ENOUGH);
            self.phase = Phase::Measures { enough, until: enough + NOTHING };
        } else if now >= until {
            if let Some(baseline) = self.baselines.get_mut(&kind) {
                baseline.latency_s += GROWTH * (self.latency_s - baseline.latency_s).max(0.0);
                baseline.known = Some(now);
            }
            self.go_on(now);
        }
    }

    fn measure(&mut self, kind: Kind, enough: Duration, until: Duration, now: Duration) {
        let least = if now >= enough { MIN_SAMPLES } else { ENOUGH_SAMPLES };
        if let Some((latency_s, samples)) = self.take(kind, least) {
            let baseline = self.baselines.entry(kind).or_insert(Baseline { latency_s, known: None });
            let was_far_off = latency_s < baseline.latency_s * FASTER;
            baseline.learn(latency_s, samples, now);
            if was_far_off {
                // The mark was far too high, and so may be a part of it.
                baseline.known = None;
            }
            self.go_on(now);
        } else if now >= until {
            self.go_on(now);
        }
    }

    /// With the mark as it was.
    fn go_on(&mut self, now: Duration) {
        self.phase = Phase::Follows;
        self.highest = self.mark;
        (self.limited, self.peak) = (0, 0);
        self.settled = now + self.latencies(1.0);
        self.due = self.settled;
        self.again = now + self.latencies(PAUSE).max(LEAST_PAUSE);
    }

    /// So many of the last latencies.
    fn latencies(&self, count: f64) -> Duration {
        Duration::from_secs_f64(self.latency_s * count)
    }

    /// Mean latency in seconds and number of samples since the last time, if there are as many.
    fn take(&mut self, kind: Kind, least: f64) -> Option<(f64, f64)> {
        let window = self.heard.get(&kind).filter(|window| window.latencies() >= least)?;
        let found = (window.mean_ns().filter(|mean| *mean > 0.0)? / 1e9, window.latencies());
        self.heard.clear();
        Some(found)
    }

    fn set(&mut self, mark: f64, settings: &Settings) {
        let (min, max) = (f64::from(settings.min), f64::from(settings.max));
        self.mark = mark.clamp(min, max);
        let given = f64::from(self.given);
        let at_bound = self.mark <= min || self.mark >= max;
        let within = (min..=max).contains(&given);
        if at_bound || !within || (self.mark - given).abs() >= (NEWS * given).max(0.5) {
            self.given = self.mark.round() as u32;
        }
    }
}

impl Baseline {
    fn learn(&mut self, latency_s: f64, samples: f64, now: Duration) {
        let share = if self.known.is_none() { 1.0 } else { samples / (samples + KNOWN_SAMPLES) };
        self.latency_s += share * (latency_s - self.latency_s);
        self.known = Some(now);
    }
}
