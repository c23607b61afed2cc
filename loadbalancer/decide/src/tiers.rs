//! The tiers of one service: how much the lower ones help the first.
//!
//! The first tier that has a server in order keeps all new flows, its surplus, as long as its quality is within the levels.
//! When it has left one for a while, the next tier helps: its servers join the first one's ring with weight that is
//! borrowed of theirs, and when all of it is borrowed, those of the tier after it. The first never keeps less than its fair
//! share, which its weight is of all.
//!
//! ```text
//! kept  = weight / (weight + borrowed)             share of the new flows that the first tier keeps
//! worst = the largest of measured / level
//! d ln kept / dt = -rise * min(1, ln worst)                  worst > 1, for `hold` if nothing is borrowed yet
//!                  +fall * min(1, ln (recovery / worst))     worst < recovery
//! ```
//!
//! The logarithm of its load is what is moved, so that a step is as large for a small share as for a large one, and in
//! proportion to how far the worst quantity is off, also as a logarithm: near the level steps are small, so latency comes
//! slowly to `recovery` from below although it grows steeply with the load there. Load is taken off in proportion to
//! itself, and given back more slowly, as in congestion control (Chiu and Jain, "Analysis of the Increase and Decrease
//! Algorithms for Congestion Avoidance", 1989). A step without a new measurement moves nothing.

pub mod explain;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use self::explain::{Course, Role, TierReport};
use crate::quality::group::Level;
use crate::quality::measure::nearest_to_clients;
use crate::quality::signal::{Counts, Kind, Sample};
use crate::quality::window::Window;
use crate::standby::need::{self, Breach, Levels};
use model::ids::ServerId;

/// When lower tiers help, and how fast. Where no source is named, the simulator is it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Quality that the first tier is to have.
    pub levels: Levels,
    /// How long it has to be worse before help begins.
    pub hold: Duration,
    /// Share of the levels below which it gets more again.
    pub recovery: f64,
    /// Part of what it keeps that is taken from it in a second, at most: with 0.3, a load 1.5 times what it can serve is
    /// off it in less than 2 s.
    pub rise: f64,
    /// Part of what it keeps that it gets back in a second, at most. From 0.04 on its share swings, since latency follows
    /// the load some seconds late.
    pub fall: f64,
    /// Time constant of what is measured. Shorter than that of weights: a mean that is old makes help overshoot.
    pub memory: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            levels: Levels::default(),
            hold: Duration::from_secs(2),
            recovery: 0.7,
            rise: 0.3,
            fall: 0.03,
            memory: Duration::from_secs(1),
        }
    }
}

/// A percentile of the last 50 samples is that of 86 to 94 of 100: where they come more slowly than that in the memory,
/// it is longer, ...
const SAMPLES: f64 = 50.0;
/// ... so many times at most.
const LONGER: u32 = 4;
/// What is lost comes a second late at the soonest, when TCP sends it again (RFC 6298).
const RETRANSMISSION: Duration = Duration::from_secs(1);
/// A share below this part of a server's fair share counts as that large when it is asked whether a change is worth a ring.
const FINE: f64 = 0.5;
/// What is borrowed ends when it is less than this share of the new flows.
const LEAST: f64 = 0.005;

/// A tier as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    pub tier: u8,
    /// Active flows and configured weight of the servers that serve.
    pub active: u64,
    pub nominal: u64,
    /// Servers that serve, with their weights in the ring.
    pub servers: Vec<(ServerId, u32)>,
}

impl Tier {
    fn weight(&self) -> f64 {
        self.servers.iter().map(|(_, weight)| f64::from(*weight)).sum()
    }
}

/// What is the service's loop's own and holds here as well.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Samples below which a percentile says nothing.
    pub min_samples: f64,
    /// Silence after which what was measured is forgotten.
    pub stale_after: Duration,
    /// A new ring is worth it if a share changed by so much of itself.
    pub publish_change: f64,
    /// Time between rings of the first tier at least.
    pub publish_every: Duration,
}

impl From<&crate::quality::Settings> for Shared {
    fn from(settings: &crate::quality::Settings) -> Self {
        Self {
            min_samples: settings.measure.min_samples,
            stale_after: settings.measure.stale_after,
            publish_change: settings.law.publish_change,
            publish_every: settings.law.publish_every,
        }
    }
}

