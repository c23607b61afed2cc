//! What a running gateway tells about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::controller::status::{self, GatewayStatus, Outcomes, ServerState};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
    /// None: read from the pinned maps alone, without a controller.
    pub controller: Option<Controller>,
    pub services: Vec<Service>,
    /// Frames that belong to no service, by outcome.
    pub unserved: BTreeMap<String, u64>,
    pub tables: Tables,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Controller {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub config: String,
    /// Whether it went on with state that an earlier controller had pinned.
    pub adopted: bool,
    pub interfaces: Vec<Interface>,
    /// What the last reload said, if it failed.
    pub reload_error: Option<String>,
    /// What is not as it should be, in sentences.
    pub warnings: Vec<String>,
    /// Writes to the kernel's maps until now.
    pub map_writes: u64,
    /// Differences that full comparisons have found and mended.
    pub repairs: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    /// `native` or `generic`; none: not attached.
    pub mode: Option<String>,
    pub problem: Option<String>,
}

/// How full the flow tables are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tables {
    pub affinity_entries: u64,
    pub affinity_capacity: u64,
    pub nat_flows: u64,
    pub nat_capacity: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub mode: String,
    pub listen: Vec<String>,
    /// Frames by outcome.
    pub outcomes: BTreeMap<String, u64>,
    pub servers: Vec<Server>,
    /// What waits for a server; none: it does not queue.
    #[serde(default)]
    pub queue: Option<Queue>,
}

/// A service's queue in short; `loadbalancer queue` tells more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    pub waiting: u64,
    /// Age of the one that waits for longest, in seconds.
    pub oldest_s: Option<f64>,
    /// Ever.
    pub released: u64,
    /// That ended in another way, ever.
    pub not_released: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub name: String,
    pub address: String,
    pub port: Option<u16>,
    pub tier: u8,
    #[serde(with = "ServerStateShape")]
    pub state: ServerState,
    /// Why it is in a state that it should not be in.
    pub reason: Option<String>,
    /// Weight of the configuration, or set by the operator.
    pub weight: u32,
    /// Part of the service's new flows that are to go to it while its first tier has room, 0 to 1.
    pub share: f64,
    pub active: u32,
    /// Most active flows now: less than configured during slow start, or if the server's agent says so.
    pub high_water: Option<u32>,
    /// From how many active flows on new ones prefer others.
    pub hot_mark: Option<u32>,
    pub check_latency_us: Option<u64>,
    pub state_seconds: Option<u64>,
    pub packets: u64,
    pub bytes: u64,
    /// New flows until now.
    pub flows: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ServerState", rename_all = "kebab-case")]
enum ServerStateShape {
    Up,
    Down,
    Unreachable,
    Drained,
    Ejected,
    Unchecked,
    Unknown,
    Leaving,
}

impl From<GatewayStatus> for Snapshot {
    fn from(it: GatewayStatus) -> Self {
        Self {
            taken_ms: it.taken_ms,
            controller: it.controller.map(Controller::from),
            services: it.services.into_iter().map(Service::from).collect(),
            unserved: by_label(&it.unserved),
            tables: Tables {
                affinity_entries: it.tables.affinity_entries,
                affinity_capacity: it.tables.affinity_capacity,
                nat_flows: it.tables.nat_flows,
                nat_capacity: it.tables.nat_capacity,
            },
        }
    }
}

fn by_label(outcomes: &Outcomes) -> BTreeMap<String, u64> {
    outcomes.iter().map(|(label, count)| ((*label).to_owned(), *count)).collect()
}

impl From<status::ControllerStatus> for Controller {
    fn from(it: status::ControllerStatus) -> Self {
        let interfaces = it.interfaces.into_iter().map(|interface| Interface {
            name: interface.name,
            mode: interface.mode.map(|mode| mode.label().to_owned()),
            problem: interface.problem,
        });
        Self {
            version: it.version.to_owned(),
            pid: it.pid,
            uptime_seconds: it.uptime.as_secs(),
            config: it.config.display().to_string(),
            adopted: it.adopted,
            interfaces: interfaces.collect(),
            reload_error: it.reload_error,
            warnings: it.warnings,
            map_writes: it.map_writes,
            repairs: it.repairs,
        }
    }
}

impl From<status::ServiceStatus> for Service {
    fn from(it: status::ServiceStatus) -> Self {
        Self {
            name: it.name,
            mode: it.mode.to_owned(),
            listen: it.listen.iter().map(ToString::to_string).collect(),
            outcomes: by_label(&it.outcomes),
            servers: it.servers.into_iter().map(Server::from).collect(),
            queue: it.queue.map(|queue| Queue {
                waiting: queue.waiting,
                oldest_s: queue.oldest_s,
                released: queue.released,
                not_released: queue.not_released,
            }),
        }
    }
}

impl From<status::BackendStatus> for Server {
    fn from(it: status::BackendStatus) -> Self {
        Self {
            name: it.name,
            address: it.address.to_string(),
            port: it.port,
            tier: it.tier,
            state: it.state,
            reason: it.reason,
            weight: it.weight,
            share: it.share,
            active: it.active,
            high_water: it.high_water,
            hot_mark: it.hot_mark,
            check_latency_us: it.check_latency.map(|latency| latency.as_micros() as u64),
            state_seconds: it.in_state_for.map(|time| time.as_secs()),
            packets: it.counters.packets,
            bytes: it.counters.bytes,
            flows: it.counters.flows,
            reply_packets: it.counters.reply_packets,
            reply_bytes: it.counters.reply_bytes,
        }
    }
}
