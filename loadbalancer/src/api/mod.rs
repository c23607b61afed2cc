//! What programs ask the gateway, and what they get: the admin interface, HTTP and JSON over a Unix socket, and metrics.
//!
//! Documents are in [`types`], requests in [`routes`].

pub mod types;
pub mod routes;
pub mod server;
pub mod metrics;
pub mod client;
pub mod offline;
mod http;
#[cfg(test)]
mod golden;

use tokio::sync::{mpsc, oneshot};

use crate::controller::Request;

/// Asks the controller; none: it is stopping.
async fn ask<T>(requests: &mpsc::Sender<Request>, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    requests.send(request(reply)).await.ok()?;
    answer.await.ok()
}
