//! Standby servers: one pool for all services.
//!
//! ```text
//! Idle -> Starting (hook) -> Checking -> Serving -> Draining -> Stopping (hook) -> Idle, cooling down
//!             failed: ------------------------------------> Stopping -> Failed, cooling down -> Idle
//! ```
//!
//! A service that was worse than its level for a while gets one server, and the next one when that had time to act. With
//! more than one service in need, the one with the most flows per weight comes first. A service that was so much better
//! than its level for a while that it can spare a server gives the newest one back. If it then turns out to need one
//! again, it keeps the next one for longer. Nothing here waits or runs: hooks, checks and flows are told.

pub mod keys;
pub mod settings;
pub mod need;
mod service;
mod server;
pub mod reason;
pub mod step;
pub mod explain;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use self::explain::{ServiceReport, StandbyReport, Waits};
use self::keys::{ServiceKey, StandbyKey};
use self::reason::{Problem, Release, Why};
use self::server::{Lease, Server, State};
use self::service::Service;
use self::settings::{ServiceSettings, Settings};
use self::step::{Action, Event, Hook, Step};
use crate::quality::group::Level;

/// The pool.
#[derive(Debug)]
pub struct Standby {
    settings: Settings,
    servers: BTreeMap<StandbyKey, Server>,
    services: BTreeMap<ServiceKey, Service>,
}

impl Standby {
    pub fn new(settings: Settings) -> Self {
        Self { settings, servers: BTreeMap::new(), services: BTreeMap::new() }
    }

    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    pub fn set_service(&mut self, key: ServiceKey, settings: ServiceSettings) {
        match self.services.get_mut(&key) {
            Some(service) => service.settings = settings,
            None => {
                self.services.insert(key, Service::new(settings));
            }
        }
    }

    /// Its servers go back with the next step.
    pub fn remove_service(&mut self, key: ServiceKey) {
        self.services.remove(&key);
    }

    /// Adds a server to the pool, or changes the weight that it has from its next lease on.
    pub fn set_server(&mut self, key: StandbyKey, weight: u32, now: Duration) {
        let server = self.servers.entry(key).or_insert_with(|| Server::new(weight, now));
        (server.weight, server.removed) = (weight, false);
    }

