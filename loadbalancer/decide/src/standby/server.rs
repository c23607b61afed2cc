//! One server of the pool: its state, and to whom it is leased.

use std::time::Duration;

use super::explain::{Phase, ServerReport};
use super::keys::{ServiceKey, StandbyKey};
use super::reason::{Problem, Why};

#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) service: ServiceKey,
    pub(super) why: Why,
}

#[derive(Clone, Debug)]
pub(super) enum State {
    Idle {
        free_at: Duration,
    },
    Starting(Lease),
    Checking(Lease),
    Serving {
        lease: Lease,
        down_since: Option<Duration>,
    },
    Draining(Lease),
    /// `failed`: it was not drained, something is wrong with it.
    Stopping {
        lease: Lease,
        failed: bool,
        tries: u32,
    },
    /// `stop`: the stop hook is to be tried again.
    Failed {
        lease: Lease,
        free_at: Duration,
        stop: Option<u32>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) weight: u32,
    pub(super) state: State,
    pub(super) since: Duration,
    /// As told since the present state began.
    pub(super) flows: Option<u64>,
    pub(super) failures: u32,
    pub(super) last_problem: Option<Problem>,
    pub(super) removed: bool,
}

impl Server {
    pub(super) fn new(weight: u32, now: Duration) -> Self {
        Self {
            weight,
            state: State::Idle { free_at: now },
            since: now,
            flows: None,
            failures: 0,
            last_problem: None,
            removed: false,
        }
    }

    pub(super) fn enter(&mut self, state: State, now: Duration) {
        self.state = state;
        self.since = now;
        self.flows = None;
    }

    pub(super) fn note(&mut self, problem: Problem) {
        self.failures = self.failures.saturating_add(1);
        self.last_problem = Some(problem);
    }

    pub(super) fn lease(&self) -> Option<Lease> {
        match self.state {
            State::Idle { .. } | State::Failed { .. } => None,
            State::Starting(lease) | State::Checking(lease) | State::Draining(lease) => Some(lease),
            State::Serving { lease, .. } | State::Stopping { lease, .. } => Some(lease),
        }
    }

    /// It serves a service or is about to.
    pub(super) fn is_leased_to(&self, key: ServiceKey) -> bool {
        let leased = matches!(self.state, State::Starting(_) | State::Checking(_) | State::Serving { .. });
        leased && self.lease().is_some_and(|lease| lease.service == key)
    }

    pub(super) fn explain(&self, key: StandbyKey, now: Duration) -> ServerReport {
        let (state, free_at) = match self.state {
            State::Idle { free_at } => (Phase::Idle, Some(free_at)),
            State::Starting(_) => (Phase::Starting, None),
            State::Checking(_) => (Phase::Checking, None),
            State::Serving { .. } => (Phase::Serving, None),
            State::Draining(_) => (Phase::Draining, None),
            State::Stopping { .. } => (Phase::Stopping, None),
            State::Failed { free_at, .. } => (Phase::Failed, Some(free_at)),
        };
        ServerReport {
            server: key,
            weight: self.weight,
            state,
            since: self.since,
            service: self.lease().map(|lease| lease.service),
            why: self.lease().map(|lease| lease.why),
            flows: self.flows,
            free_in: free_at.and_then(|at| at.checked_sub(now)).filter(|left| !left.is_zero()),
            failures: self.failures,
            last_problem: self.last_problem.clone(),
        }
    }
}
