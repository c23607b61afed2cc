//! Runs the checks of all servers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::error::ProbeError;
use super::probe::{Answer, CheckSpec, probe};
use super::schedule::{Spread, batched, next_slot};
use super::socket::Sockets;
use crate::network::netns::Namespace;
use model::ids::ServerId;

/// Probes under way at one time; each takes a file descriptor. Enough that 1,000 servers which are all silent, asked
/// once a second with a time-out of a second, do not hold up one another.
pub const MAX_CONCURRENT: usize = 1_024;

/// Which probe of which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeKey {
    pub server: ServerId,
    pub part: Part,
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Decides whether the server is up.
    Check,
    /// Feeds the quality of the server; by position in the configuration.
    Monitor(u16),
    /// Asks the server's agent.
    Agent,
    /// Feeds the quality of a channel to the server; by position in the configuration.
    Channel(u8),
}

/// What one probe found.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    pub key: ProbeKey,
    /// The answer, or why there is none.
    pub result: Result<Answer, ProbeError>,
    /// When the result was known.
    pub at: Instant,
    /// Which check of this key it belongs to, see [`Checker::is_current`].
    pub generation: u64,
}

/// The checks of all servers. Each runs in a task of its own; dropping the checker ends them all.
pub struct Checker {
    checks: HashMap<ProbeKey, Check>,
    generation: u64,
    spread: Spread,
    /// See [`batched`].
    epoch: Instant,
    permits: Arc<Semaphore>,
    ask: Ask,
    sockets: Sockets,
    reports: mpsc::Sender<ProbeReport>,
}

pub(super) type Ask = Arc<dyn Fn(Arc<CheckSpec>, Sockets) -> Asking + Send + Sync>;
pub(super) type Asking = Pin<Box<dyn Future<Output = Result<Answer, ProbeError>> + Send>>;

impl Checker {
    /// Results go to `reports`. When that is full, servers are asked less often, and no result is lost; when its
    /// receiver is gone, the checks end.
    pub fn new(reports: mpsc::Sender<ProbeReport>) -> Self {
        let ask: Ask = Arc::new(|spec, sockets| Box::pin(async move { probe(&spec, &sockets).await }));
        Self::asking(reports, ask, MAX_CONCURRENT)
    }

    pub(super) fn asking(reports: mpsc::Sender<ProbeReport>, ask: Ask, max_concurrent: usize) -> Self {
        Self {
            checks: HashMap::new(),
            generation: 0,
            // Without random numbers, any will do.
            spread: Spread::new(getrandom::u64().unwrap_or_default()),
            epoch: now(),
            permits: Arc::new(Semaphore::new(max_concurrent)),
            ask,
            sockets: Sockets::default(),
            reports,
        }
    }

    /// The namespace from which packets of probes meet the packet path, from now on.
    pub fn set_packet_path(&self, namespace: Option<Namespace>) {
        self.sockets.set_packet_path(namespace);
    }

    /// Checks a server from now on: first somewhere within an interval, then once an interval. Replaces the check that
    /// the key had, unless it is the same one, which then goes on undisturbed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn set(&mut self, key: ProbeKey, spec: CheckSpec) {
        if self.checks.get(&key).is_some_and(|check| *check.spec == spec) {
            return;
        }
        // Its probe is dropped before the new check, which begins later, comes to its first.
        self.remove(key);
        self.generation += 1;
        let spec = Arc::new(spec);
        let interval = spec.interval.max(CheckSpec::MIN_INTERVAL);
        let rounds = Rounds {
            key,
            generation: self.generation,
            spec: spec.clone(),
            first: batched(self.epoch, now() + self.spread.next_delay(interval)),
            interval,
            permits: self.permits.clone(),
            ask: self.ask.clone(),
            sockets: self.sockets.clone(),
            reports: self.reports.clone(),
        };
        let task = tokio::spawn(rounds.run()).abort_handle();
        self.checks.insert(key, Check { generation: self.generation, spec, task });
    }

    /// Asks no more.
    pub fn remove(&mut self, key: ProbeKey) {
        self.checks.remove(&key);
    }

    /// Asks a server no more but these.
    pub fn keep(&mut self, server: ServerId, parts: &[Part]) {
        self.checks.retain(|key, _| key.server != server || parts.contains(&key.part));
    }

    /// Asks a server nothing any more.
    pub fn remove_server(&mut self, server: ServerId) {
        self.checks.retain(|key, _| key.server != server);
    }

    /// Whether a report is from the check that its key has now: one that was removed or replaced may have left some in
    /// the channel.
    pub fn is_current(&self, report: &ProbeReport) -> bool {
        self.checks.get(&report.key).is_some_and(|check| check.generation == report.generation)
    }
}

struct Check {
    generation: u64,
    spec: Arc<CheckSpec>,
    task: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Rounds {
    key: ProbeKey,
    generation: u64,
    spec: Arc<CheckSpec>,
    first: Instant,
    interval: Duration,
    permits: Arc<Semaphore>,
    ask: Ask,
    sockets: Sockets,
    reports: mpsc::Sender<ProbeReport>,
}

impl Rounds {
    async fn run(self) {
        let mut slot = self.first;
        loop {
            tokio::time::sleep_until(slot.into()).await;
            let result = self.probe().await;
            let report = ProbeReport { key: self.key, result, at: now(), generation: self.generation };
            if self.reports.send(report).await.is_err() {
                return;
            }
            slot = next_slot(self.first, self.interval, now());
        }
    }

    async fn probe(&self) -> Result<Answer, ProbeError> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        (self.ask)(self.spec.clone(), self.sockets.clone()).await
    }
}

/// Tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
