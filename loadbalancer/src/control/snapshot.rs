//! What a running gateway tells about itself: the shapes of the admin interface, of `--json` and of metrics.

use std::collections::BTreeMap;
use std::path::Path;

use loadbalancer_common::backend::Backend;
use loadbalancer_common::service::{NO_SERVICE, mode};
use serde::{Deserialize, Serialize};

use super::controller::{add_outcomes, now_ms};
use crate::dataplane::flows;
use crate::dataplane::kernel::{KernelError, Maps};
use crate::dataplane::map::MapError;
use crate::dataplane::stats::{self, KernelBackend};

/// Version of these shapes; it is part of the admin interface's addresses.
pub const API_VERSION: u32 = 1;

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

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub name: String,
    pub address: String,
    pub port: Option<u16>,
    pub tier: u8,
    /// `up`, `down`, `unchecked`, `unknown`, `drained`, `unreachable` or `leaving`.
    pub state: String,
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

/// A change to a server that the operator asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// No new flows; live ones go on.
    Drain,
    /// New flows again, and the weight of the configuration.
    Enable,
    Weight(u16),
}

/// The state of a gateway whose controller does not run, from its pinned maps. Names are not there: services go by their
/// first address, servers by theirs.
pub fn of_pins(pins: &Path) -> Result<Snapshot, SnapshotError> {
    let maps = Maps::pinned(pins)?;
    let kernel = stats::read(&maps)?;
    let mut snapshot = Snapshot { taken_ms: now_ms(), ..Snapshot::default() };
    for (number, found) in &kernel.services {
        if *number == NO_SERVICE {
            add_outcomes(&mut snapshot.unserved, &found.outcomes);
            continue;
        }
        let listen: Vec<String> = found.listens.iter().map(ToString::to_string).collect();
        let mut service = Service {
            name: listen.first().cloned().unwrap_or_else(|| format!("service-{number}")),
            mode: match found.service.mode {
                mode::NAT => "nat",
                mode::DNAT => "dnat",
                _ => "dsr",
            }
            .to_owned(),
            listen,
            ..Service::default()
        };
        add_outcomes(&mut service.outcomes, &found.outcomes);
        let accepts = |found: &KernelBackend| found.backend.has(Backend::ACCEPTS) && !found.backend.has(Backend::DOWN);
        let is_server = |backend: &Backend| backend.service == *number && !backend.has(Backend::LOCAL);
        let members = || kernel.backends.values().filter(|found| is_server(&found.backend));
        let total: u64 = members().filter(|found| accepts(found)).map(|found| u64::from(found.backend.weight)).sum();
        service.servers = members()
            .map(|found| {
                let backend = &found.backend;
                let state = if backend.has(Backend::DOWN) {
                    "down"
                } else if backend.has(Backend::DRAINED) {
                    "drained"
                } else if accepts(found) {
                    "unchecked"
                } else {
                    "leaving"
                };
                Server {
                    name: flows::name(backend),
                    address: stats::address(backend).to_string(),
                    port: (backend.port.get() != 0).then(|| backend.port.get()),
                    state: state.to_owned(),
                    weight: backend.weight,
                    share: if accepts(found) { f64::from(backend.weight) / total as f64 } else { 0.0 },
                    active: found.active,
                    high_water: (backend.high_water != u32::MAX).then_some(backend.high_water),
                    hot_mark: (backend.hot_mark != u32::MAX).then_some(backend.hot_mark),
                    packets: found.counters.packets,
                    bytes: found.counters.bytes,
                    flows: found.counters.flows,
                    reply_packets: found.counters.reply_packets,
                    reply_bytes: found.counters.reply_bytes,
                    ..Server::default()
                }
            })
            .collect();
        snapshot.services.push(service);
    }
    let entries = flows::count(&maps)?;
    snapshot.tables = Tables {
        affinity_entries: entries.iter().map(|count| count.affinity).sum(),
        affinity_capacity: maps.affinity.words().len() as u64,
        nat_flows: entries.iter().map(|count| count.nat).sum(),
        nat_capacity: u64::from(maps.conntrack4.entries() / 2),
    };
    Ok(snapshot)
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Map(#[from] MapError),
}
