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

pub mod settings;
pub mod slots;
mod single;
mod rtt;
mod loss;
pub mod pool;
pub mod explain;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use loadbalancer_common::backend::PATH_SLOTS;

use self::explain::{ChannelsReport, Death, Reason, SlotChange};
use self::loss::Counts;
use self::rtt::Rtt;
use self::settings::{Leave, Settings};
use self::single::Channel;
use self::slots::{Places, Slots};
use crate::quality::signal::{ChannelKey, Failure, Histogram};

/// What the traffic of an interval told of a channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passive {
    /// What was sent, and had to be sent again.
    pub sent: u32,
    pub resent: u32,
    pub handshakes: Histogram,
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
    fn places(&self) -> Places {
        self.slots.map(|slot| self.channels.keys().position(|key| Some(*key) == slot))
    }

    fn die(&mut self, key: ChannelKey, cause: Death, now: Duration, events: &mut Vec<Event>) {
        let Some(channel) = self.channels.get_mut(&key).filter(|channel| channel.dead.is_none()) else { return };
        channel.die(cause, now);
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
            channel.note_moment(&self.settings, slots, now);
        }
    }
}