/// Weight of a server in the ring of a tier that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Help {
    /// Whose ring it is in.
    pub tier: u8,
    pub weight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A tier gets new flows beside the first.
    Begins {
        tier: u8,
        /// None: the first tier is back and gets its share step by step.
        cause: Option<Breach>,
    },
    Ends {
        tier: u8,
    },
    /// Another tier is the first that has a server in order.
    First {
        tier: u8,
        before: u8,
    },
}

/// What a step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// [`Tiers::help`] changed: the first tier's ring is to be made anew.
    pub publish: bool,
    pub events: Vec<Event>,
}

/// What was measured of a tier in the last seconds.
#[derive(Debug, Default)]
struct Seen {
    windows: BTreeMap<Kind, Window>,
    /// Something came in since the last step.
    news: bool,
}

/// Who is first, and since when.
#[derive(Clone, Copy, Debug)]
struct First {
    tier: u8,
    since: Duration,
}

/// How much of its weight a tier lends, and the share of the new flows that it gets for it.
#[derive(Clone, Copy, Debug, Default)]
struct Lent {
    of_weight: f64,
    share: f64,
}

/// The loop over the tiers of one service.
#[derive(Debug)]
pub struct Tiers {
    settings: Settings,
    seen: BTreeMap<u8, Seen>,
    first: Option<First>,
    /// Weight that lower tiers lend.
    borrowed: f64,
    /// When `borrowed` was last moved, or could have been.
    moved: Duration,
    faded: Duration,
    beyond_since: Option<Duration>,
    /// What made the help begin that there is.
    cause: Option<Breach>,
    course: Course,
    nearest: Option<Breach>,
    /// As published.
    help: BTreeMap<ServerId, Help>,
    shares: BTreeMap<ServerId, f64>,
    lent: BTreeMap<u8, Lent>,
    published_at: Option<Duration>,
}

