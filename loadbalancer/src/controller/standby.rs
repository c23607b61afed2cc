//! The pool of standby servers, by the names of the configuration: what its state machine asks for is done here.

use std::collections::{BTreeMap, HashMap};
use std::ops::BitOrAssign;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::status::{StandbyServerStatus, StandbyServiceStatus, StandbyStatus, now_ms};
use crate::config::Config;
use crate::health::{CheckKind, CheckSpec, CommandCheck, Sockets, Target, Via, probe};
use decide::plan::topology::Server;
use decide::quality::group::Level;
use decide::standby::Standby;
use decide::standby::keys::{ServiceKey, StandbyKey};
use decide::standby::step::{Action, Event, Hook, Step};

/// How much longer than a hook's own time-out its end is waited for: that it was killed is told by who killed it.
const HOOK_GRACE: Duration = Duration::from_secs(5);

/// What a hook came to.
#[derive(Clone, Debug)]
pub struct HookDone {
    server: StandbyKey,
    hook: Hook,
    result: Result<(), String>,
}

/// How far a leased server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It gets no new flows before its checks pass.
    Checking,
    Serving,
    Draining,
}

/// A server of the pool that belongs to a service for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub service: String,
    pub phase: Phase,
}

/// What must be done about configuration and kernel after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A server came to a service, or left it.
    pub members: bool,
    /// A server's phase changed.
    pub phases: bool,
}

impl BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Self) {
        self.members |= other.members;
        self.phases |= other.phases;
    }
}

#[derive(Debug)]
pub struct StandbyPool {
    standby: Standby,
    epoch: Instant,
    hooks: mpsc::Sender<HookDone>,
    servers: BTreeMap<StandbyKey, Server>,
    services: BTreeMap<ServiceKey, String>,
    start: Option<CommandCheck>,
    stop: Option<CommandCheck>,
    hook_timeout: Duration,
    next_key: u32,
    leases: BTreeMap<StandbyKey, Lease>,
}

impl StandbyPool {
    pub fn new(hooks: mpsc::Sender<HookDone>, now: Instant) -> Self {
        Self {
            standby: Standby::new(Default::default()),
            epoch: now,
            hooks,
            servers: BTreeMap::new(),
            services: BTreeMap::new(),
            start: None,
            stop: None,
            hook_timeout: Duration::ZERO,
            next_key: 0,
            leases: BTreeMap::new(),
        }
    }

