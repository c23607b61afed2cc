//! The engine: what happens, in the order of time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use decide::hot::{self, Load};
use decide::quality::Settings;
use decide::quality::group::entry::{Entry, Nominal};
use decide::quality::group::{Event as GroupEvent, Group};
use decide::quality::signal::{Counts, Failure, Kind, Sample};
use decide::tiers::{Shared, Tier, Tiers};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::gradient::Gradient;
use super::policy::Policy;
use super::run::{Moment, Run, ServerMoment};
use super::scenario::{Passive, Scenario};
use super::server::{Change, Model, Server};
use super::tally::Tally;
use model::ids::ServerId;

#[derive(Clone, Copy, Debug)]
enum Event {
    Arrival,
    /// The request comes to its server, for the second time if the first was lost.
    Enter {
        request: usize,
    },
    Departure {
        server: usize,
        version: u64,
    },
    Ended {
        request: usize,
    },
    Probe {
        server: usize,
    },
    ProbeTimeout {
        request: usize,
    },
    Tick,
    Second,
    Change {
        server: usize,
        change: Change,
    },
    Rate(f64),
}

struct Timed {
    at: f64,
    order: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

#[derive(Clone, Copy)]
struct Request {
    came: f64,
    server: usize,
    probe: bool,
    failed: bool,
    done: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    policy: &'a Policy,
    rng: Xoshiro256PlusPlus,
    now: f64,
    order: u64,
    events: BinaryHeap<Timed>,
    servers: Vec<Server>,
    active: Vec<u32>,
    requests: Vec<Request>,
    /// Requests per second.
    rate: f64,
    /// By tier; none: weights are not measured.
    groups: BTreeMap<u8, Group>,
    tiers: Option<Tiers>,
    /// Weight of each server in the ring of its tier, as published.
    given: Vec<u32>,
    gradient: Option<Gradient>,
    /// Shares of the ring, summed up.
    ring: Vec<f64>,
    weights: Vec<u32>,
    marks: Vec<u32>,
    tallies: Vec<Tally>,
    late: VecDeque<(f64, Vec<Tally>)>,
    /// Requests of the present second.
    second: Vec<u64>,
    turn: usize,
    run: Run,
}

/// Runs a scenario.
pub fn run(scenario: &Scenario, policy: &Policy) -> Run {
    let servers = scenario.servers.len();
    let mut world = World {
        scenario,
        policy,
        rng: Xoshiro256PlusPlus::seed_from_u64(scenario.seed),
        now: 0.0,
        order: 0,
        events: BinaryHeap::new(),
        servers: scenario.servers.iter().map(Server::new).collect(),
        active: vec![0; servers],
        requests: Vec::new(),
        rate: scenario.rate,
        groups: BTreeMap::new(),
        tiers: None,
        given: scenario.servers.iter().map(|model| model.weight).collect(),
        gradient: matches!(policy, Policy::Gradient).then(|| Gradient::new(servers)),
        ring: Vec::new(),
        weights: scenario.servers.iter().map(|model| model.weight).collect(),
        marks: vec![u32::MAX; servers],
        tallies: vec![Tally::default(); servers],
        late: VecDeque::new(),
        second: vec![0; servers],
        turn: 0,
        run: Run::default(),
    };
    world.begin();
    world.go();
    world.end()
}

impl World<'_> {
    fn begin(&mut self) {
        let in_ring = |model: &Model| if model.tier == 0 { f64::from(model.weight) } else { 0.0 };
        let weights: Vec<f64> = self.scenario.servers.iter().map(in_ring).collect();
        self.set_ring(&weights);
        if matches!(self.policy, Policy::Measured) {
            for (index, model) in self.scenario.servers.iter().enumerate() {
                let nominal = Nominal { weight: model.weight, high_water: None };
                let new = || Group::new(Settings::default(), Duration::ZERO);
                let group = self.groups.entry(model.tier).or_insert_with(new);
                group.set_server(ServerId::numbered(index as u32), nominal, Entry::Known, Duration::ZERO);
            }
            self.tiers = self.scenario.tiers.clone().map(|settings| Tiers::new(settings, Duration::ZERO));
        }
        for (at, rate) in &self.scenario.rates {
            self.at(at.as_secs_f64(), Event::Rate(*rate));
        }
        for (server, model) in self.scenario.servers.iter().enumerate() {
            for (at, change) in &model.changes {
                self.at(at.as_secs_f64(), Event::Change { server, change: *change });
            }
            let offset = self.scenario.probe_every.as_secs_f64() * (server as f64 + 0.5) / self.servers.len() as f64;
            self.at(offset, Event::Probe { server });
        }
        self.at(0.0, Event::Arrival);
        self.at(0.25, Event::Tick);
        self.at(1.0, Event::Second);
    }

