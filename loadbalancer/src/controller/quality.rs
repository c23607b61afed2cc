//! The loops from measured quality to weights of all services, and what they say of each server.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::config::Service;
use crate::dataplane::signals::{Interval, Latencies};
use crate::health::{AgentAdmin, AgentReport, AgentState, ProbeError};
use decide::plan::status::WeightDecision;
use decide::quality::Settings;
use decide::quality::explain::GroupReport;
use decide::quality::group::entry::{Entry, Nominal};
use decide::quality::group::{Event, Group, Level};
use decide::quality::signal::{Counts, Failure, Histogram, Kind, ReportedLoad, Sample, SelfReport, SelfReportState};
use decide::tiers;
use decide::tiers::explain::TierReport;
use decide::tiers::{Event as TierEvent, Shared, Tier, Tiers};
use model::ids::ServerId;
use model::ids::ServiceId;

/// Who is compared with whom: a service in the kernel, and a tier of it.
pub type GroupKey = (ServiceId, u8);

/// Constants of the loops of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Constants {
    pub quality: Settings,
    /// None: lower tiers get only what the first refuses.
    pub tiers: Option<tiers::Settings>,
}

impl Constants {
    /// Of a service; where it is asked seldom, it is not stale as soon.
    pub fn of(service: &Service) -> Self {
        let mut quality = service.quality.clone();
        quality.marks = service.queue.as_ref().and_then(|queue| queue.marks.adaptive());
        let intervals = service.check.iter().map(|check| check.interval + check.timeout);
        let monitors = service.monitors.iter().map(|monitor| monitor.interval + monitor.timeout);
        if let Some(shortest) = intervals.chain(monitors).min() {
            quality.measure.stale_after = quality.measure.stale_after.max(shortest * 3);
        }
        Self { quality, tiers: service.tiers.clone() }
    }
}

/// A server as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    pub id: ServerId,
    pub tier: u8,
    pub nominal: Nominal,
    pub entry: Entry,
    /// Checks let it serve, and there is a way to it.
    pub up: bool,
    pub active: u32,
    pub self_report: SelfReport,
}

/// What happened in a step.
#[derive(Debug, Default)]
pub struct Step {
    pub events: Vec<Event>,
    /// What happened to the tiers of which service in the kernel.
    pub tiers: Vec<(ServiceId, TierEvent)>,
    /// The kernel must be told.
    pub changed: bool,
}

#[derive(Debug)]
pub struct Quality {
    epoch: Instant,
    groups: BTreeMap<GroupKey, Group>,
    tiers: BTreeMap<ServiceId, Tiers>,
    members: HashMap<ServerId, GroupKey>,
    given: HashMap<ServerId, WeightDecision>,
    /// Rings published until now.
    pub rings: u64,
}

