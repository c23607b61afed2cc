//! The loops from measured quality to weights of all services, and what they say of each server.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::desire::ServerId;
use crate::dataplane::signals::{Interval, Latencies};
use crate::health::{AgentAdmin, AgentState, ProbeError, Word as AgentWord};
use crate::quality::Settings;
use crate::quality::explain::{GroupReport, ServerReport};
use crate::quality::group::{Entry, Event, Group, Level, Nominal};
use crate::quality::signal::{Counts, Failure, Histogram, Kind, ReportedLoad, Sample, ServerKey, Word, WordState};

/// Who is compared with whom: a service in the kernel, and a tier of it.
pub type GroupKey = (u64, u8);

/// What measured quality makes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Weight in the ring.
    pub ring: u32,
    /// Whether new flows may go to it.
    pub serves: bool,
    /// Weight by which its active flows are judged.
    pub load: u32,
    pub high_water: Option<u32>,
}

/// A server as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    pub key: ServerKey,
    pub id: ServerId,
    pub tier: u8,
    pub nominal: Nominal,
    pub entry: Entry,
    /// Checks let it serve, and there is a way to it.
    pub up: bool,
    pub active: u32,
    pub word: Word,
}

/// All weights, and why they are what they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Seconds since the controller's start, which other times are told in.
    pub uptime_s: f64,
    /// Rings published until now.
    pub rings: u64,
    pub services: Vec<ServiceReport>,
}

/// One tier of a service; with `nat` and `dnat` of one family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub service: String,
    pub tier: u8,
    /// Too few servers are in good order: ejected ones serve as well.
    pub panic: bool,
    /// When the last ring was published.
    pub published_at_s: Option<f64>,
    pub servers: Vec<NamedServer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedServer {
    pub name: String,
    #[serde(flatten)]
    pub report: ServerReport,
}

/// What happened in a step.
#[derive(Debug, Default)]
pub struct Step {
    pub events: Vec<Event>,
    /// The kernel must be told.
    pub changed: bool,
}

#[derive(Debug)]
pub struct Quality {
    epoch: Instant,
    groups: BTreeMap<GroupKey, Group>,
    members: HashMap<ServerKey, GroupKey>,
    given: HashMap<ServerKey, Given>,
    /// Rings published until now.
    pub rings: u64,
}

