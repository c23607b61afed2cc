//! What is counted of a server, for the loop to follow.

use std::time::Duration;

use decide::quality::signal::{Failure, Histogram};

/// What was counted of a server since the last tick.
#[derive(Clone, Default)]
pub struct Tally {
    pub latencies: Histogram,
    pub losses: u64,
    pub probes: Vec<Result<Duration, Failure>>,
}
