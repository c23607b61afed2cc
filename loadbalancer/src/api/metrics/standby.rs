//! Metrics of the pool of standby servers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::registry::Registry;

use super::family;
use crate::controller::status::StandbyStatus;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StandbyLabels {
    server: String,
    state: &'static str,
    service: String,
}

pub(super) fn register(registry: &mut Registry, standby: &StandbyStatus) {
    let states = standby.servers.iter().map(|server| {
        let service = server.leased_to.clone().unwrap_or_default();
        (StandbyLabels { server: server.name.clone(), state: server.report.state.label(), service }, 1)
    });
    let help = "Standby servers by state, and the service that has them";
    family::whole_gauges(registry, "standby_server", help, states);
}
