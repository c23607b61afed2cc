//! Who has which standby server, and why.

use std::time::Duration;

use super::keys::{ServiceKey, StandbyKey};
use super::need::Breach;
use super::reason::{Problem, Why};

/// The pool and the services that share it.
#[derive(Clone, Debug, PartialEq)]
pub struct StandbyReport {
    pub servers: Vec<ServerReport>,
    pub services: Vec<ServiceReport>,
}

/// A server of the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerReport {
    pub server: StandbyKey,
    pub weight: u32,
    pub state: Phase,
    pub since: Duration,
    /// Who has it, and what for.
    pub service: Option<ServiceKey>,
    pub why: Option<Why>,
    /// Live flows, as last told.
    pub flows: Option<u64>,
    /// When it can be leased again, if it is cooling down.
    pub free_in: Option<Duration>,
    /// Failures since it last served, and the last one.
    pub failures: u32,
    pub last_problem: Option<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// The start hook runs.
    Starting,
    /// Checks are to pass before it serves.
    Checking,
    Serving,
    /// No new flows; live ones finish.
    Draining,
    /// The stop hook runs.
    Stopping,
    /// It could not be started, checked or stopped; it cools down.
    Failed,
}

impl Phase {
    /// As documents and metrics call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Checking => "checking",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceReport {
    pub service: ServiceKey,
    pub leases: Vec<StandbyKey>,
    pub min: u32,
    pub max: u32,
    /// Active flows per weight; None: no server serves.
    pub load: Option<f64>,
    pub p90: Option<Duration>,
    pub failure_share: f64,
    /// In what it is worse than it should be.
    pub breach: Option<Breach>,
    pub breach_for: Option<Duration>,
    pub recovered_for: Option<Duration>,
    /// How long it has to be recovered until a server is given back: longer after each relapse.
    pub give_back_after: Duration,
    /// Why a service in need does not get a server now.
    pub waits: Option<Waits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The breach has to last for a while.
    Hold,
    /// One is being started.
    Starting,
    /// The last one has not had time to act.
    Settling,
    AtMaximum,
    /// No server of the pool is free.
    PoolEmpty,
}
