//! Smoothed round-trip time and its variation, as TCP keeps them (RFC 6298, section 2), from the middle one of the last
//! three measurements: one late answer is no news.

use std::time::Duration;

/// Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rtt {
    pub smoothed: f64,
    pub variation: f64,
    /// The two measurements before the next one.
    recent: [f64; 2],
}

impl Rtt {
    /// Takes a measurement into an estimate, or begins one with it.
    pub fn update(estimate: Option<Self>, measured: Duration, gain: f64, variation_gain: f64) -> Self {
        let measured = measured.as_secs_f64();
        match estimate {
            None => Self { smoothed: measured, variation: measured / 2.0, recent: [measured; 2] },
            Some(Self { smoothed, variation, recent: [older, newer] }) => {
                let middle = measured.clamp(older.min(newer), older.max(newer));
                Self {
                    smoothed: smoothed + gain * (middle - smoothed),
                    variation: variation + variation_gain * ((middle - smoothed).abs() - variation),
                    recent: [newer, measured],
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(measured_ms: &[u64]) -> Rtt {
        let take = |rtt, ms: &u64| Some(Rtt::update(rtt, Duration::from_millis(*ms), 0.125, 0.25));
        measured_ms.iter().fold(None, take).expect("there are measurements")
    }

    #[test]
    fn times_are_smoothed_as_in_tcp() {
        for (measured, smoothed, variation) in [
            (&[100][..], 0.1, 0.05),
            // The second one is late, or the first of a new kind: it does not count until the third says which.
            (&[100, 180], 0.1, 0.0375),
            (&[100, 180, 180], 0.11, 0.048_125),
            (&[100, 180, 100], 0.1, 0.028_125),
        ] {
            let rtt = after(measured);
            assert!((rtt.smoothed - smoothed).abs() < 1e-9, "{measured:?}: {rtt:?}");
            assert!((rtt.variation - variation).abs() < 1e-9, "{measured:?}: {rtt:?}");
        }
    }
}
