//! Load clients: many HTTP requests from one host, counted and timed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::select;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use super::client::{Connection, Query, RequestError};
use super::netns::Namespace;
use super::runtime::{Runtime, RuntimeError};

/// Pause of a worker whose request failed, so that a refusing server is not flooded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);
/// Failures that a report describes one by one.
const DESCRIBED_FAILURES: usize = 20;
/// Latencies are recorded up to this, in microseconds, with three digits.
const MAX_LATENCY_US: u64 = 600_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many workers, each with one request after the other.
    Closed { workers: u32 },
    /// So many requests a second, whatever becomes of them. Beyond `max_in_flight` none is sent; that is counted as
    /// `not-sent`.
    Open { per_second: f64, max_in_flight: u32 },
}

#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    /// With `close` every request has a connection of its own; without, connections are kept.
    pub query: Query,
    pub pace: Pace,
    /// Of a request with its connection, from begin to end.
    pub timeout: Duration,
    pub max_requests: u64,
    pub max_time: Duration,
}

impl Load {
    /// Eight workers that ask for `/` on kept connections, for at most 10 seconds.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            query: Query::get("/"),
            pace: Pace::Closed { workers: 8 },
            timeout: Duration::from_secs(5),
            max_requests: u64::MAX,
            max_time: Duration::from_secs(10),
        }
    }

    pub fn start(self, namespace: &Namespace) -> Result<RunningLoad, RuntimeError> {
        let runtime = Runtime::start(namespace)?;
        let shared = Arc::new(Shared {
            load: self,
            begun: Instant::now(),
            taken: AtomicU64::new(0),
            report: Mutex::new(LoadReport::new()),
            idle: Mutex::new(Vec::new()),
            stop: watch::Sender::new(false),
        });
        let task = runtime.spawn(run(Arc::clone(&shared)));
        Ok(RunningLoad { task, shared, runtime })
    }
}

/// A load under way. Dropping it ends it at once.
#[derive(Debug)]
pub struct RunningLoad {
    task: JoinHandle<()>,
    shared: Arc<Shared>,
    runtime: Runtime,
}

impl RunningLoad {
    /// What has been done so far.
    pub fn report(&self) -> LoadReport {
        let mut report = self.shared.report().clone();
        if !self.task.is_finished() {
            report.elapsed = self.shared.begun.elapsed();
        }
        report
    }

    /// Waits for the limits of the load.
    pub fn wait(self) -> LoadReport {
        let Self { task, shared, runtime } = self;
        runtime.block_on(task).expect("the load's task does not panic");
        shared.report().clone()
    }

    /// Starts no more requests and waits for those under way.
    pub fn stop(self) -> LoadReport {
        self.shared.stop.send_replace(true);
        self.wait()
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it failed, after the begin of the load.
    pub at: Duration,
    pub what: String,
}

#[derive(Clone, Debug)]
pub struct LoadReport {
    pub ok: u64,
    /// Answers by server; the empty name stands for answers that name none.
    pub by_server: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// Microseconds from the request's due time to the end of the answer; answers only.
    pub latency_us: Histogram<u64>,
    pub elapsed: Duration,
}

impl LoadReport {
    fn new() -> Self {
        Self {
            ok: 0,
            by_server: BTreeMap::new(),
            errors: BTreeMap::new(),
            failures: Vec::new(),
            latency_us: Histogram::new_with_max(MAX_LATENCY_US, 3).expect("the bounds are valid"),
            elapsed: Duration::ZERO,
        }
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Share of the answers that `server` gave, 0 to 1.
    pub fn share(&self, server: &str) -> f64 {
        self.by_server.get(server).map_or(0.0, |count| *count as f64 / self.ok as f64)
    }

    pub fn ok_per_second(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64()
    }

    /// Adds the report of a load that ran at the same time.
    pub fn merge(&mut self, other: &Self) {
        self.ok += other.ok;
        for (server, count) in &other.by_server {
            *self.by_server.entry(server.clone()).or_default() += count;
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.failures.extend(other.failures.iter().cloned());
        self.latency_us.add(&other.latency_us).expect("both have the same bounds");
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    fn failure(&mut self, at: Duration, kind: &'static str, what: String) {
        *self.errors.entry(kind).or_default() += 1;
        if self.failures.len() < DESCRIBED_FAILURES {
            self.failures.push(Failure { at, what });
        }
    }
}

#[derive(Debug)]
struct Shared {
    load: Load,
    begun: Instant,
    taken: AtomicU64,
    report: Mutex<LoadReport>,
    /// Kept connections without a request.
    idle: Mutex<Vec<Connection>>,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, LoadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more request may be made.
    fn take(&self) -> bool {
        !*self.stop.borrow() && self.taken.fetch_add(1, Ordering::Relaxed) < self.load.max_requests
    }

    /// Makes a request that was due at `due`, and reports it.
    async fn request(&self, due: Instant) -> Result<(), RequestError> {
        let result = self.exchange(due + self.load.timeout).await;
        let mut report = self.report();
        match result {
            Ok(server) => {
                report.ok += 1;
                *report.by_server.entry(server).or_default() += 1;
                report.latency_us.saturating_record(due.elapsed().as_micros() as u64);
                Ok(())
            }
            Err(error) => {
                report.failure(self.begun.elapsed(), error.label(), error.to_string());
                Err(error)
            }
        }
    }

    /// Gives the name of the server that answered.
    async fn exchange(&self, deadline: Instant) -> Result<String, RequestError> {
        let Load { target, query, .. } = &self.load;
        let kept = self.idle().pop().filter(Connection::is_open);
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(*target, deadline).await?,
        };
        let answer = connection.request(query, deadline).await?;
        if !query.close {
            self.idle().push(connection);
        }
        Ok(answer.server)
    }
}

async fn run(shared: Arc<Shared>) {
    let end = shared.begun + shared.load.max_time;
    let mut stopped = shared.stop.subscribe();
    let mut tasks = JoinSet::new();
    match shared.load.pace {
        Pace::Closed { workers } => {
            for _ in 0..workers {
                tasks.spawn(worker(Arc::clone(&shared)));
            }
            select! {
                // Out of time, or told to stop: the workers then end after their request.
                _ = stopped.wait_for(|stop| *stop) => {}
                () = tokio::time::sleep_until(end) => { shared.stop.send_replace(true); }
                () = join(&mut tasks) => {}
            }
        }
        Pace::Open { per_second, max_in_flight } => {
            let room = Arc::new(Semaphore::new(max_in_flight as usize));
            let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while let Ok(due) = timeout_at(end, ticks.tick()).await {
                if !shared.take() {
                    break;
                }
                while tasks.try_join_next().is_some() {}
                match Arc::clone(&room).try_acquire_owned() {
                    Err(_) => {
                        let at = shared.begun.elapsed();
                        shared.report().failure(at, "not-sent", format!("{max_in_flight} requests are in flight"));
                    }
                    Ok(place) => {
                        let shared = Arc::clone(&shared);
                        tasks.spawn(async move {
                            // Failures are in the report.
                            shared.request(due).await.unwrap_or_default();
                            drop(place);
                        });
                    }
                }
            }
        }
    }
    join(&mut tasks).await;
    shared.idle().clear();
    shared.report().elapsed = shared.begun.elapsed();
}

async fn worker(shared: Arc<Shared>) {
    while shared.take() {
        if shared.request(Instant::now()).await.is_err() {
            sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}

async fn join(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("requests do not panic");
    }
}
