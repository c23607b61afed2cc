//! What the tasks of a server share: its behaviour, its random numbers, and what it has done.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::time::sleep;

use super::agent::Agent;
use super::behaviour::{Behaviour, ServiceTime};
use super::random::exponential;
use super::work::Work;

/// Latencies are recorded up to this, in microseconds.
const MOST_US: u64 = 600_000_000;

/// What a server has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    pub http_requests: u64,
    pub datagrams: u64,
    /// Connections that are open now.
    pub open: usize,
    /// Requests that are served or wait now.
    pub in_flight: u64,
}

/// What the tasks of a server share.
#[derive(Debug)]
pub(super) struct State {
    pub name: String,
    http_requests: AtomicU64,
    datagrams: AtomicU64,
    connections: AtomicU64,
    in_flight: AtomicU64,
    /// Of requests, from when they came to the answer, in microseconds.
    served_us: Mutex<Histogram<u64>>,
    behaviour: Mutex<Behaviour>,
    work: Work,
    agent: Mutex<Agent>,
    random: Mutex<Rng>,
    open: watch::Sender<usize>,
    /// Changed to have all open connections reset.
    resets: watch::Sender<()>,
}

impl State {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            http_requests: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            served_us: Mutex::new(Histogram::new_with_bounds(1, MOST_US, 3).expect("the bounds are in order")),
            behaviour: Mutex::new(Behaviour::default()),
            work: Work::new(),
            agent: Mutex::new(Agent::default()),
            random: Mutex::new(Rng::with_seed(name.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte)))),
            open: watch::Sender::new(0),
            resets: watch::Sender::new(()),
        }
    }

    pub fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
        self.work.set(behaviour.workers, behaviour.speed);
    }

    /// What the agent says.
    pub fn agent(&self) -> Agent {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_agent(&self, agent: Agent) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = agent;
    }

    fn random(&self) -> MutexGuard<'_, Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served_us(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.served_us.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the time of a request, and gives the status of its answer.
    pub async fn serve(&self) -> u16 {
        let behaviour = self.behaviour();
        let (service_time, fails) = {
            let mut random = self.random();
            let service_time = match behaviour.service_time {
                ServiceTime::Fixed(time) => time,
                ServiceTime::Exponential(mean) => mean.mul_f64(exponential(&mut random)),
            };
            (service_time, random.f64() < behaviour.error_share)
        };
        if behaviour.workers.is_some() || !service_time.is_zero() {
            self.work.serve(service_time).await;
        }
        if !behaviour.delay.is_zero() {
            sleep(behaviour.delay).await;
        }
        if fails { 500 } else { behaviour.status }
    }

    /// Whether the next connection is to be reset.
    pub fn resets_connection(&self) -> bool {
        let share = self.behaviour().reset_share;
        share > 0.0 && self.random().f64() < share
    }

    /// Counts one more connection as open. The receiver changes when the connection is to be reset.
    pub fn open_connection(&self) -> watch::Receiver<()> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.send_modify(|open| *open += 1);
        self.resets.subscribe()
    }

    /// Counts a connection as open no more.
    pub fn close_connection(&self) {
        self.open.send_modify(|open| *open -= 1);
    }

    /// Has all open connections reset, and waits until they are closed.
    pub async fn reset_connections(&self) {
        self.resets.send_replace(());
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open == 0).await.expect("the sender is in the state, which self holds");
    }

    pub fn count_datagram(&self) {
        self.datagrams.fetch_add(1, Ordering::Relaxed);
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Time from a request to its answer that a share of the requests (0 to 1) does not exceed.
    pub fn latency(&self, share: f64) -> Duration {
        Duration::from_micros(self.served_us().value_at_quantile(share))
    }

    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Ordering::Relaxed),
            http_requests: self.http_requests.load(Ordering::Relaxed),
            datagrams: self.datagrams.load(Ordering::Relaxed),
            open: *self.open.borrow(),
            in_flight: self.in_flight(),
        }
    }

    /// Share of the workers that are at work, 0 to 1; none if there is a worker for every request.
    pub fn busy(&self) -> Option<f64> {
        self.work.busy()
    }
}

/// A request counted as in flight while it lives.
pub(super) struct InFlight<'a>(&'a State, Instant);

impl<'a> InFlight<'a> {
    pub fn new(state: &'a State) -> Self {
        state.http_requests.fetch_add(1, Ordering::Relaxed);
        state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(state, Instant::now())
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.served_us().saturating_record(self.1.elapsed().as_micros() as u64);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
