//! Who has which standby server, and why.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::need::Breach;
use super::{Problem, ServiceKey, StandbyKey, Why};
use crate::quality::seconds;

/// The pool and the services that share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyReport {
    pub servers: Vec<ServerReport>,
    pub services: Vec<ServiceReport>,
}

/// A server of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    pub server: StandbyKey,
    pub weight: u32,
    pub state: Phase,
    #[serde(rename = "since_s", with = "seconds")]
    pub since: Duration,
    /// Who has it, and what for.
    pub service: Option<ServiceKey>,
    pub why: Option<Why>,
    /// Live flows, as last told.
    pub flows: Option<u64>,
    /// When it can be leased again, if it is cooling down.
    #[serde(rename = "free_in_s", with = "seconds::optional")]
    pub free_in: Option<Duration>,
    /// Failures since it last served, and the last one.
    pub failures: u32,
    pub last_problem: Option<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub service: ServiceKey,
    pub leases: Vec<StandbyKey>,
    pub min: u32,
    pub max: u32,
    /// Active flows per weight; None: no server serves.
    pub load: Option<f64>,
    #[serde(rename = "p90_s", with = "seconds::optional")]
    pub p90: Option<Duration>,
    pub failure_share: f64,
    /// In what it is worse than it should be.
    pub breach: Option<Breach>,
    #[serde(rename = "breach_for_s", with = "seconds::optional")]
    pub breach_for: Option<Duration>,
    #[serde(rename = "recovered_for_s", with = "seconds::optional")]
    pub recovered_for: Option<Duration>,
    /// How long it has to be recovered until a server is given back: longer after each relapse.
    #[serde(rename = "give_back_after_s", with = "seconds")]
    pub give_back_after: Duration,
    /// Why a service in need does not get a server now.
    pub waits: Option<Waits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
