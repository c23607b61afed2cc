//! The channels of one server: which of them its flows take.
//!
//! ```text
//! score  = max(floor, srtt + deviations * rttvar + sure loss * loss penalty)        from probes, else from handshakes
//! weight = capacity / score^preference                 weights fill the server's path slots; a flow's hash picks one
//! ```
//!
//! Slots move when they are off by more than half of one and a margin in some comparisons on end. A channel that lost
//! slots gets some back after a while at the soonest, longer each time, so that nothing swings; it may lose more at any
//! time. A channel is dead when its link is down or probes are missed on end, and its slots move at once; it is back after
//! so many good probes on end, more each time. Live flows are bound to slots, so whoever wants them to leave dead channels
//! only has slots compared while there are none. Where all are dead, the server is unreachable and slots stay as they are.
//!
//! How soon 5 % loss is sure: with two losses, that is within 3 s in 45 of 100 cases with 10 probes a second and nothing
//! else, and slots have moved by then in 22. With 100 packets of traffic a second whose loss is seen, they always have.

pub mod explain;
mod loss;
pub mod pool;
mod rtt;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use loadbalancer_common::backend::PATH_SLOTS;

use self::explain::{ChannelReport, ChannelsReport, Moment, Reason, SlotChange, State};
use self::loss::{Counts, LossWindow};
use self::rtt::Rtt;
use super::signal::{ChannelKey, Failure, Histogram};

/// Constants of the loop of channels. Where no source is named, they were tried with the tests here.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time between probes of a channel.
    pub probe_every: Duration,
    /// Time between comparisons.
    pub interval: Duration,
    /// Which channels live flows leave.
    pub leave: Leave,
    /// Weight of a measurement in the smoothed time (RFC 6298: 1/8).
    pub srtt_gain: f64,
    /// Weight of a measurement in its variation (RFC 6298: 1/4).
    pub rttvar_gain: f64,
    /// Variations that are added to the smoothed time (RFC 6298: 4).
    pub deviations: f64,
    /// Intervals of a probe over which losses of probes and of traffic are counted.
    pub loss_window: usize,
    /// What a loss costs: the first retransmission of TCP comes after a second (RFC 6298).
    pub loss_penalty: Duration,
    /// Standard deviations of the number of losses that are taken off before they count.
    pub sure: f64,
    /// Intervals over which losses are averaged at least.
    pub least_intervals: usize,
    /// Scores below this one are alike: on a busy machine, probes themselves differ by some milliseconds.
    pub score_floor: Duration,
    /// With 1, shares are in proportion to capacity/score: 20 ms beside 70 ms keeps 22 % of the flows on the worse channel.
    /// With 2 it keeps 8 %.
    pub preference: f64,
    /// Slots move when they are off by half of one and this part of one. With 0.4 and two equal channels one has to be
    /// better by a quarter.
    pub margin: f64,
    /// Comparisons on end that have to agree: a second.
    pub better_for: u32,
    /// Time after which a channel that lost slots may get some back; twice as long after each time that is not forgotten.
    pub hold: Duration,
    /// No longer than this.
    pub hold_most: Duration,
    /// Missed probes on end that mean that a channel is dead.
    pub dead_after: u32,
    /// Good probes on end until it is back, times the number of its deaths that are not forgotten.
    pub back_after: u32,
    /// No more than as many.
    pub back_most: u32,
    /// Time after which one death, and one time of slots lost, is forgotten.
    pub forget_after: Duration,
    /// Silence of probes and traffic after which nothing is moved any more.
    pub stale_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_every: Duration::from_millis(100),
            interval: Duration::from_millis(250),
            leave: Leave::Worse,
            srtt_gain: 0.125,
            rttvar_gain: 0.25,
            deviations: 4.0,
            loss_window: 100,
            loss_penalty: Duration::from_secs(1),
            sure: 1.0,
            least_intervals: 20,
            score_floor: Duration::from_millis(5),
            preference: 2.0,
            margin: 0.4,
            better_for: 4,
            hold: Duration::from_secs(5),
            hold_most: Duration::from_secs(60),
            dead_after: 3,
            back_after: 20,
            back_most: 300,
            forget_after: Duration::from_secs(60),
            stale_after: Duration::from_secs(3),
        }
    }
}

/// Which channels live flows leave; as flows are bound to slots by their hashes, new flows follow the same slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// Those that are worse than others as well.
    #[default]
    Worse,
    /// Only dead ones. Other slots move while the server has no active flow, so until then a channel that is back gets none.
    Dead,
}