    fn now(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Brings the pool to the configuration. What is leased and not configured any more goes back with the next steps.
    pub fn follow(&mut self, file: &Config, now: Instant) {
        let now = self.now(now);
        self.hook_timeout = file.standby.settings.hook_timeout;
        let mut settings = file.standby.settings.clone();
        settings.hook_timeout = settings.hook_timeout.saturating_add(HOOK_GRACE);
        self.standby.set_settings(settings);
        self.start.clone_from(&file.standby.start);
        self.stop.clone_from(&file.standby.stop);
        let pool = &file.standby.servers;
        for (key, server) in &self.servers {
            if !pool.iter().any(|new| new.name == server.name && new.addr == server.addr && new.port == server.port) {
                self.standby.remove_server(*key);
            }
        }
        for server in pool {
            let same = |old: &&Server| (&old.name, old.addr, old.port) == (&server.name, server.addr, server.port);
            let known = self.servers.iter().find(|(_, old)| same(old)).map(|(key, _)| *key);
            let key = known.unwrap_or_else(|| StandbyKey(self.number()));
            self.servers.insert(key, server.clone());
            self.standby.set_server(key, u32::from(server.weight), now);
        }
        let users: HashMap<&str, _> = file
            .services
            .iter()
            .filter_map(|service| Some((service.name.as_str(), service.standby.as_ref()?)))
            .collect();
        let gone: Vec<ServiceKey> =
            self.services.iter().filter(|(_, name)| !users.contains_key(name.as_str())).map(|(key, _)| *key).collect();
        for key in gone {
            self.services.remove(&key);
            self.standby.remove_service(key);
        }
        for (name, settings) in users {
            let key = self.service_key(name).unwrap_or_else(|| ServiceKey(self.number()));
            self.services.insert(key, name.to_owned());
            self.standby.set_service(key, settings.clone());
        }
    }

    fn number(&mut self) -> u32 {
        self.next_key += 1;
        self.next_key
    }

    fn service_key(&self, name: &str) -> Option<ServiceKey> {
        self.services.iter().find(|(_, known)| *known == name).map(|(key, _)| *key)
    }

    /// Goes on with leases of an earlier controller. `found`: whether a server of the pool is in a service, and drains.
    pub fn adopt(&mut self, found: impl Fn(&str, &Server) -> Option<bool>, now: Instant) {
        let now = self.now(now);
        for (service_key, service) in &self.services {
            for (key, server) in &self.servers {
                if let Some(drains) = found(service, server)
                    && self.standby.adopt(*key, *service_key, drains, now)
                {
                    tracing::info!(server = %server.name, %service, drains, "standby server adopted");
                    let phase = if drains { Phase::Draining } else { Phase::Serving };
                    self.leases.insert(*key, Lease { service: service.clone(), phase });
                }
            }
        }
    }

    /// The configuration with all leased servers in their services.
    pub fn effective(&self, file: &Config) -> Config {
        let mut config = file.clone();
        for (key, lease) in &self.leases {
            let service = config.services.iter_mut().find(|service| service.name == lease.service);
            if let (Some(service), Some(server)) = (service, self.servers.get(key)) {
                let port = server.port.filter(|_| !service.mode.is_dsr());
                service.servers.push(Server { port, ..server.clone() });
            }
        }
        config
    }

    /// How far a server of a service is, if it is of the pool.
    pub fn phase(&self, service: &str, server: &str) -> Option<Phase> {
        let of_pool = |(key, lease): (&StandbyKey, &Lease)| {
            let name = &self.servers.get(key)?.name;
            (lease.service == service && name == server).then_some(lease.phase)
        };
        self.leases.iter().find_map(of_pool)
    }

    /// Leased servers, with their services.
    pub fn leased(&self) -> Vec<(StandbyKey, String, Server)> {
        let with_server =
            |(key, lease): (&StandbyKey, &Lease)| Some((*key, lease.service.clone(), self.servers.get(key)?.clone()));
        self.leases.iter().filter_map(with_server).collect()
    }

    /// What is known of a leased server now.
    pub fn observe(&mut self, server: StandbyKey, up: bool, flows: u64, now: Instant) -> Changes {
        let now = self.now(now);
        self.standby.set_flows(server, flows);
        let step = self.standby.checked(server, up, now);
        self.act(step)
    }

    /// One step, with how each service does.
    pub fn step(&mut self, levels: &HashMap<String, Level>, now: Instant) -> Changes {
        let now = self.now(now);
        let levels = levels.iter().filter_map(|(name, level)| Some((self.service_key(name)?, *level))).collect();
        let step = self.standby.step(&levels, now);
        self.act(step)
    }

    pub fn on_hook(&mut self, done: HookDone, now: Instant) -> Changes {
        let now = self.now(now);
        let step = self.standby.hook_done(done.server, done.hook, done.result, now);
        self.act(step)
    }

    fn act(&mut self, step: Step) -> Changes {
        for event in &step.events {
            self.tell(event);
        }
        let mut changes = Changes::default();
        for action in step.actions {
            match action {
                Action::RunStartHook { server, service } => self.run(server, service, Hook::Start),
                Action::RunStopHook { server, service } => self.run(server, service, Hook::Stop),
                Action::BeginChecks { server, service } => {
                    if let Some(name) = self.services.get(&service) {
                        self.leases.insert(server, Lease { service: name.clone(), phase: Phase::Checking });
                        changes.members = true;
                    }
                }
                Action::AddToService { server, .. } => changes.phases |= self.set_phase(server, Phase::Serving),
                Action::DrainFromService { server, .. } => changes.phases |= self.set_phase(server, Phase::Draining),
                Action::RemoveFromService { server, .. } => changes.members |= self.leases.remove(&server).is_some(),
            }
        }
        changes
    }

    fn set_phase(&mut self, server: StandbyKey, phase: Phase) -> bool {
        self.leases.get_mut(&server).map(|lease| lease.phase = phase).is_some()
    }

    /// Runs a hook in a task of its own; without one it is done at once.
    fn run(&self, key: StandbyKey, service: ServiceKey, hook: Hook) {
        let command = match hook {
            Hook::Start => &self.start,
            Hook::Stop => &self.stop,
        };
        let spec = command.as_ref().zip(self.servers.get(&key)).map(|(command, server)| CheckSpec {
            kind: CheckKind::Command(command.clone()),
            target: Target {
                address: (server.addr, server.port.unwrap_or(0)).into(),
                via: Via::default(),
                source_port: None,
                service: self.services.get(&service).cloned().unwrap_or_default(),
                server: server.name.clone(),
            },
            interval: Duration::from_secs(1),
            timeout: self.hook_timeout,
        });
        let hooks = self.hooks.clone();
        tokio::spawn(async move {
            let result = match spec {
                Some(spec) => probe(&spec, &Sockets::default()).await.map(drop).map_err(|error| error.to_string()),
                None => Ok(()),
            };
            // Whoever waits for it may have ended.
            if hooks.send(HookDone { server: key, hook, result }).await.is_err() {
                tracing::debug!("a hook ended after the controller");
            }
        });
    }

    fn tell(&self, event: &Event) {
        let server = |key: &StandbyKey| self.servers.get(key).map_or("", |server| server.name.as_str());
        let service = |key: &ServiceKey| self.services.get(key).map_or("", String::as_str);
        match event {
            Event::Leased { server: it, service: to, why } => {
                tracing::info!(server = server(it), service = service(to), %why, "standby server allocated");
            }
            Event::Serves { server: it, service: to } => {
                tracing::info!(server = server(it), service = service(to), "standby server serves");
            }
            Event::Drains { server: it, service: of, why } => {
                tracing::info!(server = server(it), service = service(of), %why, "standby server is given back");
            }
            Event::Resumed { server: it, service: to, why } => {
                tracing::info!(server = server(it), service = service(to), %why, "standby server stays");
            }
            Event::DrainTimedOut { server: it, service: of, flows } => {
                tracing::warn!(server = server(it), service = service(of), flows, "given back with live flows");
            }
            Event::Returned { server: it } => tracing::info!(server = server(it), "standby server is back in the pool"),
            Event::Failed { server: it, problem } => {
                tracing::error!(server = server(it), %problem, "standby server failed; it is tried again later");
            }
            Event::PoolEmpty { service: of } => {
                tracing::warn!(service = service(of), "in need of a standby server, but none is free");
            }
        }
    }

    pub fn status(&self, now: Instant) -> StandbyStatus {
        let now = self.now(now);
        let report = self.standby.explain(now);
        let name = |key: &StandbyKey| self.servers.get(key).map_or_else(String::new, |server| server.name.clone());
        let servers = report.servers.into_iter().map(|report| StandbyServerStatus {
            name: name(&report.server),
            address: self.servers.get(&report.server).map(|server| server.addr),
            leased_to: report.service.and_then(|key| self.services.get(&key).cloned()),
            report,
        });
        let services = report.services.into_iter().map(|report| StandbyServiceStatus {
            name: self.services.get(&report.service).cloned().unwrap_or_default(),
            has: report.leases.iter().map(name).collect(),
            report,
        });
        StandbyStatus { taken_ms: now_ms(), uptime: now, servers: servers.collect(), services: services.collect() }
    }
}