impl Quality {
    pub fn new(now: Instant) -> Self {
        Self { epoch: now, groups: BTreeMap::new(), members: HashMap::new(), given: HashMap::new(), rings: 0 }
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Takes a result of a probe: of the check or of a monitor.
    pub fn sample(&mut self, server: ServerKey, kind: Kind, result: Result<Duration, &ProbeError>, now: Instant) {
        let result = match result {
            Ok(latency) => Ok(latency),
            Err(error) if error.is_local() => return,
            Err(ProbeError::TimedOut { after, .. }) => Err(Failure::Late(*after)),
            Err(_) => Err(Failure::Error),
        };
        let now = self.since_epoch(now);
        if let Some(group) = self.members.get(&server).and_then(|key| self.groups.get_mut(key)) {
            group.sample(&Sample { target: server.into(), kind, result }, now);
        }
    }

    /// Takes what the packet path has seen of a server.
    pub fn passed(&mut self, server: ServerKey, seen: &Interval, now: Instant) {
        let now = self.since_epoch(now);
        let Some(group) = self.members.get(&server).and_then(|key| self.groups.get_mut(key)) else { return };
        let kinds = [
            (Kind::Handshake, &seen.handshakes, seen.lost_handshakes, seen.refused_handshakes),
            (Kind::Response, &seen.responses, seen.lost_requests, seen.refused_requests),
        ];
        for (kind, latencies, losses, errors) in kinds {
            if latencies.count() + losses + errors > 0 {
                let latencies = histogram(latencies);
                group.counts(&Counts { target: server.into(), kind, latencies, losses, errors }, now);
            }
        }
    }

    /// One step of all loops, with the settings of each service in the kernel and with all servers as they are; who is not among them is forgotten.
    pub fn step(&mut self, servers: &[Present], settings: &HashMap<u64, Settings>, now: Instant) -> Step {
        let now = self.since_epoch(now);
        self.follow(servers, settings, now);
        let mut step = Step::default();
        for group in self.groups.values_mut() {
            let result = group.step(now);
            step.events.extend(result.events);
            self.rings += u64::from(result.publish);
            for weight in result.servers {
                let before = self.given.get(&weight.server);
                let given = Given {
                    ring: if result.publish { weight.weight } else { before.map_or(0, |before| before.ring) },
                    serves: weight.weight > 0,
                    load: weight.load_weight,
                    high_water: weight.high_water,
                };
                step.changed |= before != Some(&given);
                self.given.insert(weight.server, given);
            }
        }
        step
    }

    fn follow(&mut self, servers: &[Present], settings: &HashMap<u64, Settings>, now: Duration) {
        for server in servers {
            let key = (server.id.service, server.tier);
            if let Some(old) = self.members.insert(server.key, key)
                && old != key
                && let Some(group) = self.groups.get_mut(&old)
            {
                group.remove_server(server.key);
            }
            let group = self
                .groups
                .entry(key)
                .or_insert_with(|| Group::new(settings.get(&server.id.service).cloned().unwrap_or_default(), now));
            group.set_server(server.key, server.nominal, server.entry, now);
            group.set_up(server.key, server.up);
            group.set_active(server.key, server.active);
            group.set_word(server.key, server.word);
        }
        for server in self.gone(servers) {
            self.given.remove(&server);
            if let Some(group) = self.members.remove(&server).and_then(|key| self.groups.get_mut(&key)) {
                group.remove_server(server);
            }
        }
        for ((service, _), group) in &mut self.groups {
            if let Some(settings) = settings.get(service) {
                group.set_settings(settings);
            }
        }
        self.groups.retain(|_, group| group.servers().next().is_some());
    }

    /// Who is known, but not among these any more.
    fn gone(&self, servers: &[Present]) -> Vec<ServerKey> {
        // All of them are known by now.
        if self.members.len() == servers.len() {
            return Vec::new();
        }
        let present: HashSet<ServerKey> = servers.iter().map(|server| server.key).collect();
        self.members.keys().filter(|key| !present.contains(key)).copied().collect()
    }

    pub fn given(&self, server: ServerKey) -> Option<Given> {
        self.given.get(&server).copied()
    }

    /// How a service does: all its groups together.
    pub fn level(&self, services: &[u64]) -> Level {
        let groups = self.groups.iter().filter(|((service, _), _)| services.contains(service));
        groups.map(|(_, group)| group.level()).fold(Level::default(), |all, one| Level {
            p90: all.p90.max(one.p90),
            failures: all.failures.max(one.failures),
            active: all.active + one.active,
            weight: all.weight + one.weight,
        })
    }

    /// Why the weights are what they are, by service in the kernel and tier.
    pub fn explain(&self, now: Instant) -> impl Iterator<Item = (GroupKey, GroupReport)> {
        let now = self.since_epoch(now);
        self.groups.iter().map(move |(key, group)| (*key, group.explain(now)))
    }
}

/// Latencies as the packet path counts them, as the loops take them.
pub fn histogram(latencies: &Latencies) -> Histogram {
    let mut histogram = Histogram::from_counts(&latencies.counts);
    histogram.sum_ns = Some(latencies.sum_ns);
    histogram
}

/// What a server says of itself, as the loop takes it.
pub fn word(said: &AgentWord) -> Word {
    let state = match (said.admin, said.state) {
        (Some(AgentAdmin::Maint), _) => WordState::Maintenance,
        (Some(AgentAdmin::Drain), _) => WordState::Drain,
        (_, Some(AgentState::Down | AgentState::Fail | AgentState::Stopped)) => WordState::Down,
        _ => WordState::Up,
    };
    Word {
        state,
        weight_percent: said.weight_percent.map_or(100, |percent| u16::try_from(percent).unwrap_or(u16::MAX)),
        max_connections: said.max_connections,
        load: (said.cpu.is_some() || said.memory.is_some() || said.in_flight.is_some()).then(|| ReportedLoad {
            cpu: said.cpu,
            memory: said.memory,
            requests_in_flight: said.in_flight.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        }),
    }
}