/// What the traffic of an interval told of a channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passive {
    /// What was sent, and had to be sent again.
    pub sent: u32,
    pub resent: u32,
    pub handshakes: Histogram,
}

/// Why a channel is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Death {
    ProbesMissed,
    LinkDown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProbesMissed => "probes are lost",
            Self::LinkDown => "interface or next hop gone",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Died {
        channel: ChannelKey,
        cause: Death,
    },
    Back {
        channel: ChannelKey,
    },
    /// Slots changed.
    Moved,
    /// No channel is left.
    Unreachable,
    Reachable,
}

/// Channel of each slot; None: there is no channel.
pub type Slots = [Option<ChannelKey>; PATH_SLOTS];

struct Channel {
    capacity: u32,
    link_up: bool,
    dead: Option<(Death, Duration)>,
    /// Deaths that are not forgotten, and since when it is calm.
    deaths: u32,
    calm_since: Duration,
    missed: u32,
    good: u32,
    probed: Option<Rtt>,
    passed: Option<Rtt>,
    losses: LossWindow,
    /// Of probes alone, without those missed on end.
    probes: LossWindow,
    /// Share that all servers behind it surely lose.
    shared: f64,
    heard: Option<Duration>,
    /// When it last lost slots while it was alive.
    gave: Option<Duration>,
    /// Times that it got slots and lost them again, as far as they are not forgotten, and since when it is calm.
    swings: u32,
    swing_calm_since: Duration,
    risen: bool,
    last_change: Option<SlotChange>,
    history: VecDeque<Moment>,
}

/// Seconds of history that are kept.
const HISTORY: usize = 60;

/// The channels of one server.
pub struct Channels {
    settings: Settings,
    channels: BTreeMap<ChannelKey, Channel>,
    slots: Slots,
    compared: Duration,
    /// Comparisons on end that found slots to be off.
    off: u32,
    /// The server has active flows.
    in_use: bool,
    reachable: bool,
}

