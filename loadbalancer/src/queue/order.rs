//! The order in which waiting connections are served.

use std::time::Duration;

/// Constants of a service's queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Shares of priorities 1 to 5.
    pub weights: [u32; 5],
    /// Standing wait that is taken to be overload, if it lasts for `interval`.
    pub target: Duration,
    pub interval: Duration,
    pub max_entries: usize,
    pub max_per_source: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: [16, 8, 4, 2, 1],
            target: Duration::from_millis(100),
            interval: Duration::from_secs(2),
            max_entries: 10_000,
            max_per_source: 256,
        }
    }
}
