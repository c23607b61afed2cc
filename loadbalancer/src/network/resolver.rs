//! Keeps the next hops to all servers up to date, in a task of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use model::route::{Resolved, Route, Unreachable};

use super::netlink::Network;
use super::next_hop::ResolveError;

/// Changes come in bursts: so long after the first, all are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// How soon to ask again for what is not resolved, as the kernel does not tell of every change that helps.
const RETRY: Duration = Duration::from_millis(250);
/// How often entries that only XDP uses are confirmed, as the kernel does not see their traffic.
const REFRESH: Duration = Duration::from_secs(30);

/// What to resolve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub routes: BTreeSet<Route>,
    pub interfaces: BTreeSet<String>,
}

/// Resolves the targets whenever they or the network change, and sends what differs from the last time.
pub async fn run(
    network: Network,
    mut changes: watch::Receiver<u64>,
    mut targets: watch::Receiver<Targets>,
    resolved: mpsc::Sender<Resolved>,
) {
    let mut last = None;
    let mut refreshed = Instant::now();
    loop {
        changes.mark_unchanged();
        let wanted = targets.borrow_and_update().clone();
        if refreshed.elapsed() >= REFRESH {
            refreshed = Instant::now();
            for route in &wanted.routes {
                if let Err(error) = network.refresh(route).await {
                    tracing::debug!(address = %route.target, %error, "cannot refresh the neighbour entry");
                }
            }
        }
        let now = resolve(&network, &wanted).await;
        let retry = now.hops.values().any(Result::is_err) || now.interfaces.len() < wanted.interfaces.len();
        if last.as_ref() != Some(&now) {
            if resolved.send(now.clone()).await.is_err() {
                return;
            }
            last = Some(now);
        }
        let again = if retry { Instant::now() + RETRY } else { refreshed + REFRESH };
        tokio::select! {
            changed = changes.changed() => {
                // Without news from the kernel, the retry is what is left.
                if changed.is_err() {
                    sleep(RETRY).await;
                } else {
                    sleep(SETTLE).await;
                }
            }
            changed = targets.changed() => if changed.is_err() { return },
            () = sleep_until(again) => {}
        }
    }
}

async fn resolve(network: &Network, targets: &Targets) -> Resolved {
    let mut resolved = Resolved::default();
    for route in &targets.routes {
        let hop = network.resolve(route).await.map_err(|error| Unreachable {
            pending: matches!(error, ResolveError::Pending { .. }),
            reason: error.to_string(),
        });
        resolved.hops.insert(route.clone(), hop);
    }
    for name in &targets.interfaces {
        if let Some(link) = network.link(name) {
            resolved.interfaces.insert(name.clone(), link.index);
            if !link.is_up {
                resolved.down.insert(name.clone());
            }
            resolved.has_veth |= link.kind == "veth";
        }
    }
    resolved
}

/// Waits until everything is resolved, or known to be unreachable, but no longer than given.
pub async fn settle(resolved: &mut mpsc::Receiver<Resolved>, at_most: Duration) -> Resolved {
    let deadline = Instant::now() + at_most;
    let mut last = Resolved::default();
    while let Ok(Some(now)) = timeout_at(deadline, resolved.recv()).await {
        let settled = now.is_settled();
        last = now;
        if settled {
            break;
        }
    }
    last
}