impl Channels {
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            channels: BTreeMap::new(),
            slots: [None; PATH_SLOTS],
            compared: now,
            off: 0,
            in_use: false,
            reachable: true,
        }
    }

    /// New constants, as after a reload.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Slots as another controller left them; to be called when channels are set and nothing is measured yet.
    pub fn adopt(&mut self, slots: &Slots) {
        for (slot, key) in self.slots.iter_mut().zip(slots) {
            if key.is_some_and(|key| self.channels.contains_key(&key)) {
                *slot = *key;
            }
        }
    }

    /// Adds a channel, or changes its capacity, of which only the ratio to the others matters; zero counts as 1.
    pub fn set_channel(&mut self, key: ChannelKey, capacity: u32, now: Duration) -> Vec<Event> {
        let capacity = capacity.max(1);
        match self.channels.get_mut(&key) {
            Some(channel) if channel.capacity == capacity => return Vec::new(),
            Some(channel) => channel.capacity = capacity,
            None => {
                self.channels.insert(key, Channel::new(capacity, now));
            }
        }
        let mut events = Vec::new();
        if self.channels.values().all(|channel| channel.estimate().is_none()) {
            let wanted = slots::fill(&vec![0; self.channels.len()], &self.weights(), &self.any());
            self.place(&wanted, Some(Reason::Configured), now, &mut events);
        }
        self.leave_dead(Reason::Configured, now, &mut events);
        self.note_reachable(&mut events);
        events
    }

    pub fn remove_channel(&mut self, key: ChannelKey, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if self.channels.remove(&key).is_some() {
            self.leave_dead(Reason::Configured, now, &mut events);
            self.note_reachable(&mut events);
        }
        events
    }

    /// The interface, the route or the next hop of a channel came or went.
    pub fn set_link(&mut self, key: ChannelKey, up: bool, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(channel) = self.channels.get_mut(&key) else { return events };
        channel.link_up = up;
        channel.good = 0;
        if !up {
            self.die(key, Death::LinkDown, now, &mut events);
        }
        events
    }

    /// Whether the server has active flows.
    pub fn set_in_use(&mut self, in_use: bool) {
        self.in_use = in_use;
    }

    /// Takes the result of a probe.
    pub fn probe(&mut self, key: ChannelKey, result: Result<Duration, Failure>, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        let settings = &self.settings;
        let alone = !self.reachable;
        let Some(channel) = self.channels.get_mut(&key) else { return events };
        channel.heard = Some(now);
        channel.count(1, u32::from(result.is_err()), now, settings);
        match result {
            Ok(rtt) => {
                channel.missed = 0;
                channel.good = channel.good.saturating_add(1);
                channel.probed = Some(Rtt::update(channel.probed, rtt, settings.srtt_gain, settings.rttvar_gain));
                if channel.is_back(settings, alone) {
                    channel.revive(now);
                    events.push(Event::Back { channel: key });
                    self.leave_dead(Reason::PeerDied, now, &mut events);
                    self.note_reachable(&mut events);
                }
            }
            Err(_) => {
                channel.good = 0;
                channel.missed = channel.missed.saturating_add(1);
                if channel.missed >= settings.dead_after {
                    self.die(key, Death::ProbesMissed, now, &mut events);
                }
            }
        }
        self.note_probe(key, now);
        events
    }

    fn note_probe(&mut self, key: ChannelKey, now: Duration) {
        let settings = &self.settings;
        if let Some(channel) = self.channels.get_mut(&key).filter(|it| it.dead.is_none() && it.missed <= 1) {
            channel.probes.add(1, channel.missed, now, settings.probe_every, settings.loss_window);
        }
    }

    /// Takes what the traffic of an interval told.
    pub fn passive(&mut self, key: ChannelKey, passive: &Passive, now: Duration) {
        let settings = &self.settings;
        let Some(channel) = self.channels.get_mut(&key) else { return };
        channel.count(passive.sent, passive.resent.min(passive.sent), now, settings);
        let count = passive.handshakes.count();
        if count > 0 {
            let mean = Duration::from_nanos((passive.handshakes.sum() / count as f64) as u64);
            channel.heard = Some(now);
            channel.passed = Some(Rtt::update(channel.passed, mean, settings.srtt_gain, settings.rttvar_gain));
        }
    }

    /// Probes of each channel, for [`pool::sure_rate`].
    pub fn probes(&self, now: Duration) -> impl Iterator<Item = (ChannelKey, [Counts; pool::SPANS.len()])> {
        let spans = pool::SPANS.map(|times| times * self.settings.least_intervals);
        let every = self.settings.probe_every;
        let alive = self.channels.iter().filter(|(_, channel)| channel.dead.is_none());
        alive.map(move |(key, channel)| (*key, channel.probes.last(spans, now, every)))
    }

    /// What is surely lost on a channel that other servers share.
    pub fn set_shared(&mut self, key: ChannelKey, rate: f64) {
        if let Some(channel) = self.channels.get_mut(&key) {
            channel.shared = rate;
        }
    }

    /// Compares the channels, if it is time to.
    pub fn step(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if now.saturating_sub(self.compared) < self.settings.interval {
            return events;
        }
        self.note_history(now);
        self.compared = now;
        for channel in self.channels.values_mut() {
            channel.forget(&self.settings, now);
        }
        let weights = self.weights();
        let counts = slots::count(&self.places(), self.channels.len());
        let silent = self.channels.values().any(|channel| channel.is_stale(&self.settings, now));
        let bound = self.in_use && self.settings.leave == Leave::Dead;
        if silent || bound || !slots::is_off(&counts, &weights, self.settings.margin) {
            self.off = 0;
            return events;
        }
        self.off += 1;
        if self.off >= self.settings.better_for {
            let bound = self
                .channels
                .values()
                .zip(&counts)
                .map(|(channel, count)| if channel.is_held(&self.settings, now) { *count } else { PATH_SLOTS });
            let most: Vec<usize> = bound.collect();
            let wanted = slots::fill(&vec![0; counts.len()], &weights, &most);
            self.place(&wanted, None, now, &mut events);
        }
        events
    }

    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Whether probes are missed on a channel, but not on all.
    pub fn is_suspect(&self, key: ChannelKey) -> bool {
        let missing = |channel: &Channel| channel.missed > 0 || channel.dead.is_some();
        self.channels.get(&key).is_some_and(missing) && !self.channels.values().all(missing)
    }

    /// Whether some channel is not dead.
    pub fn is_reachable(&self) -> bool {
        self.reachable
    }

    pub fn explain(&self, now: Duration) -> ChannelsReport {
        let weights = self.weights();
        let total: f64 = weights.iter().sum();
        let counts = slots::count(&self.places(), self.channels.len());
        let channels = self.channels.iter().zip(weights).zip(counts).map(|(((key, channel), weight), slots)| {
            let share = if total > 0.0 { weight / total } else { 0.0 };
            channel.explain(*key, &self.settings, share, slots, now)
        });
        ChannelsReport { reachable: self.reachable, slots: self.slots, channels: channels.collect() }
    }

    fn any(&self) -> Vec<usize> {
        vec![PATH_SLOTS; self.channels.len()]
    }

    /// By what slots are shared, in the order of the channels; zero: none.
    fn weights(&self) -> Vec<f64> {
        let known = self.channels.values().any(|channel| channel.dead.is_none() && channel.estimate().is_some());
        let floor = self.settings.score_floor.as_secs_f64();
        let weight = |channel: &Channel| match channel.score(&self.settings) {
            _ if channel.dead.is_some() => 0.0,
            Some(score) => f64::from(channel.capacity) * (floor / score).powf(self.settings.preference),
            None if known => 0.0,
            None => f64::from(channel.capacity),
        };
        self.channels.values().map(weight).collect()
    }

    /// Slots with places in the order of the channels instead of keys.
    fn places(&self) -> slots::Slots {
        self.slots.map(|slot| self.channels.keys().position(|key| Some(*key) == slot))
    }

    fn die(&mut self, key: ChannelKey, cause: Death, now: Duration, events: &mut Vec<Event>) {
        let Some(channel) = self.channels.get_mut(&key).filter(|channel| channel.dead.is_none()) else { return };
        channel.dead = Some((cause, now));
        channel.deaths = channel.deaths.saturating_add(1);
        (channel.probed, channel.passed, channel.good) = (None, None, 0);
        channel.probes = LossWindow::default();
        events.push(Event::Died { channel: key, cause });
        self.leave_dead(Reason::PeerDied, now, events);
        self.note_reachable(events);
    }

    /// Gives slots of dead and removed channels to others, if there are any; no other slot moves.
    fn leave_dead(&mut self, reason: Reason, now: Duration, events: &mut Vec<Event>) {
        let weights = self.weights();
        let mut counts = slots::count(&self.places(), self.channels.len());
        counts.iter_mut().zip(&weights).filter(|(_, weight)| **weight <= 0.0).for_each(|(count, _)| *count = 0);
        let wanted = slots::fill(&counts, &weights, &self.any());
        if wanted.iter().sum::<usize>() == PATH_SLOTS || self.channels.is_empty() {
            self.place(&wanted, Some(reason), now, events);
        }
    }

    /// Makes each channel have its number of slots. Without a reason: by comparison.
    fn place(&mut self, wanted: &[usize], reason: Option<Reason>, now: Duration, events: &mut Vec<Event>) {
        let mut places = self.places();
        let before = slots::count(&places, wanted.len());
        slots::assign(&mut places, wanted);
        let keys: Vec<ChannelKey> = self.channels.keys().copied().collect();
        let slots = places.map(|place| place.map(|place| keys[place]));
        self.off = 0;
        if slots == self.slots {
            return;
        }
        self.slots = slots;
        events.push(Event::Moved);
        for ((channel, from), to) in self.channels.values_mut().zip(before).zip(wanted) {
            if from == *to {
                continue;
            }
            let fell = *to < from;
            let reason = match (reason, channel.dead) {
                (_, Some((cause, _))) if fell => Reason::Died(cause),
                (Some(reason), _) => reason,
                (None, _) => channel.compared(&self.settings, fell),
            };
            if channel.dead.is_none() {
                channel.note_swing(fell, now);
            }
            channel.last_change = Some(SlotChange { at: now, from, to: *to, reason });
        }
    }

    fn note_reachable(&mut self, events: &mut Vec<Event>) {
        let reachable = self.channels.is_empty() || self.channels.values().any(|channel| channel.dead.is_none());
        if reachable != self.reachable {
            self.reachable = reachable;
            events.push(if reachable { Event::Reachable } else { Event::Unreachable });
        }
    }

    fn note_history(&mut self, now: Duration) {
        if now.as_secs() == self.compared.as_secs() {
            return;
        }
        let counts = slots::count(&self.places(), self.channels.len());
        for (channel, slots) in self.channels.values_mut().zip(counts) {
            if channel.history.len() >= HISTORY {
                channel.history.pop_front();
            }
            let moment = Moment {
                at: now,
                srtt: channel.estimate().map(|rtt| Duration::from_secs_f64(rtt.smoothed)),
                loss: channel.losses.rate(),
                score: channel.score(&self.settings).map(Duration::from_secs_f64),
                dead: channel.dead.is_some(),
                slots,
            };
            channel.history.push_back(moment);
        }
    }
}

