//! The loop of one service, or of one tier of it: measurements in, weights out.

pub mod entry;
mod server;
mod standing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use self::entry::{Adopted, Entry, Nominal};
use self::server::{Server, Total};
use self::standing::Shift;
use super::Settings;
use super::eject::{self, Cause};
use super::explain::{Change, GroupReport, Reason};
use super::law::{self, Member};
use super::marks::Mark;
use super::measure::{self, Measures, nearest_to_clients};
use super::signal::{Counts, Failure, Kind, Sample, SelfReport, SelfReportState};
use super::window::Window;
use model::ids::ServerId;

/// Units of a weight per unit of a configured one.
pub(super) const SCALE: f64 = 1000.0;

/// Share of failures below which a server is as it usually is: one in a hundred makes its burden a tenth larger, which the
/// deadband tolerates.
const SOUND: f64 = 0.01;

/// What the packet path should do with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerWeight {
    pub server: ServerId,
    /// Share of a new ring; zero if it does not serve.
    pub weight: u32,
    /// Share of the active flows that is usual for it: for hot marks, and for the choice between two hot servers. It does
    /// not follow latency: a slow server holds its share of flows with a smaller share of the new ones.
    pub load_weight: u32,
    pub high_water: Option<u32>,
}

/// What happened in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Ejected {
        server: ServerId,
        cause: Cause,
        until: Duration,
    },
    /// Its ejection is over; slow start begins.
    Returned {
        server: ServerId,
    },
    /// Too few servers are left: ejected ones serve again, and nobody more is ejected.
    PanicBegins,
    PanicEnds,
}

/// What a step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// All servers, in the order of their keys. What is not the ring holds at once.
    pub servers: Vec<ServerWeight>,
    /// A new ring is due.
    pub publish: bool,
    pub events: Vec<Event>,
}

/// How a service does: what levels are set on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// None: not enough samples.
    pub p90: Option<Duration>,
    /// Share of requests that fail.
    pub failures: f64,
    /// Active flows of all servers that serve.
    pub active: u64,
    /// Sum of their configured weights.
    pub weight: u64,
}

/// The servers of a service, compared with one another.
#[derive(Debug)]
pub struct Group {
    settings: Settings,
    servers: BTreeMap<ServerId, Server>,
    last_step: Duration,
    published_at: Option<Duration>,
    panic: bool,
}