impl Tiers {
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            seen: BTreeMap::new(),
            first: None,
            borrowed: 0.0,
            moved: now,
            faded: now,
            beyond_since: None,
            cause: None,
            course: Course::Unknown,
            nearest: None,
            help: BTreeMap::new(),
            shares: BTreeMap::new(),
            lent: BTreeMap::new(),
            published_at: None,
        }
    }

    /// New constants, as after a reload; they hold from the next step on.
    pub fn set_settings(&mut self, settings: &Settings) {
        self.settings.clone_from(settings);
    }

    /// Takes a sample of a server of a tier that serves.
    pub fn sample(&mut self, tier: u8, sample: &Sample, now: Duration) {
        let seen = self.seen.entry(tier).or_default();
        seen.windows.entry(sample.kind).or_default().add(sample.result, now);
        seen.news = true;
    }

    /// Takes the counts of an interval.
    pub fn counts(&mut self, tier: u8, counts: &Counts, now: Duration) {
        let seen = self.seen.entry(tier).or_default();
        seen.windows.entry(counts.kind).or_default().add_counts(counts, now);
        seen.news = true;
    }

    /// Weight of each server in the ring of the first tier, as it is to be published.
    pub fn help(&self, server: ServerId) -> Option<Help> {
        self.help.get(&server).copied()
    }

    /// One step with the tiers as they are, in their order; `first_ring`: the ring of the first of them is made anew
    /// anyway.
    pub fn step(&mut self, tiers: &[Tier], first_ring: bool, shared: &Shared, now: Duration) -> Step {
        let mut step = Step::default();
        self.fade(tiers, shared, now);
        let serving: Vec<&Tier> = tiers.iter().filter(|tier| tier.weight() > 0.0).collect();
        let Some((first, helpers)) = serving.split_first() else {
            self.first = None;
            self.borrowed = 0.0;
            step.publish = self.publish(&[], 1.0, &mut step.events, now);
            return step;
        };
        let available: f64 = helpers.iter().map(|tier| tier.weight()).sum();
        let other = self.first.is_none_or(|before| before.tier != first.tier);
        if other {
            self.become_first(first, available, &mut step.events, now);
        } else {
            self.steer(first, available, shared, now);
        }
        if first_ring {
            self.published_at = Some(now);
        }
        let due = self.published_at.is_none_or(|at| now.saturating_sub(at) >= shared.publish_every);
        let weight = first.weight();
        if other || ((due || first_ring) && self.is_news(helpers, weight, available, shared)) {
            step.publish = self.publish(helpers, weight, &mut step.events, now);
        }
        step
    }

    /// How a tier stands, in which of the tiers that [`Self::step`] was told.
    pub fn explain(&self, tier: u8) -> TierReport {
        let lent = self.lent.get(&tier).copied().unwrap_or_default();
        let first = self.first.map(|first| first.tier);
        let role = match first {
            Some(first) if first == tier => Role::First,
            _ if lent.of_weight > 0.0 => Role::Helps,
            _ => Role::Waits,
        };
        let kept = 1.0 - self.lent.values().map(|lent| lent.share).sum::<f64>();
        TierReport {
            role,
            of_weight: if role == Role::First { 1.0 } else { lent.of_weight },
            share: if role == Role::First { kept } else { lent.share },
            first,
            course: self.course,
            nearest: self.nearest,
        }
    }

    fn fade(&mut self, tiers: &[Tier], shared: &Shared, now: Duration) {
        let elapsed = now.saturating_sub(self.faded);
        self.faded = now;
        let memory = self.settings.memory;
        self.seen.retain(|tier, _| tiers.iter().any(|it| it.tier == *tier && !it.servers.is_empty()));
        for window in self.seen.values_mut().flat_map(|seen| seen.windows.values_mut()) {
            let last = window.last().unwrap_or_default();
            if now.saturating_sub(last) > shared.stale_after {
                *window = Window::default();
                continue;
            }
            // The time in which they would become few, between the memory and the longest.
            let spare = (window.attempts() / SAMPLES).max(1.0).ln();
            let longest = memory.saturating_mul(LONGER);
            let constant = if spare > 0.0 { elapsed.div_f64(spare).clamp(memory, longest) } else { longest };
            window.fade(elapsed, constant);
        }
    }

    fn become_first(&mut self, first: &Tier, available: f64, events: &mut Vec<Event>, now: Duration) {
        let before = self.first.replace(First { tier: first.tier, since: now });
        (self.moved, self.beyond_since, self.cause, self.course) = (now, None, None, Course::Unknown);
        self.borrowed = 0.0;
        if let Some(before) = before {
            events.push(Event::First { tier: first.tier, before: before.tier });
            // Who was out is not given everything at once; who was only looked for in another order is.
            if first.tier < before.tier && now.saturating_sub(before.since) >= self.settings.hold {
                self.borrowed = available;
            }
        }
    }

    /// Moves what is borrowed.
    fn steer(&mut self, first: &Tier, available: f64, shared: &Shared, now: Duration) {
        let Settings { levels, recovery, .. } = self.settings;
        let seen = self.seen.entry(first.tier).or_default();
        let news = std::mem::take(&mut seen.news);
        let mut level = Level { active: first.active, weight: first.nominal, ..Level::default() };
        let signals = levels.p90.is_some() || levels.failures.is_some();
        let measured = news && seen.measure(&mut level, &levels, shared);
        // Without any flow, and without a level for it, what is measured does not matter.
        let known = measured || !signals || level.active == 0;
        self.borrowed = self.borrowed.min(available);
        let beyond = need::breach(&levels, &level);
        if signals && !news && level.active > 0 && beyond.is_none() {
            let silent = seen.windows.values().all(|window| window.last().is_none());
            if silent {
                (self.course, self.nearest, self.beyond_since) = (Course::Unknown, None, None);
            }
            return;
        }
        // A while without news is not made up for.
        let elapsed = now.saturating_sub(self.moved).min(shared.publish_every).as_secs_f64();
        self.moved = now;
        self.nearest = need::nearest(&levels, &level);
        let weight = first.weight();
        if let Some(beyond) = beyond {
            let since = *self.beyond_since.get_or_insert(now);
            if self.borrowed == 0.0 && now.saturating_sub(since) < self.settings.hold {
                self.course = Course::Holds;
                return;
            }
            if self.borrowed == 0.0 {
                self.cause = Some(beyond);
            }
            let far = beyond.ratio().ln().min(1.0);
            self.borrowed = borrow(weight, self.borrowed, -self.settings.rise * far * elapsed).min(available);
            self.course = if self.borrowed >= available { Course::Spent } else { Course::Rises };
            return;
        }
        self.beyond_since = None;
        if !known {
            self.course = Course::Unknown;
        } else if self.borrowed == 0.0 {
            self.course = Course::Alone;
        } else if need::is_recovered(&levels, &level, recovery, 0) {
            let far = self.nearest.map_or(1.0, |nearest| (recovery / nearest.ratio()).ln().min(1.0));
            self.borrowed = borrow(weight, self.borrowed, self.settings.fall * far * elapsed);
            self.course = Course::Falls;
        } else {
            self.course = Course::Steady;
        }
    }

    fn is_news(&self, helpers: &[&Tier], weight: f64, available: f64, shared: &Shared) -> bool {
        let wanted = self.wanted(helpers, weight);
        let is_news = |(server, own): &(ServerId, u32)| {
            let before = self.shares.get(server).copied().unwrap_or(0.0);
            let share = wanted.get(server).map_or(0.0, |(_, share)| *share);
            let measure = before.max(FINE * f64::from(*own) / (weight + available));
            (share - before).abs() > shared.publish_change * measure || (share > 0.0) != (before > 0.0)
        };
        let gone = || self.shares.keys().any(|server| !wanted.contains_key(server));
        helpers.iter().flat_map(|tier| &tier.servers).any(is_news) || gone()
    }

    /// How much of its weight each helping tier lends: all of one before any of the next.
    fn lend(&self, helpers: &[&Tier]) -> Vec<f64> {
        let mut left = self.borrowed;
        let part = |tier: &&Tier| {
            let part = (left / tier.weight()).min(1.0);
            left = (left - tier.weight()).max(0.0);
            part
        };
        helpers.iter().map(part).collect()
    }

    /// Weight and share of each server that helps.
    fn wanted(&self, helpers: &[&Tier], weight: f64) -> BTreeMap<ServerId, (u32, f64)> {
        let total = weight + self.borrowed;
        let lent = helpers.iter().zip(self.lend(helpers)).filter(|(_, part)| *part > 0.0);
        let servers = lent.flat_map(|(tier, part)| tier.servers.iter().map(move |server| (server, part)));
        let of_server = |((key, own), part): (&(ServerId, u32), f64)| {
            let lent = part * f64::from(*own);
            (*key, ((lent.round() as u32).max(1), lent / total))
        };
        servers.map(of_server).collect()
    }

    /// Takes over what is wanted. True: it differs from what was published.
    fn publish(&mut self, helpers: &[&Tier], weight: f64, events: &mut Vec<Event>, now: Duration) -> bool {
        let wanted = self.wanted(helpers, weight);
        let tier = self.first.map_or(0, |first| first.tier);
        let help = wanted.iter().map(|(key, (weight, _))| (*key, Help { tier, weight: *weight })).collect();
        let changed = self.help != help;
        self.help = help;
        self.shares = wanted.into_iter().map(|(key, (_, share))| (key, share)).collect();
        let total = weight + self.borrowed;
        let lent = helpers.iter().zip(self.lend(helpers)).filter(|(_, part)| *part > 0.0);
        let lent: BTreeMap<u8, Lent> = lent
            .map(|(tier, part)| (tier.tier, Lent { of_weight: part, share: part * tier.weight() / total }))
            .collect();
        let begins = lent.keys().filter(|tier| !self.lent.contains_key(tier));
        events.extend(begins.map(|tier| Event::Begins { tier: *tier, cause: self.cause }));
        let ends = self.lent.keys().filter(|tier| !lent.contains_key(tier));
        events.extend(ends.map(|tier| Event::Ends { tier: *tier }));
        self.lent = lent;
        if changed {
            self.published_at = Some(now);
        }
        changed
    }
}

impl Seen {
    /// The kind of signal that is nearest to clients tells the latency; failures are those of the worst kind. True: all is known
    /// that there are levels for.
    fn measure(&self, level: &mut Level, levels: &Levels, shared: &Shared) -> bool {
        let enough = || self.windows.iter().filter(|(_, window)| window.attempts() >= shared.min_samples);
        let p90 = |(kind, window): (&Kind, &Window)| Some((*kind, window.quantile_with_losses(0.9, RETRANSMISSION)?));
        level.p90 = nearest_to_clients(&enough().filter_map(p90).collect::<Vec<_>>());
        level.failures = enough().map(|(_, window)| window.failure()).fold(0.0, f64::max);
        (levels.p90.is_none() || level.p90.is_some()) && (levels.failures.is_none() || enough().next().is_some())
    }
}

/// What is to be borrowed so that the logarithm of what is kept changes by so much.
fn borrow(weight: f64, borrowed: f64, change: f64) -> f64 {
    let kept = weight / (weight + borrowed) * change.exp();
    if change > 0.0 && kept > 1.0 - LEAST { 0.0 } else { weight * (1.0 / kept - 1.0) }
}