    fn go(&mut self) {
        let end = self.scenario.duration.as_secs_f64();
        while let Some(Timed { at, event, .. }) = self.events.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn end(mut self) -> Run {
        for index in 0..self.requests.len() {
            if !self.requests[index].done && !self.requests[index].probe {
                self.note(index);
            }
        }
        self.run
    }

    fn at(&mut self, at: f64, event: Event) {
        self.order += 1;
        self.events.push(Timed { at, order: self.order, event });
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.rng.random::<f64>()).ln()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival => {
                let server = self.choose();
                self.active[server] += 1;
                self.second[server] += 1;
                let request = self.open(server, false);
                self.enter(request);
                let pause = self.exponential(1.0 / self.rate);
                self.at(self.now + pause, Event::Arrival);
            }
            Event::Enter { request } => {
                let server = self.requests[request].server;
                self.tallies[server].losses += 1;
                self.enter(request);
            }
            Event::Departure { server, version } => {
                if self.servers[server].version != version {
                    return;
                }
                if let Some(request) = self.servers[server].depart(self.now) {
                    let distance = self.servers[server].distance;
                    self.at(self.now + distance, Event::Ended { request });
                }
                self.foresee(server);
            }
            Event::Ended { request } => self.ended(request),
            Event::Probe { server } => {
                let request = self.open(server, true);
                let lost = self.chance(self.servers[server].loss);
                if !lost {
                    self.enter_server(request, self.servers[server].service);
                }
                self.at(self.now + self.scenario.probe_timeout.as_secs_f64(), Event::ProbeTimeout { request });
                self.at(self.now + self.scenario.probe_every.as_secs_f64(), Event::Probe { server });
            }
            Event::ProbeTimeout { request } => {
                let Request { server, done, .. } = self.requests[request];
                if !done {
                    self.requests[request].done = true;
                    let waited = self.scenario.probe_timeout;
                    self.tallies[server].probes.push(Err(Failure::Late(waited)));
                }
            }
            Event::Tick => {
                self.tick();
                self.at(self.now + 0.25, Event::Tick);
            }
            Event::Second => {
                self.each_second();
                self.at(self.now + 1.0, Event::Second);
            }
            Event::Rate(rate) => self.rate = rate,
            Event::Change { server, change } => {
                self.servers[server].change(change, self.now);
                self.foresee(server);
            }
        }
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random::<f64>() < share
    }

    fn open(&mut self, server: usize, probe: bool) -> usize {
        self.requests.push(Request { came: self.now, server, probe, failed: false, done: false });
        self.requests.len() - 1
    }

    /// A client's request reaches its server, or is lost and sent again.
    fn enter(&mut self, request: usize) {
        let server = self.requests[request].server;
        if self.chance(self.servers[server].loss) {
            self.at(self.now + 1.0, Event::Enter { request });
            return;
        }
        let work = self.exponential(self.servers[server].service);
        self.enter_server(request, work);
    }

    fn enter_server(&mut self, request: usize, work: f64) {
        let server = self.requests[request].server;
        if self.chance(self.servers[server].errors) {
            self.requests[request].failed = true;
            self.at(self.now + self.servers[server].distance + 0.000_5, Event::Ended { request });
            return;
        }
        self.servers[server].arrive(request, work, self.now);
        self.foresee(server);
    }

    fn foresee(&mut self, server: usize) {
        if let Some(at) = self.servers[server].next_departure() {
            let version = self.servers[server].version;
            self.at(at, Event::Departure { server, version });
        }
    }

    fn ended(&mut self, index: usize) {
        let Request { came, server, probe, failed, done } = self.requests[index];
        if done {
            return;
        }
        self.requests[index].done = true;
        let latency = Duration::from_secs_f64(self.now - came);
        if probe {
            let result = if failed { Err(Failure::Error) } else { Ok(latency) };
            self.tallies[server].probes.push(result);
            return;
        }
        self.active[server] -= 1;
        self.tallies[server].latencies.record(latency);
        self.note(index);
    }

    fn note(&mut self, index: usize) {
        let came = self.requests[index].came;
        let second = came as usize;
        if self.run.latencies.len() <= second {
            self.run.latencies.resize_with(second + 1, Vec::new);
        }
        self.run.latencies[second].push((self.now - came) as f32);
    }

    fn choose(&mut self) -> usize {
        match self.policy {
            Policy::Fixed | Policy::Measured | Policy::Gradient => {
                let first = self.place();
                if self.active[first] < self.marks[first] {
                    return first;
                }
                let second = self.place();
                let cool = self.active[second] < self.marks[second];
                if cool || self.less_loaded(second, first) { second } else { first }
            }
            Policy::LeastConnections => {
                self.turn += 1;
                let count = self.servers.len();
                let turn = self.turn;
                (0..count)
                    .map(|index| (index + turn) % count)
                    .reduce(|best, next| if self.less_loaded(next, best) { next } else { best })
                    .unwrap_or(0)
            }
            Policy::RandomOfTwo => {
                let (first, second) = (self.place(), self.place());
                if self.less_loaded(second, first) { second } else { first }
            }
        }
    }

    fn less_loaded(&self, one: usize, other: usize) -> bool {
        u64::from(self.active[one]) * u64::from(self.weights[other])
            < u64::from(self.active[other]) * u64::from(self.weights[one])
    }

    fn place(&mut self) -> usize {
        let place = self.rng.random::<f64>();
        self.ring.partition_point(|end| *end <= place).min(self.ring.len() - 1)
    }

    fn set_ring(&mut self, weights: &[f64]) {
        let total: f64 = weights.iter().sum();
        let mut end = 0.0;
        self.ring.clear();
        for weight in weights {
            end += weight / total;
            self.ring.push(end);
        }
    }

    fn share(&self, server: usize) -> f64 {
        self.ring[server] - if server == 0 { 0.0 } else { self.ring[server - 1] }
    }

    fn tick(&mut self) {
        let count = self.servers.len();
        let tallies = std::mem::replace(&mut self.tallies, vec![Tally::default(); count]);
        self.late.push_back((self.now + self.scenario.delay.as_secs_f64(), tallies));
        while self.late.front().is_some_and(|(due, _)| *due <= self.now)
            && let Some((_, tallies)) = self.late.pop_front()
        {
            self.tell(tallies);
        }
        let now = Duration::from_secs_f64(self.now);
        if matches!(self.policy, Policy::Measured) {
            self.follow(now);
        }
        if let Some(gradient) = &mut self.gradient
            && let Some(weights) = gradient.step(now)
        {
            self.weights = weights.iter().map(|weight| (weight * 1000.0) as u32).collect();
            self.publish(&weights);
        }
    }

    /// A step of the loops, as the controller makes it.
    fn follow(&mut self, now: Duration) {
        let mut tiers = Vec::new();
        let mut first_ring = false;
        for (tier, group) in &mut self.groups {
            for (server, active) in self.active.iter().enumerate() {
                group.set_active(ServerId::numbered(server as u32), *active);
            }
            let step = group.step(now);
            let ejections = step.events.iter().filter_map(|event| match event {
                GroupEvent::Ejected { server, .. } => Some((now, index_of(*server))),
                _ => None,
            });
            self.run.ejections.extend(ejections);
            for server in &step.servers {
                let index = index_of(server.server);
                self.weights[index] = server.load_weight;
                if step.publish {
                    self.given[index] = server.weight;
                }
            }
            first_ring |= step.publish && *tier == 0;
            let serving = step.servers.iter().filter(|server| server.weight > 0);
            tiers.push(Tier {
                tier: *tier,
                active: group.active(),
                nominal: group.weight(),
                servers: serving.map(|server| (server.server, server.weight)).collect(),
            });
        }
        let mut publish = first_ring;
        if let Some(it) = &mut self.tiers {
            let step = it.step(&tiers, first_ring, &Shared::from(&Settings::default()), now);
            publish |= step.publish;
            if let Some(first) = self.groups.get_mut(&0).filter(|_| step.publish) {
                first.note_ring(now);
            }
        }
        if publish {
            let weight = |(index, model): (usize, &Model)| match &self.tiers {
                _ if model.tier == 0 => f64::from(self.given[index]),
                Some(tiers) => tiers.help(ServerId::numbered(index as u32)).map_or(0.0, |help| f64::from(help.weight)),
                None => 0.0,
            };
            let weights: Vec<f64> = self.scenario.servers.iter().enumerate().map(weight).collect();
            self.publish(&weights);
        }
    }

    fn publish(&mut self, weights: &[f64]) {
        self.set_ring(weights);
        self.run.rings.push(Duration::from_secs_f64(self.now));
    }

    /// Gives the loop what was measured.
    fn tell(&mut self, tallies: Vec<Tally>) {
        let now = Duration::from_secs_f64(self.now);
        for (server, mut tally) in tallies.into_iter().enumerate() {
            if let Some(gradient) = &mut self.gradient {
                gradient.measure(server, &tally);
            }
            let tier = self.scenario.servers[server].tier;
            let Some(group) = self.groups.get_mut(&tier) else { continue };
            let key = ServerId::numbered(server as u32);
            let target = key.into();
            let mut tiers = self.tiers.as_mut().filter(|_| group.serves(key));
            for result in tally.probes {
                let sample = Sample { target, kind: Kind::Check, result };
                group.sample(&sample, now);
                if let Some(tiers) = &mut tiers {
                    tiers.sample(tier, &sample, now);
                }
            }
            match self.scenario.passive {
                Passive::Absent => continue,
                Passive::Buckets => tally.latencies.sum_ns = None,
                Passive::Sums => {}
            }
            let Tally { latencies, losses, .. } = tally;
            let counts = Counts { target, kind: Kind::Response, latencies, losses, errors: 0 };
            group.counts(&counts, now);
            if let Some(tiers) = &mut tiers {
                tiers.counts(tier, &counts, now);
            }
        }
    }

    fn each_second(&mut self) {
        for tier in self.scenario.servers.iter().map(|model| model.tier).collect::<BTreeSet<u8>>() {
            let members: Vec<usize> =
                (0..self.servers.len()).filter(|index| self.scenario.servers[*index].tier == tier).collect();
            let load = |index: &usize| Load { active: self.active[*index], weight: self.weights[*index].max(1) };
            let loads: Vec<Load> = members.iter().map(load).collect();
            for (index, mark) in members.into_iter().zip(hot::marks(&loads)) {
                self.marks[index] = mark;
            }
        }
        let all: u64 = self.second.iter().sum();
        let servers = (0..self.servers.len())
            .map(|index| ServerMoment {
                weight: self.share(index),
                load: self.second[index] as f64 / all.max(1) as f64,
                requests: self.second[index],
            })
            .collect();
        self.run.series.push(Moment { servers });
        self.second.fill(0);
    }
}

/// Of a server that the loops know by `ServerId::numbered`.
fn index_of(server: ServerId) -> usize {
    server.backend.0 as usize - 1
}