impl Quality {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            groups: BTreeMap::new(),
            tiers: BTreeMap::new(),
            members: HashMap::new(),
            given: HashMap::new(),
            rings: 0,
        }
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Takes a result of a probe: of the check or of a monitor.
    pub fn sample(&mut self, server: ServerId, kind: Kind, result: Result<Duration, &ProbeError>, now: Instant) {
        let result = match result {
            Ok(latency) => Ok(latency),
            Err(error) if error.is_local() => return,
            Err(error) => Err(match error.cause() {
                ProbeError::TimedOut { after, .. } => Failure::Late(*after),
                _ => Failure::Error,
            }),
        };
        let now = self.since_epoch(now);
        let Some(key) = self.members.get(&server) else { return };
        let Some(group) = self.groups.get_mut(key) else { return };
        let sample = Sample { target: server.into(), kind, result };
        group.sample(&sample, now);
        if let Some(tiers) = self.tiers.get_mut(&key.0).filter(|_| group.serves(server)) {
            tiers.sample(key.1, &sample, now);
        }
    }

    /// What is asked of a server has changed.
    pub fn forget_probes(&mut self, server: ServerId) {
        if let Some(group) = self.members.get(&server).and_then(|key| self.groups.get_mut(key)) {
            group.forget_probes(server);
        }
    }

    /// Takes what the packet path has seen of a server.
    pub fn passed(&mut self, server: ServerId, seen: &Interval, now: Instant) {
        let now = self.since_epoch(now);
        let Some(key) = self.members.get(&server) else { return };
        let Some(group) = self.groups.get_mut(key) else { return };
        let mut tiers = self.tiers.get_mut(&key.0).filter(|_| group.serves(server));
        let kinds = [
            (Kind::Handshake, &seen.handshakes, seen.lost_handshakes, seen.refused_handshakes),
            (Kind::Response, &seen.responses, seen.lost_requests, seen.refused_requests),
        ];
        for (kind, latencies, losses, errors) in kinds {
            if latencies.count() + losses + errors > 0 {
                let latencies = histogram(latencies);
                let counts = Counts { target: server.into(), kind, latencies, losses, errors };
                group.counts(&counts, now);
                if let Some(tiers) = &mut tiers {
                    tiers.counts(key.1, &counts, now);
                }
            }
        }
    }

    /// One step of all loops, with the constants of each service in the kernel and with all servers as they are; who is
    /// not among them is forgotten.
    pub fn step(&mut self, servers: &[Present], constants: &HashMap<ServiceId, Constants>, now: Instant) -> Step {
        let now = self.since_epoch(now);
        self.follow(servers, constants, now);
        let mut step = Step::default();
        let mut rings = BTreeSet::new();
        let mut tiers: BTreeMap<ServiceId, Vec<Tier>> = BTreeMap::new();
        for (key, group) in &mut self.groups {
            let result = group.step(now);
            step.events.extend(result.events);
            self.rings += u64::from(result.publish);
            if result.publish {
                rings.insert(*key);
            }
            if self.tiers.contains_key(&key.0) {
                let serving = result.servers.iter().filter(|server| server.weight > 0);
                tiers.entry(key.0).or_default().push(Tier {
                    tier: key.1,
                    active: group.active(),
                    nominal: group.weight(),
                    servers: serving.map(|server| (server.server, server.weight)).collect(),
                });
            }
            for weight in result.servers {
                let before = self.given.get(&weight.server);
                let given = WeightDecision {
                    ring: if result.publish { weight.weight } else { before.map_or(0, |before| before.ring) },
                    serves: weight.weight > 0,
                    load: weight.load_weight,
                    high_water: weight.high_water,
                    help: before.and_then(|before| before.help),
                };
                step.changed |= before != Some(&given);
                self.given.insert(weight.server, given);
            }
        }
        self.step_tiers(&tiers, &rings, constants, now, &mut step);
        step
    }

    fn step_tiers(
        &mut self,
        present: &BTreeMap<ServiceId, Vec<Tier>>,
        rings: &BTreeSet<GroupKey>,
        constants: &HashMap<ServiceId, Constants>,
        now: Duration,
        step: &mut Step,
    ) {
        for (service, loop_of_it) in &mut self.tiers {
            let (Some(tiers), Some(constants)) = (present.get(service), constants.get(service)) else { continue };
            let first = tiers.iter().find(|tier| !tier.servers.is_empty()).map(|tier| (*service, tier.tier));
            let anyway = first.is_some_and(|key| rings.contains(&key));
            let result = loop_of_it.step(tiers, anyway, &Shared::from(&constants.quality), now);
            step.tiers.extend(result.events.into_iter().map(|event| (*service, event)));
            if result.publish && !anyway {
                self.rings += 1;
                if let Some(group) = first.and_then(|key| self.groups.get_mut(&key)) {
                    group.note_ring(now);
                }
            }
        }
        if self.tiers.is_empty() && self.given.values().all(|given| given.help.is_none()) {
            return;
        }
        for (server, given) in &mut self.given {
            let service = self.members.get(server).map(|(service, _)| service);
            let help = service.and_then(|service| self.tiers.get(service)).and_then(|tiers| tiers.help(*server));
            step.changed |= given.help != help;
            given.help = help;
        }
    }

    fn follow(&mut self, servers: &[Present], constants: &HashMap<ServiceId, Constants>, now: Duration) {
        for server in servers {
            let key = (server.id.service, server.tier);
            if let Some(old) = self.members.insert(server.id, key)
                && old != key
                && let Some(group) = self.groups.get_mut(&old)
            {
                group.remove_server(server.id);
            }
            let settings = || constants.get(&server.id.service).map(|it| it.quality.clone()).unwrap_or_default();
            let group = self.groups.entry(key).or_insert_with(|| Group::new(settings(), now));
            group.set_server(server.id, server.nominal, server.entry, now);
            group.set_up(server.id, server.up);
            group.set_active(server.id, server.active);
            group.set_self_report(server.id, server.self_report);
        }
        for server in self.gone(servers) {
            self.given.remove(&server);
            if let Some(group) = self.members.remove(&server).and_then(|key| self.groups.get_mut(&key)) {
                group.remove_server(server);
            }
        }
        for ((service, _), group) in &mut self.groups {
            if let Some(constants) = constants.get(service) {
                group.set_settings(&constants.quality);
            }
        }
        self.groups.retain(|_, group| group.servers().next().is_some());
        let settings = |service: &ServiceId| constants.get(service).and_then(|constants| constants.tiers.as_ref());
        self.tiers.retain(|service, _| settings(service).is_some());
        for service in constants.keys() {
            if let Some(settings) = settings(service) {
                let tiers = self.tiers.entry(*service).or_insert_with(|| Tiers::new(settings.clone(), now));
                tiers.set_settings(settings);
            }
        }
    }

    /// Who is known, but not among these any more.
    fn gone(&self, servers: &[Present]) -> Vec<ServerId> {
        // All of them are known by now.
        if self.members.len() == servers.len() {
            return Vec::new();
        }
        let present: HashSet<ServerId> = servers.iter().map(|server| server.id).collect();
        self.members.keys().filter(|key| !present.contains(key)).copied().collect()
    }

    /// How many servers are known.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    pub fn given(&self, server: ServerId) -> Option<WeightDecision> {
        self.given.get(&server).copied()
    }

    /// How a service does: all its groups together.
    pub fn level(&self, services: &[ServiceId]) -> Level {
        let groups = self.groups.iter().filter(|((service, _), _)| services.contains(service));
        groups.map(|(_, group)| group.level()).fold(Level::default(), |all, one| Level {
            p90: all.p90.max(one.p90),
            failures: all.failures.max(one.failures),
            active: all.active + one.active,
            weight: all.weight + one.weight,
        })
    }

    /// How a tier stands beside the others; None: the service has no levels for its tiers.
    pub fn explain_tier(&self, (service, tier): GroupKey) -> Option<TierReport> {
        self.tiers.get(&service).map(|tiers| tiers.explain(tier))
    }

    /// Why the weights are what they are, by service in the kernel and tier.
    pub fn explain(&self, now: Instant) -> impl Iterator<Item = (GroupKey, GroupReport)> {
        let now = self.since_epoch(now);
        self.groups.iter().map(move |(key, group)| (*key, group.explain(now)))
    }
}

