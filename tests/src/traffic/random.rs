//! Random numbers for times that pass between independent events.

use fastrand::Rng;

/// A random number of exponential distribution with mean 1.
pub(super) fn exponential(random: &mut Rng) -> f64 {
    // Not zero, which has no logarithm.
    -(1.0 - random.f64()).ln()
}