impl Group {
    /// A group without servers. Steps are expected every `settings.law.interval`; a late one makes up for it.
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self { settings, servers: BTreeMap::new(), last_step: now, published_at: None, panic: false }
    }

    /// New constants, as after a reload; they hold from the next step on.
    pub fn set_settings(&mut self, settings: &Settings) {
        if self.settings == *settings {
            return;
        }
        if !settings.measured {
            self.servers.values_mut().for_each(|server| {
                (server.factor, server.sound, server.correcting, server.lasting) = (1.0, 1.0, false, 0.0);
                server.record = eject::Record::default();
            });
        }
        self.settings = settings.clone();
        self.published_at = None;
    }

    /// Adds a server, or gives one that is there other nominal values.
    pub fn set_server(&mut self, key: ServerId, nominal: Nominal, entry: Entry, now: Duration) {
        if let Some(server) = self.servers.get_mut(&key) {
            if server.nominal != nominal {
                server.nominal = nominal;
                server.reason = Reason::Configured;
                // Who configures does not oscillate.
                self.published_at = None;
            }
            return;
        }
        let plain = |starting| Adopted { factor: 1.0, starting, ejected: false };
        let adopted = match entry {
            Entry::New => plain(true),
            Entry::Known => plain(false),
            Entry::Adopted(adopted) if self.settings.measured => adopted,
            Entry::Adopted(adopted) => plain(adopted.starting),
        };
        self.servers.insert(key, Server::new(nominal, adopted, &self.settings, now));
    }

    /// The server is asked otherwise from now on: what its probes told so far is forgotten.
    pub fn forget_probes(&mut self, key: ServerId) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.measures.forget(Kind::is_probe);
            server.record.forget(Kind::is_probe);
        }
    }

    pub fn remove_server(&mut self, key: ServerId) {
        self.servers.remove(&key);
    }

    pub fn servers(&self) -> impl Iterator<Item = ServerId> {
        self.servers.keys().copied()
    }

    /// What checks say, and whether there is a way to it.
    pub fn set_up(&mut self, key: ServerId, up: bool) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        let taken_down = server.up && !up;
        server.up = up;
        if taken_down && server.refuses {
            server.record.taken_down();
            self.begin_anew(key);
        }
    }

    pub fn set_self_report(&mut self, key: ServerId, self_report: SelfReport) {
        if let Some(server) = self.servers.get_mut(&key) {
            if server.self_report.weight_percent != self_report.weight_percent {
                server.reason = Reason::SelfReport;
            }
            server.self_report = self_report;
        }
    }

    pub fn set_active(&mut self, key: ServerId, active: u32) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.active = active;
        }
    }

    /// Takes a sample; the channel does not matter here, nor do servers that are not in the group.
    pub fn sample(&mut self, sample: &Sample, now: Duration) {
        let Some(server) = self.servers.get_mut(&sample.target.server) else { return };
        if let Err(failure) = sample.result {
            // That it fails is known already, and says nothing of how it will do once it is back.
            if !server.up && server.refuses {
                return;
            }
            if sample.kind == Kind::Check {
                server.refuses = failure == Failure::Error;
            }
        }
        if server.measures.is_telling(sample, now, &self.settings.measure) {
            server.record.sample(sample.kind, sample.result.is_ok());
        }
        if let Some(mark) = &mut server.mark {
            mark.sample(sample, now);
        }
        server.measures.sample(sample, now);
    }

    /// Takes the counts of an interval.
    pub fn counts(&mut self, counts: &Counts, now: Duration) {
        let Some(server) = self.servers.get_mut(&counts.target.server) else { return };
        if !server.up && server.refuses {
            return;
        }
        if let Some(mark) = &mut server.mark {
            mark.counts(counts, now);
        }
        server.record.counts(counts.kind, counts.latencies.count(), counts.losses + counts.errors);
        server.measures.counts(counts, now);
    }

    /// One step of the loop.
    pub fn step(&mut self, now: Duration) -> Step {
        let elapsed = now.saturating_sub(self.last_step);
        self.last_step = now;
        for server in self.servers.values_mut() {
            server.measures.fade(elapsed, now, &self.settings.measure);
            server.stale = server.measures.is_stale(now, &self.settings.measure);
        }
        let mut events = Vec::new();
        if self.settings.measured {
            self.eject(now, &mut events);
        }
        self.serve(now);
        self.follow_law(now, elapsed);
        self.keep_sound();
        self.follow_marks(now);
        let publish = self.publish(now);
        Step { servers: self.weights(now), publish, events }
    }

    /// How the service does as a whole.
    pub fn level(&self) -> Level {
        let serving = || self.servers.values().filter(|server| server.serves());
        let merged = |kind: Kind| {
            let mut all = Window::default();
            serving().filter_map(|server| server.measures.window(kind)).for_each(|window| all.merge(window));
            (kind, all)
        };
        let settings = &self.settings.measure;
        let kinds = measure::kinds(serving().map(|server| &server.measures));
        let windows: Vec<(Kind, Window)> = kinds.into_iter().map(merged).collect();
        let known = windows.iter().filter(|(_, window)| window.latencies() >= settings.min_samples);
        let p90s: Vec<(Kind, Duration)> =
            known.filter_map(|(kind, window)| Some((*kind, window.quantile(0.9)?))).collect();
        let enough = windows.iter().filter(|(_, window)| window.attempts() >= settings.min_samples);
        Level {
            p90: nearest_to_clients(&p90s),
            failures: enough.map(|(_, window)| window.failure()).fold(0.0, f64::max),
            active: self.active(),
            weight: self.weight(),
        }
    }

    /// Active flows of all servers that serve.
    pub fn active(&self) -> u64 {
        self.servers.values().filter(|server| server.serves()).map(|server| u64::from(server.active)).sum()
    }

    /// Sum of their configured weights.
    pub fn weight(&self) -> u64 {
        self.servers.values().filter(|server| server.serves()).map(|server| u64::from(server.nominal.weight)).sum()
    }

    pub fn serves(&self, key: ServerId) -> bool {
        self.servers.get(&key).is_some_and(|server| server.serves())
    }

    /// Its ring was published for a reason of someone else's, so the next one has to wait.
    pub fn note_ring(&mut self, now: Duration) {
        self.published_at = Some(now);
    }

    /// Why each weight is what it is.
    pub fn explain(&self, now: Duration) -> GroupReport {
        let total: f64 = self.servers.values().map(|server| server.effective(&self.settings.start, now)).sum();
        let servers =
            self.servers.iter().map(|(key, server)| server.explain(*key, &self.settings, total, now)).collect();
        GroupReport {
            panic: self.panic,
            published_at_s: self.published_at.as_ref().map(Duration::as_secs_f64),
            servers,
        }
    }

    fn eject(&mut self, now: Duration, events: &mut Vec<Event>) {
        let Settings { eject: settings, measure, .. } = &self.settings;
        let serving: Vec<&Measures> =
            self.servers.values().filter(|server| server.serves()).map(|server| &server.measures).collect();
        let of_kind = |kind: Kind| {
            let windows = serving.iter().filter_map(|server| server.window(kind));
            let rates: Vec<f64> =
                windows.filter(|it| it.attempts() >= measure.min_samples).map(Window::failure).collect();
            (kind, eject::tolerated(settings, &rates))
        };
        let by_kind: Vec<(Kind, f64)> = measure::kinds(serving.iter().copied()).into_iter().map(of_kind).collect();
        let tolerated = |kind: Kind| {
            let found = by_kind.iter().find(|(candidate, _)| *candidate == kind);
            found.map_or_else(|| eject::tolerated(settings, &[]), |(_, tolerated)| *tolerated)
        };
        let members = self.servers.values().filter(|server| server.is_member()).count() as f64;
        let mut healthy = 0.0;
        for (key, server) in &mut self.servers {
            let probed = |kind: Kind| server.measures.comes_in(kind, now, measure);
            if server.record.pass(now, probed, settings) {
                server.reason = Reason::EjectionOver;
                events.push(Event::Returned { server: *key });
            }
            if server.is_able() && server.record.ejection().is_none() {
                healthy += 1.0;
            }
        }
        for (key, server) in &mut self.servers {
            let Some(cause) = server.record.weigh(settings, tolerated) else { continue };
            if !server.is_able() || (healthy - 1.0) / members < settings.panic {
                continue;
            }
            healthy -= 1.0;
            server.record.eject(cause, now, settings);
            if let Some(ejection) = server.record.ejection() {
                events.push(Event::Ejected { server: *key, cause, until: ejection.until });
            }
        }
        // Servers that are down cannot serve, panic or not.
        let ejected = self.servers.values().any(|server| server.is_able() && server.record.ejection().is_some());
        let panic = ejected && healthy / members < settings.panic;
        if panic != self.panic {
            self.panic = panic;
            events.push(if panic { Event::PanicBegins } else { Event::PanicEnds });
        }
    }

    /// Who serves, and who begins with slow start.
    fn serve(&mut self, now: Duration) {
        for server in self.servers.values_mut() {
            let said = matches!(server.self_report.state, SelfReportState::Down | SelfReportState::Maintenance);
            server.cold |= !server.up || said || server.record.ejection().is_some();
            let standing = server.stands(self.panic);
            let shift = server.standing.to(standing);
            server.standing = standing;
            match shift {
                Shift::None => continue,
                Shift::Leaves => {}
                Shift::Returns => server.since = std::mem::take(&mut server.cold).then_some(now),
                // In a panic everything counts.
                Shift::Helps => (server.since, server.cold) = (None, false),
            }
            server.reason = standing.reason();
        }
    }

    fn follow_law(&mut self, now: Duration, elapsed: Duration) {
        let settings = &self.settings;
        let mut serving: Vec<&mut Server> = self.servers.values_mut().filter(|server| server.serves()).collect();
        let measures: Vec<&Measures> = serving.iter().map(|server| &server.measures).collect();
        let relative = measure::relative(&measures, &settings.measure);
        let mut members = Vec::with_capacity(serving.len());
        for (server, relative) in serving.iter_mut().zip(relative) {
            server.relative = relative;
            let ramp = server.ramp(&settings.start, now);
            members.push(Member {
                nominal: f64::from(server.nominal.weight),
                factor: server.factor,
                correcting: server.correcting,
                lasting: server.lasting,
                seen: server.seen(settings),
                held_back: ramp < 1.0 || server.self_report.weight_percent < 100,
            });
        }
        if settings.measured {
            law::step(&settings.law, &mut members, elapsed);
        }
        for (server, member) in serving.into_iter().zip(members) {
            if member.correcting
                && let Some(seen) = member.seen
            {
                server.reason = Reason::of(&seen, member.factor < server.factor);
            } else if server.ramp(&settings.start, now) < 1.0 {
                server.reason = Reason::SlowStart;
            }
            server.factor = member.factor;
            (server.correcting, server.lasting) = (member.correcting, member.lasting);
        }
    }

    /// Marks are lowered of one server in ten at a time, and of one at least: the others serve meanwhile.
    fn follow_marks(&mut self, now: Duration) {
        let Some(settings) = &self.settings.marks else {
            self.servers.values_mut().for_each(|server| server.mark = None);
            return;
        };
        let most = self.servers.len().div_ceil(10);
        let is_lowered = |server: &Server| server.mark.as_ref().is_some_and(Mark::is_lowered);
        let mut lowered = self.servers.values().filter(|server| is_lowered(server)).count();
        for server in self.servers.values_mut() {
            let before = is_lowered(server);
            let kind = server.measures.nearest(&self.settings.measure).filter(|_| !server.stale);
            let mark = server.mark.get_or_insert_with(|| Mark::new(settings, server.active));
            mark.step(settings, kind, server.active, lowered < most, now);
            lowered = lowered + usize::from(mark.is_lowered()) - usize::from(before);
        }
    }

    /// Remembers what servers are worth that do not fail.
    fn keep_sound(&mut self) {
        let total = self.total();
        let settings = &self.settings.measure;
        for server in self.servers.values_mut().filter(|server| server.serves()) {
            if server.measures.failure(settings) < SOUND
                && let Some(peers) = total.mean_without(server)
            {
                server.sound = server.factor / peers;
            }
        }
    }

    /// It will come back as it was before it failed: slow start bounds what it gets, so failures need not do so as well.
    fn begin_anew(&mut self, key: ServerId) {
        let total = self.total();
        let bounds = self.settings.law.floor..=self.settings.law.ceiling;
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.measures = Measures::default();
        if self.settings.measured
            && let Some(peers) = total.mean_without(server)
        {
            server.factor = (server.sound * peers).clamp(*bounds.start(), *bounds.end());
        }
    }

    fn total(&self) -> Total {
        let serving = self.servers.values().filter(|server| server.serves());
        serving.fold(Total::default(), |total, server| {
            let nominal = f64::from(server.nominal.weight);
            Total { nominal: total.nominal + nominal, weight: total.weight + nominal * server.factor }
        })
    }

    fn publish(&mut self, now: Duration) -> bool {
        let law = &self.settings.law;
        // A ring of servers of which none serves is worth nothing.
        let served = self.servers.values().any(|server| server.serves() && server.published > 0.0);
        if served && self.published_at.is_some_and(|at| now.saturating_sub(at) < law.publish_every) {
            return false;
        }
        let total: f64 = self.servers.values().map(|server| server.effective(&self.settings.start, now)).sum();
        let nominal: f64 = self.servers.values().filter(|server| server.serves()).map(Server::usual).sum();
        let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
        let shares: Vec<f64> =
            self.servers.values().map(|server| share(server.effective(&self.settings.start, now), total)).collect();
        let is_changed = |server: &Server, now: f64, by: f64| {
            let measure = server.published.max(law.publish_floor * share(server.usual(), nominal));
            (now - server.published).abs() > by * measure || (now > 0.0) != (server.published > 0.0)
        };
        let is_news = |server: &Server, now: f64| is_changed(server, now, law.publish_change);
        let any = |by: f64| self.servers.values().zip(&shares).any(|(server, share)| is_changed(server, *share, by));
        if !any(law.publish_change) {
            return false;
        }
        let moved = self.servers.values().zip(&shares).map(|(server, share)| (share - server.published).abs());
        let moved = moved.sum::<f64>() / 2.0;
        let gain = self.published_at.map_or(f64::INFINITY, |at| moved * now.saturating_sub(at).as_secs_f64());
        if gain < law.publish_gain && !any(law.publish_large) {
            return false;
        }
        for (server, share) in self.servers.values_mut().zip(shares) {
            if is_news(server, share) {
                server.last_change =
                    Some(Change { at_s: now.as_secs_f64(), from: server.published, to: share, reason: server.reason });
            }
            server.published = share;
            server.reason = Reason::Peers;
        }
        self.published_at = Some(now);
        true
    }

    fn weights(&self, now: Duration) -> Vec<ServerWeight> {
        let whole = |weight: f64| ((weight * SCALE).round() as u32).max(1);
        let weight = |(key, server): (&ServerId, &Server)| {
            let ramp = server.ramp(&self.settings.start, now);
            let adaptive = self.settings.marks.as_ref().zip(server.mark.as_ref()).map(|(it, mark)| mark.mark(it));
            let marks = [server.nominal.high_water, server.self_report.max_connections, adaptive];
            let high_water = marks.into_iter().flatten().min();
            ServerWeight {
                server: *key,
                weight: if server.serves() { whole(server.effective(&self.settings.start, now)) } else { 0 },
                load_weight: if server.serves() { whole(server.usual() * ramp) } else { 0 },
                high_water: high_water.map(|mark| ((f64::from(mark) * ramp).ceil() as u32).max(1)),
            }
        };
        self.servers.iter().map(weight).collect()
    }
}
