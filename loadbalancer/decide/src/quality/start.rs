//! Slow start: a server that is new, was down or was ejected gets its share step by step.

use std::time::Duration;

/// As Envoy's slow start: `min_weight_percent` is 10, growth is linear. The window has no default there; it is as long as
/// the shortest ejection here.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub ramp: Duration,
    /// Share of the weight and of the high-water mark at the beginning.
    pub from: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ramp: Duration::from_secs(30), from: 0.1 }
    }
}

/// Share of its weight and of its high-water mark that a server gets which began at a time; 1 if it never had to.
pub fn share(settings: &Settings, since: Option<Duration>, now: Duration) -> f64 {
    let Some(since) = since else { return 1.0 };
    let passed = now.saturating_sub(since).as_secs_f64();
    let ramp = settings.ramp.as_secs_f64();
    if passed >= ramp { 1.0 } else { settings.from + (1.0 - settings.from) * passed / ramp }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_from_a_tenth_to_all_in_half_a_minute() {
        let began = Some(Duration::from_secs(100));
        for (at, wanted) in [(100, 0.1), (115, 0.55), (130, 1.0), (1_000, 1.0), (90, 0.1)] {
            let share = share(&Settings::default(), began, Duration::from_secs(at));
            assert!((share - wanted).abs() < 1e-9, "at {at} s: {share}");
        }
        assert_eq!(share(&Settings::default(), None, Duration::ZERO), 1.0);
    }

    #[test]
    fn a_ramp_of_no_length_is_none() {
        let settings = Settings { ramp: Duration::ZERO, ..Settings::default() };
        assert_eq!(share(&settings, Some(Duration::ZERO), Duration::ZERO), 1.0);
    }
}
