//! Prometheus metrics: a file for each document that they are of.
//!
//! Names follow the conventions of Prometheus: base units, `_total` for counters. Each scrape asks the controller once for
//! each document. States are called what [`ServerState::label`] and its like say, as in documents.
//!
//! [`ServerState::label`]: crate::controller::status::ServerState::label

mod gateway;
mod quality;
mod channels;
mod standby;
mod queue;
mod family;

use hyper::body::Incoming;
use hyper::{Request as HttpRequest, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::ask;
use super::http::{Answer, body};
use crate::controller::Request;
use crate::controller::status::{ChannelsStatus, GatewayStatus, QualityStatus, QueueStatus, StandbyStatus};

/// All that metrics are made of.
#[derive(Debug, Default)]
pub struct Scrape {
    pub gateway: GatewayStatus,
    pub quality: QualityStatus,
    pub channels: ChannelsStatus,
    pub standby: StandbyStatus,
    pub queue: QueueStatus,
}

impl Scrape {
    /// Asks the controller; none: it is stopping.
    async fn ask(requests: &mpsc::Sender<Request>) -> Option<Self> {
        Some(Self {
            gateway: ask(requests, Request::Gateway).await?,
            quality: ask(requests, Request::Quality).await?,
            channels: ask(requests, Request::Channels).await?,
            standby: ask(requests, Request::Standby).await?,
            queue: ask(requests, Request::Queue).await?,
        })
    }
}

/// Answers a request to the address of metrics.
pub(super) async fn answer(request: HttpRequest<Incoming>, requests: mpsc::Sender<Request>) -> Answer {
    const PLAIN: &str = "text/plain; charset=utf-8";
    if request.uri().path() != "/metrics" {
        return body(StatusCode::NOT_FOUND, PLAIN, "metrics are at /metrics\n");
    }
    match Scrape::ask(&requests).await {
        Some(scrape) => {
            body(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", render(&scrape))
        }
        None => body(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the controller is stopping\n"),
    }
}

/// Metrics in the text format of OpenMetrics.
pub fn render(scrape: &Scrape) -> String {
    let mut registry = Registry::with_prefix("loadbalancer");
    gateway::register(&mut registry, &scrape.gateway);
    quality::register(&mut registry, &scrape.quality);
    channels::register(&mut registry, &scrape.channels);
    standby::register(&mut registry, &scrape.standby);
    queue::register(&mut registry, &scrape.queue.report);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n"),
    }
}
