//! What a step of the pool gives: what is to be done, and what happened.

use super::keys::{ServiceKey, StandbyKey};
use super::reason::{Problem, Release, Why};

/// A command of the operator that starts or stops a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Start,
    Stop,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with [`hook_done`](super::Standby::hook_done); at once, if there is no hook.
    RunStartHook { server: StandbyKey, service: ServiceKey },
    /// As the service's checks; tell with [`checked`](super::Standby::checked) what comes of them, until it is returned.
    BeginChecks { server: StandbyKey, service: ServiceKey },
    /// With slow start, if it is new there.
    AddToService { server: StandbyKey, service: ServiceKey },
    /// No new flows; tell with [`set_flows`](super::Standby::set_flows) how many are left.
    DrainFromService { server: StandbyKey, service: ServiceKey },
    /// Take it out of the service altogether, if it is there, with its checks.
    RemoveFromService { server: StandbyKey, service: ServiceKey },
    /// Answer with [`hook_done`](super::Standby::hook_done).
    RunStopHook { server: StandbyKey, service: ServiceKey },
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Leased {
        server: StandbyKey,
        service: ServiceKey,
        why: Why,
    },
    Serves {
        server: StandbyKey,
        service: ServiceKey,
    },
    Drains {
        server: StandbyKey,
        service: ServiceKey,
        why: Release,
    },
    /// It was drained, and is needed again before it was empty.
    Resumed {
        server: StandbyKey,
        service: ServiceKey,
        why: Why,
    },
    /// Flows were left when time was over.
    DrainTimedOut {
        server: StandbyKey,
        service: ServiceKey,
        flows: u64,
    },
    Returned {
        server: StandbyKey,
    },
    /// It is stopped, and cools down before it is tried again.
    Failed {
        server: StandbyKey,
        problem: Problem,
    },
    /// A service is in need, and no server is free. Told once.
    PoolEmpty {
        service: ServiceKey,
    },
}

/// What a step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    pub actions: Vec<Action>,
    pub events: Vec<Event>,
}
