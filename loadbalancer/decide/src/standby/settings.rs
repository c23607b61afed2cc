//! What holds for the pool, and for each service that draws on it.

use std::time::Duration;

use super::need::Levels;

/// What holds for the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time until a hook has to have answered.
    pub hook_timeout: Duration,
    /// Time until checks have to pass; a server that serves and is down for as long is taken back.
    pub check_timeout: Duration,
    /// Time until a server is given back although flows are left.
    pub drain_timeout: Duration,
    /// Time that a server rests after it was given back.
    pub cool_down: Duration,
    /// Time that it rests after a failure, times the number of failures on end.
    pub retry_after: Duration,
    /// No longer than this.
    pub retry_most: Duration,
    /// Times that a stop hook is tried.
    pub stop_tries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hook_timeout: Duration::from_secs(60),
            check_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(300),
            cool_down: Duration::from_secs(30),
            retry_after: Duration::from_secs(60),
            retry_most: Duration::from_secs(600),
            stop_tries: 3,
        }
    }
}

/// What holds for a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSettings {
    pub levels: Levels,
    /// How long a level has to be exceeded.
    pub hold: Duration,
    /// Share of each level below which a service has recovered.
    pub recovery: f64,
    /// How long it has to be so; twice as long after each relapse.
    pub recovery_for: Duration,
    /// No longer than this.
    pub recovery_most: Duration,
    /// Time after giving a server back within which needing one is a relapse.
    pub relapse_within: Duration,
    /// Time between one change and the next: slow start takes 30 s.
    pub settle: Duration,
    /// Standby servers that it always has, if the pool permits it.
    pub min: u32,
    pub max: u32,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            levels: Levels::default(),
            hold: Duration::from_secs(10),
            recovery: 0.7,
            recovery_for: Duration::from_secs(120),
            recovery_most: Duration::from_secs(1800),
            relapse_within: Duration::from_secs(600),
            settle: Duration::from_secs(40),
            min: 0,
            max: u32::MAX,
        }
    }
}