impl Channel {
    fn new(capacity: u32, now: Duration) -> Self {
        Self {
            capacity,
            link_up: true,
            dead: None,
            deaths: 0,
            calm_since: now,
            missed: 0,
            good: 0,
            probed: None,
            passed: None,
            losses: LossWindow::default(),
            probes: LossWindow::default(),
            shared: 0.0,
            heard: None,
            gave: None,
            swings: 0,
            swing_calm_since: now,
            risen: true,
            last_change: None,
            history: VecDeque::new(),
        }
    }

    /// Probes of all channels are alike, so they are preferred to the handshakes of whatever passes.
    fn estimate(&self) -> Option<Rtt> {
        self.probed.or(self.passed)
    }

    fn count(&mut self, attempts: u32, losses: u32, now: Duration, settings: &Settings) {
        self.losses.add(attempts, losses, now, settings.probe_every, settings.loss_window);
    }

    fn sure_loss(&self, settings: &Settings) -> f64 {
        let own = self.losses.sure_rate(settings.sure, settings.least_intervals);
        if self.shared > own { own.max(self.shared.min(self.losses.most())) } else { own }
    }

    /// In seconds; None: nothing is known.
    fn score(&self, settings: &Settings) -> Option<f64> {
        let rtt = self.estimate()?;
        let lost = self.sure_loss(settings) * settings.loss_penalty.as_secs_f64();
        let score = rtt.smoothed + settings.deviations * rtt.variation + lost;
        Some(score.max(settings.score_floor.as_secs_f64()))
    }

