//! Metrics of services, servers, tables and interfaces.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::family;
use crate::controller::status::{BackendStatus, GatewayStatus};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    /// Empty: of no service.
    service: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServerLabels {
    service: String,
    server: String,
    address: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    service: String,
    server: String,
    address: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
    mode: &'static str,
}

pub(super) fn register(registry: &mut Registry, gateway: &GatewayStatus) {
    outcomes(registry, gateway);
    counters(registry, gateway);
    gauges(registry, gateway);
    states(registry, gateway);
    tables(registry, gateway);
    process(registry, gateway);
}

fn outcomes(registry: &mut Registry, gateway: &GatewayStatus) {
    let services = gateway.services.iter().map(|service| (service.name.as_str(), &service.outcomes));
    let all = services.chain([("", &gateway.unserved)]).flat_map(|(service, outcomes)| {
        let labels = move |outcome| OutcomeLabels { service: service.to_owned(), outcome };
        outcomes.iter().map(move |(outcome, count)| (labels(*outcome), *count))
    });
    family::counters(registry, "packets", "Frames by service and by what became of them", all);
}

fn servers(gateway: &GatewayStatus) -> impl Iterator<Item = (ServerLabels, &BackendStatus)> {
    gateway.services.iter().flat_map(|service| {
        service.servers.iter().map(|server| {
            let labels = ServerLabels {
                service: service.name.clone(),
                server: server.name.clone(),
                address: server.address.to_string(),
            };
            (labels, server)
        })
    })
}

fn counters(registry: &mut Registry, gateway: &GatewayStatus) {
    type Read = fn(&BackendStatus) -> u64;
    let all: [(&str, &str, Read); 5] = [
        ("server_flows", "New flows sent to a server", |it| it.counters.flows),
        ("server_sent_packets", "Packets sent to a server", |it| it.counters.packets),
        ("server_sent_bytes", "IP bytes sent to a server, before encapsulation", |it| it.counters.bytes),
        ("server_reply_packets", "Packets from a server that passed the gateway", |it| it.counters.reply_packets),
        ("server_reply_bytes", "IP bytes from a server that passed the gateway", |it| it.counters.reply_bytes),
    ];
    for (name, help, read) in all {
        family::counters(registry, name, help, servers(gateway).map(|(labels, it)| (labels, read(it))));
    }
}

fn gauges(registry: &mut Registry, gateway: &GatewayStatus) {
    type Read = fn(&BackendStatus) -> Option<f64>;
    let all: [(&str, &str, Read); 5] = [
        ("server_active_flows", "Flows that are open on a server", |it| Some(f64::from(it.active))),
        ("server_weight", "Weight of a server, as configured or set", |it| Some(f64::from(it.weight))),
        ("server_share_ratio", "Part of its tier's new flows that a server is to get", |it| Some(it.share)),
        ("server_up", "Whether a server may get new flows", |it| Some(f64::from(u8::from(it.state.is_ready())))),
        ("server_check_seconds", "How long the last successful check took", |it| {
            it.check_latency.map(|latency| latency.as_micros() as f64 / 1e6)
        }),
    ];
    for (name, help, read) in all {
        family::gauges(registry, name, help, servers(gateway).map(|(labels, it)| (labels, read(it))));
    }
}

fn states(registry: &mut Registry, gateway: &GatewayStatus) {
    let states = servers(gateway).map(|(ServerLabels { service, server, address }, it)| {
        (StateLabels { service, server, address, state: it.state.label() }, 1)
    });
    family::whole_gauges(registry, "server_state", "State of a server: 1 for the one it is in", states);
}

fn tables(registry: &mut Registry, gateway: &GatewayStatus) {
    let tables = &gateway.tables;
    for (name, help, value) in [
        ("affinity_entries", "Entries in the affinity table", tables.affinity_entries),
        ("affinity_capacity", "Entries that the affinity table has room for", tables.affinity_capacity),
        ("nat_flows", "Flows of nat services", tables.nat_flows),
        ("nat_capacity", "Flows of nat services that there is room for", tables.nat_capacity),
    ] {
        family::gauge(registry, name, help, value);
    }
}

fn process(registry: &mut Registry, gateway: &GatewayStatus) {
    let Some(controller) = &gateway.controller else { return };
    let attached = controller.interfaces.iter().map(|interface| {
        let mode = interface.mode.map_or("none", |mode| mode.label());
        (InterfaceLabels { interface: interface.name.clone(), mode }, i64::from(interface.mode.is_some()))
    });
    let help = "Interfaces on which the packet path runs, by mode";
    family::whole_gauges(registry, "interface_attached", help, attached);
    registry.register("build", "Version of the controller", Info::new([("version", controller.version)]));
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::controller::status::{ServerState, ServiceStatus};
    use crate::dataplane::stats::KernelBackend;
    use loadbalancer_common::backend::{Backend, BackendCounters};

    #[test]
    fn every_server_and_outcome_has_its_series() {
        let found = KernelBackend {
            backend: Backend::default(),
            counters: BackendCounters { flows: 7, ..BackendCounters::default() },
            active: 0,
        };
        let server = BackendStatus {
            name: "a".into(),
            address: [10, 0, 0, 1].into(),
            ..BackendStatus::of(&found, ServerState::Up)
        };
        let service = ServiceStatus {
            name: "web".into(),
            outcomes: [("forwarded", 9)].into(),
            servers: vec![server],
            ..ServiceStatus::default()
        };
        let mut registry = Registry::with_prefix("loadbalancer");
        register(&mut registry, &GatewayStatus { services: vec![service], ..GatewayStatus::default() });
        let mut text = String::new();
        encode(&mut text, &registry).expect("metrics have a text form");
        for line in [
            "loadbalancer_packets_total{service=\"web\",outcome=\"forwarded\"} 9",
            "loadbalancer_server_flows_total{service=\"web\",server=\"a\",address=\"10.0.0.1\"} 7",
            "loadbalancer_server_up{service=\"web\",server=\"a\",address=\"10.0.0.1\"} 1",
            "loadbalancer_server_state{service=\"web\",server=\"a\",address=\"10.0.0.1\",state=\"up\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