    /// It goes back first, if it is leased.
    pub fn remove_server(&mut self, key: StandbyKey) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.removed = true;
        }
    }

    /// Takes over a lease of an earlier controller: the server serves, or drains. Both are to be set before. False: they
    /// are not, or the server is leased already.
    pub fn adopt(&mut self, key: StandbyKey, service_key: ServiceKey, drains: bool, now: Duration) -> bool {
        let Some(service) = self.services.get_mut(&service_key) else { return false };
        let Some(server) = self.servers.get_mut(&key) else { return false };
        if !matches!(server.state, State::Idle { .. }) {
            return false;
        }
        let lease = Lease { service: service_key, why: Why::Adopted };
        server.enter(if drains { State::Draining(lease) } else { State::Serving { lease, down_since: None } }, now);
        service.changed = Some(now);
        true
    }

    /// What a hook came to.
    pub fn hook_done(&mut self, key: StandbyKey, hook: Hook, result: Result<(), String>, now: Duration) -> Step {
        let mut step = Step::default();
        let Some(server) = self.servers.get_mut(&key) else { return step };
        match (server.state.clone(), hook, result) {
            (State::Starting(lease), Hook::Start, Ok(())) => {
                server.enter(State::Checking(lease), now);
                step.actions.push(Action::BeginChecks { server: key, service: lease.service });
            }
            (State::Starting(lease), Hook::Start, Err(message)) => {
                self.stop(key, lease, Some(Problem::StartHook(message)), now, &mut step);
            }
            (State::Stopping { lease, failed: true, .. }, Hook::Stop, Ok(())) => {
                self.rest_failed(key, lease, None, now);
            }
            (State::Stopping { .. }, Hook::Stop, Ok(())) => {
                step.events.push(Event::Returned { server: key });
                self.rest(key, now + self.settings.cool_down, now);
            }
            (State::Stopping { lease, tries, .. }, Hook::Stop, Err(message)) => {
                self.stop_failed(key, lease, message, tries, now, &mut step);
            }
            // Its time was over before it answered.
            _ => {}
        }
        step
    }

    /// What checks say of a server that is to serve, or serves.
    pub fn checked(&mut self, key: StandbyKey, up: bool, now: Duration) -> Step {
        let mut step = Step::default();
        let Some(server) = self.servers.get_mut(&key) else { return step };
        match &mut server.state {
            State::Checking(lease) if up => {
                let lease = *lease;
                let service = lease.service;
                (server.failures, server.last_problem) = (0, None);
                server.enter(State::Serving { lease, down_since: None }, now);
                if let Some(service) = self.services.get_mut(&service) {
                    service.changed = Some(now);
                }
                step.actions.push(Action::AddToService { server: key, service });
                step.events.push(Event::Serves { server: key, service });
            }
            State::Serving { down_since, .. } => {
                *down_since = if up { None } else { down_since.or(Some(now)) };
            }
            _ => {}
        }
        step
    }

    /// Live flows of a server, counted now.
    pub fn set_flows(&mut self, key: StandbyKey, flows: u64) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.flows = Some(flows);
        }
    }

    /// One step, with how the services do. A service whose level is not told is left as it was.
    pub fn step(&mut self, levels: &BTreeMap<ServiceKey, Level>, now: Duration) -> Step {
        let mut step = Step::default();
        self.pass(now, &mut step);
        for (key, level) in levels {
            self.look(*key, level, now);
        }
        let waits = self.lease(now, &mut step);
        self.release(waits, now, &mut step);
        step
    }

    /// What time alone does to servers.
    fn pass(&mut self, now: Duration, step: &mut Step) {
        let keys: Vec<StandbyKey> = self.servers.keys().copied().collect();
        for key in keys {
            let Some(server) = self.servers.get(&key) else { continue };
            let passed = now.saturating_sub(server.since);
            match server.state.clone() {
                State::Idle { .. } | State::Failed { stop: None, .. } if server.removed => {
                    self.servers.remove(&key);
                }
                State::Starting(lease) if passed >= self.settings.hook_timeout => {
                    let message = format!("no answer within {:.1} s", passed.as_secs_f64());
                    self.stop(key, lease, Some(Problem::StartHook(message)), now, step);
                }
                State::Checking(lease) if passed >= self.settings.check_timeout => {
                    self.stop(key, lease, Some(Problem::Checks), now, step);
                }
                State::Starting(lease) | State::Checking(lease) | State::Serving { lease, .. }
                    if !self.is_wanted(key, lease) =>
                {
                    self.drain(key, Release::Configured, now, step);
                }
                State::Serving { lease, down_since: Some(since) }
                    if now.saturating_sub(since) >= self.settings.check_timeout =>
                {
                    step.events.push(Event::Drains { server: key, service: lease.service, why: Release::Down });
                    self.stop(key, lease, Some(Problem::Down), now, step);
                }
                State::Draining(lease) if server.flows == Some(0) => self.stop(key, lease, None, now, step),
                State::Draining(lease) if passed >= self.settings.drain_timeout => {
                    let flows = server.flows.unwrap_or(0);
                    step.events.push(Event::DrainTimedOut { server: key, service: lease.service, flows });
                    self.stop(key, lease, None, now, step);
                }
                State::Stopping { lease, tries, .. } if passed >= self.settings.hook_timeout => {
                    let message = format!("no answer within {:.1} s", passed.as_secs_f64());
                    self.stop_failed(key, lease, message, tries, now, step);
                }
                State::Failed { lease, free_at, stop } if now >= free_at => match stop {
                    Some(tries) if tries < self.settings.stop_tries => self.run_stop_hook(key, lease, tries, now, step),
                    _ => self.rest(key, now, now),
                },
                _ => {}
            }
        }
    }

    /// Both the server and the service are still configured.
    fn is_wanted(&self, key: StandbyKey, lease: Lease) -> bool {
        self.servers.get(&key).is_some_and(|server| !server.removed) && self.services.contains_key(&lease.service)
    }

    /// Notes how a service does.
    fn look(&mut self, key: ServiceKey, level: &Level, now: Duration) {
        let spared = self.newest(key).and_then(|newest| self.servers.get(&newest));
        let spared_weight = spared.map_or(0, |server| u64::from(server.weight));
        let Some(service) = self.services.get_mut(&key) else { return };
        service.level = *level;
        service.breach = need::breach(&service.settings.levels, level);
        service.breach_since = service.breach.map(|_| service.breach_since.unwrap_or(now));
        let recovered = service.breach.is_none()
            && need::is_recovered(&service.settings.levels, level, service.settings.recovery, spared_weight);
        service.recovered_since = recovered.then(|| service.recovered_since.unwrap_or(now));
    }

    /// Leases servers to those that need them; true: somebody waits because none is free.
    fn lease(&mut self, now: Duration, step: &mut Step) -> bool {
        let below_minimum = |key: &ServiceKey, service: &Service| self.leases(*key) < service.settings.min as usize;
        let mut due: Vec<(ServiceKey, Why)> = Vec::new();
        for (key, service) in &self.services {
            match service.breach {
                _ if below_minimum(key, service) => due.push((*key, Why::Minimum)),
                Some(breach) if self.waits(*key, service, now).is_none() => due.push((*key, Why::Need(breach))),
                _ => {}
            }
        }
        due.sort_by(|(one, one_why), (other, other_why)| {
            self.busy(*other, other_why).total_cmp(&self.busy(*one, one_why))
        });
        let mut waiting = Vec::new();
        for (key, why) in due {
            if let Some(server) = self.draining_of(key) {
                self.resume(server, key, why, now, step);
            } else if let Some(server) = self.free(now) {
                self.begin(server, key, why, now, step);
            } else {
                waiting.push(key);
            }
        }
        for (key, service) in &mut self.services {
            let waits = waiting.contains(key);
            if waits && !service.waits {
                step.events.push(Event::PoolEmpty { service: *key });
            }
            service.waits = waits;
        }
        !waiting.is_empty()
    }

    /// Who comes first: who lacks its minimum, then the busiest, then the worst in comparison with its level.
    fn busy(&self, key: ServiceKey, why: &Why) -> OrderedNeed {
        let load = self.services.get(&key).map_or(0.0, |service| need::load(&service.level));
        match why {
            Why::Need(breach) => OrderedNeed { minimum: false, load, ratio: breach.ratio() },
            _ => OrderedNeed { minimum: true, load, ratio: 0.0 },
        }
    }

    /// Why a service in need gets nothing now; an empty pool aside.
    fn waits(&self, key: ServiceKey, service: &Service, now: Duration) -> Option<Waits> {
        let settings = &service.settings;
        let since = |at: Option<Duration>| at.map(|at| now.saturating_sub(at));
        let starting = |server: &Server| match server.state {
            State::Starting(lease) | State::Checking(lease) => lease.service == key,
            _ => false,
        };
        if since(service.breach_since).is_none_or(|passed| passed < settings.hold) {
            Some(Waits::Hold)
        } else if self.servers.values().any(starting) {
            Some(Waits::Starting)
        } else if self.leases(key) >= settings.max as usize {
            Some(Waits::AtMaximum)
        } else if self.leases(key) > 0 && since(service.changed).is_some_and(|passed| passed < settings.settle) {
            Some(Waits::Settling)
        } else {
            None
        }
    }

    fn begin(&mut self, key: StandbyKey, service_key: ServiceKey, why: Why, now: Duration, step: &mut Step) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.enter(State::Starting(Lease { service: service_key, why }), now);
        self.note_relapse(service_key, why, now);
        step.events.push(Event::Leased { server: key, service: service_key, why });
        step.actions.push(Action::RunStartHook { server: key, service: service_key });
    }

    /// A server that was being drained goes on.
    fn resume(&mut self, key: StandbyKey, service_key: ServiceKey, why: Why, now: Duration, step: &mut Step) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.enter(State::Serving { lease: Lease { service: service_key, why }, down_since: None }, now);
        self.note_relapse(service_key, why, now);
        if let Some(service) = self.services.get_mut(&service_key) {
            service.changed = Some(now);
        }
        step.events.push(Event::Resumed { server: key, service: service_key, why });
        step.actions.push(Action::AddToService { server: key, service: service_key });
    }

    fn note_relapse(&mut self, key: ServiceKey, why: Why, now: Duration) {
        let Some(service) = self.services.get_mut(&key).filter(|_| why != Why::Minimum) else { return };
        match service.gave_back.take().map(|at| now.saturating_sub(at)) {
            Some(passed) if passed < service.settings.relapse_within => {
                service.relapses = service.relapses.saturating_add(1);
            }
            Some(_) => service.relapses = 0,
            None => {}
        }
    }

    /// Takes servers from those that can spare one.
    fn release(&mut self, others_wait: bool, now: Duration, step: &mut Step) {
        let mut due: Vec<(StandbyKey, Release)> = Vec::new();
        for (key, service) in &self.services {
            let leases = self.leases(*key);
            let Some(newest) = self.newest(*key) else { continue };
            let settings = &service.settings;
            let recovered = service.recovered_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            let settled = service.changed.is_none_or(|at| now.saturating_sub(at) >= settings.settle);
            let spare = leases > settings.min as usize && settled && service.recovered_since.is_some();
            if leases > settings.max as usize {
                due.push((newest, Release::Configured));
            } else if spare && recovered >= service.recovery_for() {
                due.push((newest, Release::Recovered));
            } else if spare && others_wait && recovered >= settings.hold {
                due.push((newest, Release::NeededElsewhere));
            }
        }
        for (server, why) in due {
            self.drain(server, why, now, step);
        }
    }

    /// Takes a server from its service: one that serves when its flows are done.
    fn drain(&mut self, key: StandbyKey, why: Release, now: Duration, step: &mut Step) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        let Some(lease) = server.lease() else { return };
        if let Some(service) = self.services.get_mut(&lease.service) {
            (service.changed, service.recovered_since) = (Some(now), service.recovered_since.map(|_| now));
            if why != Release::Configured {
                service.gave_back = Some(now);
            }
        }
        step.events.push(Event::Drains { server: key, service: lease.service, why });
        if matches!(server.state, State::Serving { .. }) {
            server.enter(State::Draining(lease), now);
            step.actions.push(Action::DrainFromService { server: key, service: lease.service });
        } else {
            self.stop(key, lease, None, now, step);
        }
    }

    /// Takes a server out of its service and runs its stop hook, also if it was started in part only.
    fn stop(&mut self, key: StandbyKey, lease: Lease, problem: Option<Problem>, now: Duration, step: &mut Step) {
        let Some(server) = self.servers.get_mut(&key) else { return };

        server.enter(State::Stopping { lease, failed: problem.is_some(), tries: 1 }, now);
        if let Some(problem) = problem {
            server.note(problem.clone());
            step.events.push(Event::Failed { server: key, problem });
        }

        step.actions.push(Action::RemoveFromService { server: key, service: lease.service });
        step.actions.push(Action::RunStopHook { server: key, service: lease.service });
    }

    fn run_stop_hook(&mut self, key: StandbyKey, lease: Lease, tries: u32, now: Duration, step: &mut Step) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.enter(State::Stopping { lease, failed: true, tries: tries + 1 }, now);
        step.actions.push(Action::RunStopHook { server: key, service: lease.service });
    }

    fn rest(&mut self, key: StandbyKey, free_at: Duration, now: Duration) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.enter(State::Idle { free_at }, now);
        }
    }

    fn stop_failed(
        &mut self,
        key: StandbyKey,
        lease: Lease,
        message: String,
        tries: u32,
        now: Duration,
        step: &mut Step,
    ) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        let problem = Problem::StopHook(message);
        server.note(problem.clone());
        step.events.push(Event::Failed { server: key, problem });
        self.rest_failed(key, lease, Some(tries), now);
    }

    /// `stop`: how often its stop hook was tried in vain.
    fn rest_failed(&mut self, key: StandbyKey, lease: Lease, stop: Option<u32>, now: Duration) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        let rest = self.settings.retry_after.saturating_mul(server.failures).min(self.settings.retry_most);
        server.enter(State::Failed { lease, free_at: now + rest, stop }, now);
    }

    /// Servers that serve a service or are about to.
    fn leases(&self, key: ServiceKey) -> usize {
        self.servers.values().filter(|server| server.is_leased_to(key)).count()
    }

    /// The server that a service got last.
    fn newest(&self, key: ServiceKey) -> Option<StandbyKey> {
        let leased = self.servers.iter().filter(|(_, server)| server.is_leased_to(key));
        leased.max_by_key(|(key, server)| (server.since, Reverse(**key))).map(|(key, _)| *key)
    }

    fn draining_of(&self, key: ServiceKey) -> Option<StandbyKey> {
        let drains = |server: &Server| matches!(server.state, State::Draining(lease) if lease.service == key);
        self.servers.iter().find(|(_, server)| drains(server) && !server.removed).map(|(key, _)| *key)
    }

    /// A server that can be leased, the one that rested longest.
    fn free(&self, now: Duration) -> Option<StandbyKey> {
        let rested = |server: &Server| match server.state {
            State::Idle { free_at } if now >= free_at && !server.removed => Some(server.since),
            _ => None,
        };
        self.servers.iter().filter_map(|(key, server)| Some((rested(server)?, *key))).min().map(|(_, key)| key)
    }

    pub fn explain(&self, now: Duration) -> StandbyReport {
        let servers = self.servers.iter().map(|(key, server)| server.explain(*key, now)).collect();
        let services = self.services.iter().map(|(key, service)| self.explain_service(*key, service, now)).collect();
        StandbyReport { servers, services }
    }

    fn explain_service(&self, key: ServiceKey, service: &Service, now: Duration) -> ServiceReport {
        let passed = |since: Option<Duration>| since.map(|since| now.saturating_sub(since));
        let leased = self.servers.iter().filter(|(_, server)| server.is_leased_to(key));
        let waits = service.breach.and_then(|_| {
            let none_free = self.free(now).is_none() && self.draining_of(key).is_none();
            self.waits(key, service, now).or(none_free.then_some(Waits::PoolEmpty))
        });
        ServiceReport {
            service: key,
            leases: leased.map(|(key, _)| *key).collect(),
            min: service.settings.min,
            max: service.settings.max,
            load: Some(need::load(&service.level)).filter(|load| load.is_finite()),
            p90: service.level.p90,
            failure_share: service.level.failures,
            breach: service.breach,
            breach_for: passed(service.breach_since),
            recovered_for: passed(service.recovered_since),
            give_back_after: service.recovery_for(),
            waits,
        }
    }
}

struct OrderedNeed {
    minimum: bool,
    load: f64,
    ratio: f64,
}

impl OrderedNeed {
    fn total_cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_need = self.minimum.cmp(&other.minimum);
        by_need.then(self.load.total_cmp(&other.load)).then(self.ratio.total_cmp(&other.ratio))
    }
}
