//! What others are told: plain values, which documents, metrics and tables are made of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use decide::channel::explain::ChannelReport;
use decide::quality::explain::ServerReport;
use decide::queue::report::QueueReport;
use decide::standby::explain as standby;
use decide::tiers::explain::TierReport;
use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::outcome::Outcome;
use model::address::Listen;

use crate::dataplane::attached_program::AttachMode;
use crate::dataplane::flows;
use crate::dataplane::stats::{self, KernelBackend};

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Frames by what became of them: by [`Outcome::label`].
pub type Outcomes = BTreeMap<&'static str, u64>;

/// Adds what the packet path has counted.
pub fn add_outcomes(to: &mut Outcomes, counters: &[u64]) {
    for outcome in Outcome::ALL {
        *to.entry(outcome.label()).or_default() += counters[*outcome as usize];
    }
}

/// The gateway: its controller, its services and their servers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayStatus {
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
    /// None: read from the pinned maps alone, without a controller.
    pub controller: Option<ControllerStatus>,
    pub services: Vec<ServiceStatus>,
    /// Frames that belong to no service.
    pub unserved: Outcomes,
    pub tables: TablesStatus,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ControllerStatus {
    pub version: &'static str,
    pub pid: u32,
    pub uptime: Duration,
    /// File of its configuration.
    pub config: PathBuf,
    /// Whether it went on with state that an earlier controller had pinned.
    pub adopted: bool,
    pub interfaces: Vec<InterfaceStatus>,
    /// What the last reload said, if it failed.
    pub reload_error: Option<String>,
    /// What is not as it should be, in sentences.
    pub warnings: Vec<String>,
    /// Writes to the kernel's maps until now.
    pub map_writes: u64,
    /// Differences that full comparisons have found and mended.
    pub repairs: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InterfaceStatus {
    pub name: String,
    /// None: not attached.
    pub mode: Option<AttachMode>,
    pub problem: Option<String>,
}

/// How full the flow tables are, in entries of the affinity table and in flows of `nat`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TablesStatus {
    pub affinity_entries: u64,
    pub affinity_capacity: u64,
    pub nat_flows: u64,
    pub nat_capacity: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceStatus {
    pub name: String,
    /// As the configuration calls it; from pinned maps alone `dsr` for all modes of DSR.
    pub mode: &'static str,
    pub listen: Vec<Listen>,
    pub outcomes: Outcomes,
    pub servers: Vec<BackendStatus>,
    /// None: it does not queue.
    pub queue: Option<QueueSummary>,
}

/// A service's queue in short.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueSummary {
    pub waiting: u64,
    /// Age of the one that waits for longest, in seconds.
    pub oldest_s: Option<f64>,
    /// Ever.
    pub released: u64,
    /// That ended in another way, ever.
    pub not_released: u64,
}

/// A server of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendStatus {
    pub name: String,
    pub address: IpAddr,
    pub port: Option<u16>,
    pub tier: u8,
    pub state: ServerState,
    /// Why it is in a state that it should not be in.
    pub reason: Option<String>,
    /// Weight of the configuration, or set by the operator.
    pub weight: u32,
    /// Part of the service's new flows that are to go to it while its first tier has room, 0 to 1.
    pub share: f64,
    /// Open flows.
    pub active: u32,
    /// Most active flows now: less than configured during slow start, or if the server's agent says so.
    pub high_water: Option<u32>,
    /// From how many active flows on new ones prefer others.
    pub hot_mark: Option<u32>,
    /// How long the last successful check took.
    pub check_latency: Option<Duration>,
    pub in_state_for: Option<Duration>,
    pub counters: BackendCounters,
}

impl BackendStatus {
    /// What the packet path alone knows of a server: it has no name, and no tier.
    pub fn of(found: &KernelBackend, state: ServerState) -> Self {
        let backend: &Backend = &found.backend;
        Self {
            name: flows::name(backend),
            address: stats::address(backend),
            port: (backend.port.get() != 0).then(|| backend.port.get()),
            tier: 0,
            state,
            reason: None,
            weight: backend.weight,
            share: 0.0,
            active: found.active,
            high_water: (backend.high_water != u32::MAX).then_some(backend.high_water),
            hot_mark: (backend.hot_mark != u32::MAX).then_some(backend.hot_mark),
            check_latency: None,
            in_state_for: None,
            counters: found.counters,
        }
    }
}

/// What a server does, or why it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Its checks pass.
    Up,
    /// Its checks fail.
    Down,
    /// There is no way to it.
    Unreachable,
    /// The operator wants no new flows on it.
    Drained,
    /// Its measured quality keeps it from getting new flows.
    Ejected,
    /// It is never checked.
    Unchecked,
    /// Its first check is still to come.
    Unknown,
    /// It is no longer in the configuration; its live flows go on.
    Leaving,
}

impl ServerState {
    /// As documents, metrics and tables call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
            Self::Drained => "drained",
            Self::Ejected => "ejected",
            Self::Unchecked => "unchecked",
            Self::Unknown => "unknown",
            Self::Leaving => "leaving",
        }
    }

    /// Whether a server in this state may get new flows.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Up | Self::Unchecked | Self::Unknown)
    }
}

/// A report of a decision, which knows numbers only, with the name of what it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T> {
    pub name: String,
    pub report: T,
}

/// A server's weight, and why it is what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerQualityStatus {
    pub name: String,
    /// Its place in the configuration, from 1.
    pub number: u32,
    pub report: ServerReport,
}

/// All weights, and why they are what they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QualityStatus {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Since the controller's start, which other times are told in.
    pub uptime: Duration,
    /// Rings published until now.
    pub rings: u64,
    pub groups: Vec<GroupStatus>,
}

/// One tier of a service; with `nat` and `dnat` of one family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStatus {
    pub service: String,
    pub tier: u8,
    /// Too few servers are in good order: ejected ones serve as well.
    pub panic: bool,
    /// When the last ring was published, in seconds since the controller's start.
    pub published_at_s: Option<f64>,
    /// One flow in so many is sampled for passive signals; zero: none.
    pub flows_per_sample: u16,
    /// None: the service has no levels for its tiers.
    pub help: Option<TierReport>,
    pub servers: Vec<ServerQualityStatus>,
}

/// All channels of all servers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelsStatus {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Now, on the clock in which other times are told.
    pub uptime: Duration,
    pub servers: Vec<ServerChannelsStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerChannelsStatus {
    pub service: String,
    pub server: String,
    /// Some channel is not dead.
    pub reachable: bool,
    /// Name of the channel of each path slot.
    pub slots: Vec<Option<String>>,
    pub channels: Vec<Named<ChannelReport>>,
}

/// Who has which standby server, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StandbyStatus {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Now, on the clock in which other times are told.
    pub uptime: Duration,
    pub servers: Vec<StandbyServerStatus>,
    pub services: Vec<StandbyServiceStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StandbyServerStatus {
    pub name: String,
    pub address: Option<IpAddr>,
    /// Name of the service that has it.
    pub leased_to: Option<String>,
    pub report: standby::ServerReport,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StandbyServiceStatus {
    pub name: String,
    /// Names of the servers that it has.
    pub has: Vec<String>,
    pub report: standby::ServiceReport,
}

/// The queues of all services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueStatus {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Why nothing can wait, although it should.
    pub error: Option<String>,
    pub report: QueueReport,
}
