//! Prometheus metrics, served over HTTP.
//!
//! Names follow the conventions of Prometheus: base units, `_total` for counters. Each scrape asks the controller once.

mod quality;
mod queue;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::control::controller::Request;
use crate::control::snapshot::{Server, Snapshot};

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {address}: {source}\nhelp: choose another `listen` in [metrics]; `ss -ltnp` shows who has it"
)]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        Ok(Self(TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })?))
    }

    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        loop {
            let Ok((stream, _)) = self.0.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let requests = requests.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, requests.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(5))
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a metrics connection ended");
                }
            });
        }
    }
}

async fn answer(
    request: HttpRequest<Incoming>,
    requests: mpsc::Sender<Request>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let text = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(text(StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()));
    }
    let Some(told) = Told::ask(&requests).await else {
        return Ok(text(StatusCode::SERVICE_UNAVAILABLE, "the controller is stopping\n".to_owned()));
    };
    let mut response = text(StatusCode::OK, render(&told));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    service: String,
    outcome: String,
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
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
    mode: String,
}

type Ratio = Gauge<f64, AtomicU64>;

/// All that metrics are made of.
#[derive(Default)]
pub struct Told {
    pub snapshot: Snapshot,
    pub quality: crate::control::quality::Report,
    pub channels: crate::control::channels::Report,
    pub standby: crate::control::standby::Report,
    pub queue: crate::queue::report::Report,
}

impl Told {
    async fn ask(requests: &mpsc::Sender<Request>) -> Option<Self> {
        async fn one<T>(
            requests: &mpsc::Sender<Request>,
            request: impl FnOnce(oneshot::Sender<T>) -> Request,
        ) -> Option<T> {
            let (reply, answer) = oneshot::channel();
            requests.send(request(reply)).await.ok()?;
            answer.await.ok()
        }
        Some(Self {
            snapshot: one(requests, Request::Snapshot).await?,
            quality: one(requests, Request::Quality).await?,
            channels: one(requests, Request::Channels).await?,
            standby: one(requests, Request::Standby).await?,
            queue: one(requests, Request::Queue).await?,
        })
    }
}

/// Metrics in the text format.
pub fn render(told: &Told) -> String {
    let snapshot = &told.snapshot;
    let mut registry = Registry::with_prefix("loadbalancer");
    let outcomes = Family::<OutcomeLabels, Counter>::default();
    registry.register("packets", "Frames by service and by what became of them", outcomes.clone());
    let count = |service: &str, outcome: &str, value: u64| {
        let labels = OutcomeLabels { service: service.to_owned(), outcome: outcome.to_owned() };
        outcomes.get_or_create(&labels).inc_by(value);
    };
    snapshot.unserved.iter().for_each(|(outcome, value)| count("", outcome, *value));
    for service in &snapshot.services {
        service.outcomes.iter().for_each(|(outcome, value)| count(&service.name, outcome, *value));
    }
    counters(&mut registry, snapshot);
    gauges(&mut registry, snapshot);
    quality::register(&mut registry, told);
    queue::register(&mut registry, &told.queue);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n"),
    }
}

fn servers(snapshot: &Snapshot) -> impl Iterator<Item = (ServerLabels, &Server)> {
    snapshot.services.iter().flat_map(|service| {
        service.servers.iter().map(|server| {
            let labels = ServerLabels {
                service: service.name.clone(),
                server: server.name.clone(),
                address: server.address.clone(),
            };
            (labels, server)
        })
    })
}

fn counters(registry: &mut Registry, snapshot: &Snapshot) {
    type Read = fn(&Server) -> u64;
    let all: [(&str, &str, Read); 5] = [
        ("server_flows", "New flows sent to a server", |server| server.flows),
        ("server_sent_packets", "Packets sent to a server", |server| server.packets),
        ("server_sent_bytes", "IP bytes sent to a server, before encapsulation", |server| server.bytes),
        ("server_reply_packets", "Packets from a server that passed the gateway", |server| server.reply_packets),
        ("server_reply_bytes", "IP bytes from a server that passed the gateway", |server| server.reply_bytes),
    ];
    for (name, help, read) in all {
        let family = Family::<ServerLabels, Counter>::default();
        registry.register(name, help, family.clone());
        for (labels, server) in servers(snapshot) {
            family.get_or_create(&labels).inc_by(read(server));
        }
    }
}

fn gauges(registry: &mut Registry, snapshot: &Snapshot) {
    type Read = fn(&Server) -> Option<f64>;
    let all: [(&str, &str, Read); 5] = [
        ("server_active_flows", "Flows that are open on a server", |server| Some(f64::from(server.active))),
        ("server_weight", "Weight of a server, as configured or set", |server| Some(f64::from(server.weight))),
        ("server_share_ratio", "Part of its tier's new flows that a server is to get", |server| Some(server.share)),
        ("server_up", "Whether a server may get new flows", |server| Some(f64::from(u8::from(is_up(server))))),
        ("server_check_seconds", "How long the last successful check took", |server| {
            server.check_latency_us.map(|us| us as f64 / 1e6)
        }),
    ];
    for (name, help, read) in all {
        let family = Family::<ServerLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for (labels, server) in servers(snapshot) {
            if let Some(value) = read(server) {
                family.get_or_create(&labels).set(value);
            }
        }
    }
    let states = Family::<StateLabels, Gauge>::default();
    registry.register("server_state", "State of a server: 1 for the one it is in", states.clone());
    for (labels, server) in servers(snapshot) {
        let ServerLabels { service, server: name, address } = labels;
        states.get_or_create(&StateLabels { service, server: name, address, state: server.state.clone() }).set(1);
    }
    let tables = &snapshot.tables;
    for (name, help, value) in [
        ("affinity_entries", "Entries in the affinity table", tables.affinity_entries),
        ("affinity_capacity", "Entries that the affinity table has room for", tables.affinity_capacity),
        ("nat_flows", "Flows of nat services", tables.nat_flows),
        ("nat_capacity", "Flows of nat services that there is room for", tables.nat_capacity),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(value as i64);
        registry.register(name, help, gauge);
    }
    if let Some(controller) = &snapshot.controller {
        let attached = Family::<InterfaceLabels, Gauge>::default();
        registry.register("interface_attached", "Interfaces on which the packet path runs, by mode", attached.clone());
        for interface in &controller.interfaces {
            let mode = interface.mode.clone().unwrap_or_else(|| "none".to_owned());
            let value = i64::from(interface.mode.is_some());
            attached.get_or_create(&InterfaceLabels { interface: interface.name.clone(), mode }).set(value);
        }
        registry.register("build", "Version of the controller", Info::new([("version", controller.version.clone())]));
    }
}

/// Whether a server may get new flows.
pub fn is_up(server: &Server) -> bool {
    matches!(server.state.as_str(), "up" | "unchecked" | "unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::snapshot::Service;

    #[test]
    fn every_server_and_outcome_has_its_series() {
        let server =
            Server { name: "a".into(), address: "10.0.0.1".into(), flows: 7, state: "up".into(), ..Server::default() };
        let service = Service {
            name: "web".into(),
            outcomes: [("forwarded".to_owned(), 9)].into(),
            servers: vec![server],
            ..Service::default()
        };
        let snapshot = Snapshot { services: vec![service], ..Snapshot::default() };
        let text = render(&Told { snapshot, ..Told::default() });
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
