//! Load clients: many HTTP requests from one host, counted and timed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use hdrhistogram::Histogram;
use tokio::select;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{Connection, Query, RequestError};
use super::random::exponential;
use super::span::Span;
use super::timer::Timer;
use crate::lab::netns::Namespace;
use crate::lab::runtime::{Runtime, RuntimeError};

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
    /// As `Open`, at random times as of many independent clients: a Poisson process, the same for the same seed.
    Poisson { per_second: f64, max_in_flight: u32, seed: u64 },
}

#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    /// With `close` every request has a connection of its own; without, connections are kept.
    pub query: Query,
    /// Most requests of a kept connection.
    pub requests_per_connection: u32,
    pub pace: Pace,
    /// Of a request with its connection, from when it is due to its end.
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
            requests_per_connection: u32::MAX,
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
    /// Keeps its times also on a busy machine.
    pub fn take_priority(&self) {
        self.runtime.take_priority();
    }

    /// What has been done so far.
    pub fn report(&self) -> LoadReport {
        let mut report = self.shared.report().clone();
        if !self.task.is_finished() {
            report.elapsed = self.shared.begun.elapsed();
        }
        report
    }

    /// Time since the begin, which the seconds of the report count from.
    pub fn elapsed(&self) -> Duration {
        self.shared.begun.elapsed()
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
    /// Requests by the second in which they were due, from the begin of the load.
    pub seconds: Vec<Span>,
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
            seconds: Vec::new(),
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

    /// The requests that were due from second `from` up to before second `to` after the begin.
    pub fn between(&self, from: usize, to: usize) -> Span {
        let mut span = Span::default();
        self.seconds.iter().take(to).skip(from).for_each(|second| span.merge(second));
        span
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
        for (index, second) in other.seconds.iter().enumerate() {
            self.second(index).merge(second);
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    fn second(&mut self, index: usize) -> &mut Span {
        if self.seconds.len() <= index {
            self.seconds.resize_with(index + 1, Span::default);
        }
        &mut self.seconds[index]
    }

    /// `due` and `at` are times after the begin.
    fn record(&mut self, due: Duration, at: Duration, result: &Result<String, RequestError>) {
        let second = self.second(due.as_secs() as usize);
        match result {
            Ok(server) => {
                let latency = at.saturating_sub(due);
                second.answer(server, latency);
                self.ok += 1;
                // Most are known.
                match self.by_server.get_mut(server) {
                    Some(count) => *count += 1,
                    None => *self.by_server.entry(server.clone()).or_default() += 1,
                }
                self.latency_us.saturating_record(latency.as_micros() as u64);
            }
            Err(error) => {
                second.failure(error.label());
                *self.errors.entry(error.label()).or_default() += 1;
                if self.failures.len() < DESCRIBED_FAILURES {
                    self.failures.push(Failure { at, what: error.to_string() });
                }
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    load: Load,
    begun: Instant,
    taken: AtomicU64,
    report: Mutex<LoadReport>,
    /// Kept connections without a request, and how many requests each has had.
    idle: Mutex<Vec<(Connection, u32)>>,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, LoadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Connection, u32)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more request may be made.
    fn take(&self) -> bool {
        !*self.stop.borrow() && self.taken.fetch_add(1, Ordering::Relaxed) < self.load.max_requests
    }

    /// Makes a request that was due at `due`, and reports it.
    async fn request(&self, due: Instant) -> Result<(), RequestError> {
        let result = self.exchange(due + self.load.timeout).await;
        self.report().record(due - self.begun, self.begun.elapsed(), &result);
        result.map(|_| ())
    }

    /// Gives the name of the server that answered.
    async fn exchange(&self, deadline: Instant) -> Result<String, RequestError> {
        let Load { target, query, requests_per_connection, .. } = &self.load;
        let kept = self.idle().pop().filter(|(connection, _)| connection.is_open());
        let (mut connection, used) = match kept {
            Some(kept) => kept,
            None => (Connection::open(*target, deadline).await?, 0),
        };
        let used = used + 1;
        if query.close || used >= *requests_per_connection {
            let last = Query { close: true, ..query.clone() };
            return connection.request(&last, deadline).await.map(|answer| answer.server);
        }
        let answer = connection.request(query, deadline).await?;
        self.idle().push((connection, used));
        Ok(answer.server)
    }
}

async fn run(shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    match shared.load.pace {
        Pace::Closed { workers } => {
            for _ in 0..workers {
                tasks.spawn(worker(Arc::clone(&shared)));
            }
            let mut stopped = shared.stop.subscribe();
            select! {
                // Out of time, or told to stop: the workers then end after their request.
                _ = stopped.wait_for(|stop| *stop) => {}
                () = sleep_until(shared.begun + shared.load.max_time) => { shared.stop.send_replace(true); }
                () = join(&mut tasks) => {}
            }
        }
        Pace::Open { per_second, max_in_flight } => {
            let due = (0u64..).map(|number| Duration::from_secs_f64(number as f64 / per_second));
            open(&shared, &mut tasks, due, max_in_flight).await;
        }
        Pace::Poisson { per_second, max_in_flight, seed } => {
            let mut random = Rng::with_seed(seed);
            let mut due = Duration::ZERO;
            let due = std::iter::repeat_with(|| {
                due += Duration::from_secs_f64(exponential(&mut random) / per_second);
                due
            });
            open(&shared, &mut tasks, due, max_in_flight).await;
        }
    }
    join(&mut tasks).await;
    shared.idle().clear();
    shared.report().elapsed = shared.begun.elapsed();
}

/// Starts a request at each time after the begin, or when it has missed that, later; the times do not wait for requests.
async fn open(
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    times: impl Iterator<Item = Duration>,
    max_in_flight: u32,
) {
    let room = Arc::new(Semaphore::new(max_in_flight as usize));
    let mut stopped = shared.stop.subscribe();
    let mut timer = Timer::new().expect("a descriptor is left");
    for after_begin in times.take_while(|due| *due < shared.load.max_time) {
        let due = shared.begun + after_begin;
        select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            waited = timer.until(due) => waited.expect("timers do not fail"),
        }
        if !shared.take() {
            return;
        }
        while tasks.try_join_next().is_some() {}
        match Arc::clone(&room).try_acquire_owned() {
            Err(_) => {
                let at = shared.begun.elapsed();
                shared.report().record(after_begin, at, &Err(RequestError::NotSent(max_in_flight)));
            }
            Ok(place) => {
                let shared = Arc::clone(shared);
                tasks.spawn(async move {
                    // Failures are in the report.
                    shared.request(due).await.unwrap_or_default();
                    drop(place);
                });
            }
        }
    }
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
