//! Who has which standby server, and why.

use std::time::Duration;

use decide::standby::explain::{Phase, Waits};
use decide::standby::keys::StandbyKey;
use decide::standby::need::{self, Quantity};
use decide::standby::reason;
use serde::{Deserialize, Serialize};

use super::seconds;
use crate::controller::status::{StandbyServerStatus, StandbyServiceStatus, StandbyStatus};

/// The pool and the services that share it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StandbyReport {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Seconds on the clock in which other times are told.
    pub uptime_s: f64,
    pub servers: Vec<StandbyServer>,
    pub services: Vec<StandbyService>,
}

/// A server of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyServer {
    pub name: String,
    pub address: String,
    /// Name of the service that has it.
    pub leased_to: Option<String>,
    /// Its number in this controller.
    pub server: u32,
    pub weight: u32,
    #[serde(with = "PhaseShape")]
    pub state: Phase,
    #[serde(rename = "since_s", with = "seconds")]
    pub since: Duration,
    /// Number of the service that has it, and what for.
    pub service: Option<u32>,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyService {
    pub name: String,
    /// Names of the servers that it has.
    pub has: Vec<String>,
    /// Its number in this controller, and those of its servers.
    pub service: u32,
    pub leases: Vec<u32>,
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
    pub waits: Option<WaitsFor>,
}

/// In what a service is worse than it should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breach(#[serde(with = "BreachShape")] pub need::Breach);

/// Why a service has a server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why(#[serde(with = "WhyShape")] pub reason::Why);

/// What went wrong with a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem(#[serde(with = "ProblemShape")] pub reason::Problem);

/// Why a service in need does not get a server now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitsFor(#[serde(with = "WaitsShape")] pub Waits);

#[derive(Serialize, Deserialize)]
#[serde(remote = "need::Breach")]
struct BreachShape {
    #[serde(with = "QuantityShape")]
    of: Quantity,
    value: f64,
    level: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Quantity", rename_all = "kebab-case")]
enum QuantityShape {
    P90,
    Failures,
    Load,
    Servers,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "reason::Why", rename_all = "kebab-case")]
enum WhyShape {
    Need(#[serde(with = "BreachShape")] need::Breach),
    Minimum,
    Adopted,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "reason::Problem", tag = "what", content = "message", rename_all = "kebab-case")]
enum ProblemShape {
    StartHook(String),
    StopHook(String),
    Checks,
    Down,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Phase", rename_all = "kebab-case")]
enum PhaseShape {
    Idle,
    Starting,
    Checking,
    Serving,
    Draining,
    Stopping,
    Failed,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Waits", rename_all = "kebab-case")]
enum WaitsShape {
    Hold,
    Starting,
    Settling,
    AtMaximum,
    PoolEmpty,
}

impl From<StandbyStatus> for StandbyReport {
    fn from(it: StandbyStatus) -> Self {
        Self {
            taken_ms: it.taken_ms,
            uptime_s: it.uptime.as_secs_f64(),
            servers: it.servers.into_iter().map(StandbyServer::from).collect(),
            services: it.services.into_iter().map(StandbyService::from).collect(),
        }
    }
}

impl From<StandbyServerStatus> for StandbyServer {
    fn from(StandbyServerStatus { name, address, leased_to, report: it }: StandbyServerStatus) -> Self {
        Self {
            name,
            address: address.map_or_else(String::new, |address| address.to_string()),
            leased_to,
            server: it.server.0,
            weight: it.weight,
            state: it.state,
            since: it.since,
            service: it.service.map(|key| key.0),
            why: it.why.map(Why),
            flows: it.flows,
            free_in: it.free_in,
            failures: it.failures,
            last_problem: it.last_problem.map(Problem),
        }
    }
}

impl From<StandbyServiceStatus> for StandbyService {
    fn from(StandbyServiceStatus { name, has, report: it }: StandbyServiceStatus) -> Self {
        Self {
            name,
            has,
            service: it.service.0,
            leases: it.leases.iter().map(|StandbyKey(server)| *server).collect(),
            min: it.min,
            max: it.max,
            load: it.load,
            p90: it.p90,
            failure_share: it.failure_share,
            breach: it.breach.map(Breach),
            breach_for: it.breach_for,
            recovered_for: it.recovered_for,
            give_back_after: it.give_back_after,
            waits: it.waits.map(WaitsFor),
        }
    }
}
