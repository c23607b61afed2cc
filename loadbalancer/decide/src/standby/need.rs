//! Whether a service does as it should.

use std::fmt;
use std::time::Duration;

use crate::quality::group::Level;

/// Quality that a service is to have; what is None is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Levels {
    /// 90th percentile of latency.
    pub p90: Option<Duration>,
    /// Share of requests that fail.
    pub failures: Option<f64>,
    /// Active flows per weight of the servers that serve.
    pub load: Option<f64>,
}

/// A quantity beside its level: in what a service is worse than it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breach {
    pub of: Quantity,
    /// In seconds, as a share, or in flows per weight.
    pub value: f64,
    pub level: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    P90,
    Failures,
    Load,
    /// No server serves at all; that is never as it should be.
    Servers,
}

impl Breach {
    pub fn ratio(&self) -> f64 {
        if self.of == Quantity::Servers { f64::INFINITY } else { self.value / self.level }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds: f64| Duration::from_micros((seconds * 1e6) as u64);
        let (value, level) = (self.value, self.level);
        match self.of {
            Quantity::P90 => write!(f, "p90 {:?} above {:?}", time(value), time(level)),
            Quantity::Failures => write!(f, "failures {:.1} % above {:.1} %", 100.0 * value, 100.0 * level),
            Quantity::Load => write!(f, "{value:.1} active flows per weight, above {level:.1}"),
            Quantity::Servers => f.write_str("no server of its own serves"),
        }
    }
}

/// Active flows per weight.
pub fn load(level: &Level) -> f64 {
    per_weight(level.active, level.weight)
}

fn per_weight(active: u64, weight: u64) -> f64 {
    if weight == 0 { f64::INFINITY } else { active as f64 / weight as f64 }
}

/// What is worst in comparison with its level; None: all is as it should be, or not known.
pub fn breach(levels: &Levels, level: &Level) -> Option<Breach> {
    nearest(levels, level).filter(|worst| worst.of == Quantity::Servers || worst.value > worst.level)
}

/// The same, whether it is beyond its level or not; None: nothing is known.
pub fn nearest(levels: &Levels, level: &Level) -> Option<Breach> {
    if level.weight == 0 {
        return Some(Breach { of: Quantity::Servers, value: 0.0, level: 1.0 });
    }
    let seconds = |time: Duration| time.as_secs_f64();
    let p90 = level.p90.map(seconds).zip(levels.p90.map(seconds)).map(|(value, level)| (Quantity::P90, value, level));
    let failures = levels.failures.map(|wanted| (Quantity::Failures, level.failures, wanted));
    let load = levels.load.map(|wanted| (Quantity::Load, load(level), wanted));
    let all = [p90, failures, load].into_iter().flatten().map(|(of, value, level)| Breach { of, value, level });
    all.max_by(|one, other| one.ratio().total_cmp(&other.ratio()))
}

/// Whether all is so much better than it should be, `share` of each level, that a server of some weight can be spared.
///
/// The load is that which the others would have. What latency they would have nobody knows; without any traffic it does
/// not matter.
pub fn is_recovered(levels: &Levels, level: &Level, share: f64, spared_weight: u64) -> bool {
    let p90 = levels.p90.is_none_or(|wanted| match level.p90 {
        Some(p90) => p90 <= wanted.mul_f64(share),
        None => level.active == 0,
    });
    let failures = levels.failures.is_none_or(|wanted| level.failures <= wanted * share);
    let left = level.weight.saturating_sub(spared_weight);
    let load = levels.load.is_none_or(|wanted| per_weight(level.active, left) <= wanted * share);
    p90 && failures && load && left > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: Levels = Levels { p90: Some(Duration::from_millis(100)), failures: Some(0.02), load: Some(50.0) };

    fn level(p90_ms: Option<u64>, failures: f64, active: u64, weight: u64) -> Level {
        Level { p90: p90_ms.map(Duration::from_millis), failures, active, weight }
    }

    #[test]
    fn the_worst_quantity_is_told_and_what_is_unknown_is_not_bad() {
        for (name, level, wanted) in [
            ("all good", level(Some(100), 0.02, 100, 2), None),
            ("slow", level(Some(101), 0.0, 0, 2), Some(Quantity::P90)),
            ("failing more than slow", level(Some(200), 0.06, 0, 2), Some(Quantity::Failures)),
            ("loaded", level(None, 0.0, 101, 2), Some(Quantity::Load)),
            ("unknown", level(None, 0.0, 0, 2), None),
            ("none serves", level(None, 0.0, 0, 0), Some(Quantity::Servers)),
        ] {
            assert_eq!(breach(&LEVELS, &level).map(|breach| breach.of), wanted, "{name}");
        }
        assert_eq!(breach(&Levels::default(), &level(Some(10_000), 1.0, 1_000, 1)), None, "no level is set");
    }

    #[test]
    fn a_server_is_spared_only_if_the_others_can_do_its_work() {
        for (name, level, wanted) in [
            ("idle", level(Some(10), 0.0, 0, 2), true),
            ("no traffic", level(None, 0.0, 0, 2), true),
            ("latency not known", level(None, 0.0, 10, 2), false),
            ("still slow", level(Some(71), 0.0, 10, 2), false),
            ("still failing", level(Some(10), 0.015, 10, 2), false),
            ("35 for one is right", level(Some(10), 0.0, 35, 2), true),
            ("36 for one is too much", level(Some(10), 0.0, 36, 2), false),
            ("nobody else is there", level(Some(10), 0.0, 0, 1), false),
        ] {
            assert_eq!(is_recovered(&LEVELS, &level, 0.7, 1), wanted, "{name}");
        }
    }
}