    /// Good probes that a dead one needs. Where all are dead, any that works is welcome.
    fn needed(&self, settings: &Settings, alone: bool) -> u32 {
        let needed = settings.back_after.saturating_mul(self.deaths).min(settings.back_most);
        if alone { needed.min(settings.dead_after) } else { needed }
    }

    fn is_back(&self, settings: &Settings, alone: bool) -> bool {
        self.dead.is_some() && self.link_up && self.good >= self.needed(settings, alone)
    }

    fn revive(&mut self, now: Duration) {
        self.dead = None;
        self.calm_since = now;
        (self.losses, self.shared) = (LossWindow::default(), 0.0);
    }

    fn note_swing(&mut self, fell: bool, now: Duration) {
        if fell {
            self.gave = Some(now);
            self.swings += u32::from(self.risen);
            self.swing_calm_since = now;
        }
        self.risen = !fell;
    }

    /// It lost slots a short while ago and may not get any.
    fn is_held(&self, settings: &Settings, now: Duration) -> bool {
        let doublings = self.swings.saturating_sub(1).min(16);
        let hold = settings.hold.saturating_mul(1 << doublings).min(settings.hold_most);
        self.gave.is_some_and(|at| now.saturating_sub(at) < hold)
    }

    fn forget(&mut self, settings: &Settings, now: Duration) {
        if self.swings > 0 && now.saturating_sub(self.swing_calm_since) >= settings.forget_after {
            self.swings -= 1;
            self.swing_calm_since = now;
        }
        let calm = self.dead.is_none() && now.saturating_sub(self.calm_since) >= settings.forget_after;
        if calm && self.deaths > 0 {
            self.deaths -= 1;
            self.calm_since = now;
        }
    }

    fn is_stale(&self, settings: &Settings, now: Duration) -> bool {
        let silent = self.heard.is_some_and(|at| now.saturating_sub(at) > settings.stale_after);
        self.dead.is_none() && silent
    }

    /// Why a comparison gave it more or fewer slots.
    fn compared(&self, settings: &Settings, fell: bool) -> Reason {
        let loss = self.sure_loss(settings);
        let score = self.score(settings).unwrap_or_default();
        match fell {
            true if loss * settings.loss_penalty.as_secs_f64() > score / 2.0 => Reason::Loses { loss },
            true => Reason::Worse { score: Duration::from_secs_f64(score) },
            false => Reason::Better { score: Duration::from_secs_f64(score) },
        }
    }

    fn explain(&self, key: ChannelKey, settings: &Settings, share: f64, slots: usize, now: Duration) -> ChannelReport {
        let state = match self.dead {
            Some((cause, since)) => State::Dead { cause, since, good_probes: self.good },
            None if self.estimate().is_none() => State::Unknown,
            None if self.is_stale(settings, now) => State::Stale,
            None => State::Good,
        };
        let seconds = |part: fn(&Rtt) -> f64| self.estimate().map(|rtt| Duration::from_secs_f64(part(&rtt)));
        ChannelReport {
            channel: key,
            capacity: self.capacity,
            state,
            link_up: self.link_up,
            srtt: seconds(|rtt| rtt.smoothed),
            rttvar: seconds(|rtt| rtt.variation),
            loss: self.losses.rate(),
            sure_loss: self.sure_loss(settings),
            score: self.score(settings).map(Duration::from_secs_f64),
            share,
            slots,
            deaths: self.deaths,
            last_change: self.last_change,
            history: self.history.iter().copied().collect(),
        }
    }
}