/// Latencies as the packet path counts them, as the loops take them.
pub fn histogram(latencies: &Latencies) -> Histogram {
    let mut histogram = Histogram::from_counts(&latencies.counts.buckets);
    histogram.sum_ns = Some(latencies.sum_ns);
    histogram
}

/// What a server says of itself, as the loop takes it.
pub fn self_report(said: &AgentReport) -> SelfReport {
    let state = match (said.admin, said.state) {
        (Some(AgentAdmin::Maint), _) => SelfReportState::Maintenance,
        (Some(AgentAdmin::Drain), _) => SelfReportState::Drain,
        (_, Some(AgentState::Down | AgentState::Fail | AgentState::Stopped)) => SelfReportState::Down,
        _ => SelfReportState::Up,
    };
    SelfReport {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn marks_follow_latency_where_the_queue_of_a_service_says_so() {
        let marks = |queue: &str| {
            let text = format!(
                "[gateway]\ninterfaces = \"eth0\"\n[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n{queue}\
                 [[service.server]]\naddress = \"10.0.0.1\"\nhigh_water = 10\n"
            );
            let config = Config::parse("test.toml", &text).unwrap_or_else(|errors| panic!("{text}\n{errors}"));
            Constants::of(&config.services[0]).quality.marks
        };
        assert_eq!(marks(""), None);
        assert_eq!(marks("[service.queue]\n"), None);
        let adaptive = "[service.queue]\nmarks = \"adaptive\"\nadaptive = { max = 50 }\n";
        assert_eq!(marks(adaptive).map(|marks| marks.max), Some(50));
    }

    #[test]
    fn the_packet_path_is_told_of_a_mark_that_follows_latency() {
        let start = Instant::now();
        let mut quality = Quality::new(start);
        let settings = Settings { marks: Some(Default::default()), ..Settings::default() };
        let constants = HashMap::from([(ServiceId(1), Constants { quality: settings, tiers: None })]);
        let id = ServerId::numbered(1);
        let mut present = Present {
            id,
            tier: 0,
            nominal: Nominal { weight: 1, high_water: None },
            entry: Entry::Known,
            up: true,
            active: 0,
            self_report: SelfReport::default(),
        };
        let mut marks = Vec::new();
        for tick in 1..=40 {
            let now = start + Duration::from_millis(250) * tick;
            for _ in 0..10 {
                quality.sample(id, Kind::Check, Ok(Duration::from_millis(10)), now);
            }
            let step = quality.step(std::slice::from_ref(&present), &constants, now);
            let mark = quality.given(id).and_then(|given| given.high_water).expect("it has a mark");
            assert!(step.changed || marks.last() == Some(&mark));
            present.active = mark;
            marks.push(mark);
        }
        assert!(marks[0] == 4 && marks[39] > 20, "{marks:?}");
    }
}
