//! The state of a gateway whose controller does not run, from its pinned maps.

use std::path::Path;

use loadbalancer_common::backend::Backend;
use loadbalancer_common::service::{NO_SERVICE, mode};

use super::types::Snapshot;
use crate::controller::status::{
    BackendStatus, GatewayStatus, ServerState, ServiceStatus, TablesStatus, add_outcomes, now_ms,
};
use crate::dataplane::error::{KernelError, MapError};
use crate::dataplane::flows;
use crate::dataplane::ids::ServiceNumber;
use crate::dataplane::maps::Maps;
use crate::dataplane::stats::{self, KernelBackend, KernelService, KernelStats};

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Reads the state of a gateway below a pin directory. Names are not there: services go by their first address, servers by
/// theirs.
///
/// # Errors
/// If nothing is pinned there, or it is of another version, or cannot be read.
pub fn snapshot(pins: &Path) -> Result<Snapshot, OfflineError> {
    let maps = Maps::pinned(pins)?;
    let kernel = stats::read(&maps)?;
    let mut status = GatewayStatus { taken_ms: now_ms(), ..GatewayStatus::default() };
    for (number, found) in &kernel.services {
        if number.0 == NO_SERVICE {
            add_outcomes(&mut status.unserved, &found.outcomes);
        } else {
            status.services.push(service(*number, found, &kernel));
        }
    }
    let entries = flows::count(&maps)?;
    status.tables = TablesStatus {
        affinity_entries: entries.iter().map(|count| count.affinity).sum(),
        affinity_capacity: maps.affinity.words().len() as u64,
        nat_flows: entries.iter().map(|count| count.nat).sum(),
        nat_capacity: u64::from(maps.conntrack4.entries() / 2),
    };
    Ok(status.into())
}

fn service(number: ServiceNumber, found: &KernelService, kernel: &KernelStats) -> ServiceStatus {
    let first = found.listens.first().map(ToString::to_string);
    let mut service = ServiceStatus {
        name: first.unwrap_or_else(|| format!("service-{}", number.0)),
        mode: match found.service.mode {
            mode::NAT => "nat",
            mode::DNAT => "dnat",
            _ => "dsr",
        },
        listen: found.listens.clone(),
        ..ServiceStatus::default()
    };
    add_outcomes(&mut service.outcomes, &found.outcomes);
    let is_server = |backend: &Backend| backend.service == number.0 && !backend.has(Backend::LOCAL);
    let members = || kernel.backends.values().filter(|found| is_server(&found.backend));
    let total: u64 = members().filter(|found| accepts(found)).map(|found| u64::from(found.backend.weight)).sum();
    let servers = members().map(|found| BackendStatus {
        share: if accepts(found) { f64::from(found.backend.weight) / total as f64 } else { 0.0 },
        ..BackendStatus::of(found, state(found))
    });
    service.servers = servers.collect();
    service
}

fn accepts(found: &KernelBackend) -> bool {
    found.backend.has(Backend::ACCEPTS) && !found.backend.has(Backend::DOWN)
}

fn state(found: &KernelBackend) -> ServerState {
    if found.backend.has(Backend::DOWN) {
        ServerState::Down
    } else if found.backend.has(Backend::DRAINED) {
        ServerState::Drained
    } else if accepts(found) {
        ServerState::Unchecked
    } else {
        ServerState::Leaving
    }
}
