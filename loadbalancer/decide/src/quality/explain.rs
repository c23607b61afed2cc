//! Why a weight is what it is, for people and for programs.

use std::time::Duration;

use super::eject::Cause;
use super::law::Seen;
use super::signal::{Kind, SelfReport};
use super::window::Window;
use model::ids::ServerId;

/// The servers of a service or tier.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupReport {
    /// Too few servers are in good order: ejected ones serve as well.
    pub panic: bool,
    /// When the last ring was published, in seconds since the start.
    pub published_at_s: Option<f64>,
    pub servers: Vec<ServerReport>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerReport {
    pub server: ServerId,
    pub nominal_weight: u32,
    /// Share of the service's weight now, and in the ring.
    pub share: f64,
    pub published_share: f64,
    /// What the law makes of the nominal weight.
    pub factor: f64,
    /// Share of its weight that slow start gives it.
    pub slow_start: f64,
    pub serving: bool,
    pub up: bool,
    /// No monitor has given anything for a while: the weight is frozen.
    pub stale: bool,
    pub active: u32,
    /// Mean latency over that of the server in the middle; None: too few samples, the weight is frozen.
    pub slowness: Option<f64>,
    /// Standard error of its logarithm.
    pub noise: Option<f64>,
    /// Where the slowness is from.
    pub signal: Option<Kind>,
    /// Slowness with failures counted in: the score.
    pub badness: Option<f64>,
    /// The weight is being moved.
    pub correcting: bool,
    pub signals: Vec<SignalReport>,
    pub self_report: SelfReport,
    /// None: its mark does not follow latency.
    pub mark: Option<MarkReport>,
    pub ejection: Option<EjectionReport>,
    pub last_change: Option<Change>,
}

/// One kind of signal in the last seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignalReport {
    pub kind: Kind,
    /// Successes in the window.
    pub samples: f64,
    pub mean_s: Option<f64>,
    pub p90_s: Option<f64>,
    pub loss: f64,
    pub errors: f64,
}

impl SignalReport {
    pub(super) fn new(kind: Kind, window: &Window) -> Self {
        Self {
            kind,
            samples: window.count(),
            mean_s: window.mean_ns().map(|ns| ns / 1e9),
            p90_s: window.quantile(0.9).as_ref().map(Duration::as_secs_f64),
            loss: window.loss(),
            errors: window.error(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionReport {
    pub cause: Cause,
    pub ends_in_s: f64,
    /// Ejections that count for its length.
    pub count: u32,
}

/// How many flows a server may have at once, as its latency has it. Slow start, `high_water` and its agent may allow
/// less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MarkReport {
    pub flows: u32,
    /// Mean latency while it has few flows; None: not known yet.
    pub baseline_s: Option<f64>,
    /// Mean latency that the mark last followed.
    pub latency_s: Option<f64>,
    /// Where they are from; None: too little is measured, the mark is frozen.
    pub signal: Option<Kind>,
    /// It is lowered for a moment, to measure the baseline.
    pub lowered: bool,
}

/// The last change of a server's share of the ring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Seconds since the controller's start.
    pub at_s: f64,
    pub from: f64,
    pub to: f64,
    pub reason: Reason,
}

/// Why a share changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// It is new, or its configuration changed.
    Configured,
    /// It is slower than its burden allows.
    Slower {
        slowness: f64,
    },
    /// It is faster than its burden asks for.
    Faster {
        slowness: f64,
    },
    /// It fails.
    Failing {
        rate: f64,
    },
    Ejected(Cause),
    EjectionOver,
    /// Too few servers are left to leave it out.
    Panic,
    SlowStart,
    /// Its own word.
    SelfReport,
    /// Its checks fail, or there is no way to it.
    Down,
    /// Others changed.
    Peers,
}

impl Reason {
    /// Of a correction by the law.
    pub(super) fn of(seen: &Seen, falls: bool) -> Self {
        /// Failures that matter more than what latencies tell.
        const MANY: f64 = 0.01;
        match falls {
            true if seen.failures > MANY => Self::Failing { rate: seen.failures },
            true => Self::Slower { slowness: seen.slowness },
            false => Self::Faster { slowness: seen.slowness },
        }
    }
}
