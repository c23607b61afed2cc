//! The loops over the channels of all servers: which path slots of a server each of its channels has.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::quality::histogram;
use crate::dataplane::signals::Interval;
use crate::health::ProbeError;
use decide::channel::explain::ChannelsReport;
use decide::channel::settings::Settings;
use decide::channel::slots::Slots;
use decide::channel::{Channels, Event, Passive, pool};
use decide::quality::signal::{ChannelKey, Failure};
use model::ids::ServerId;

/// What is to be known of a channel of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    pub key: ChannelKey,
    pub capacity: u32,
    /// None: it is being found out.
    pub link_up: Option<bool>,
}

/// All loops, by the number of the server.
#[derive(Default)]
pub struct ChannelLoops {
    servers: HashMap<ServerId, Loop>,
    /// Since when time is counted; None: nothing began yet.
    epoch: Option<Instant>,
}

struct Loop {
    channels: Channels,
    known: Vec<Present>,
}

/// The channel with the most slots.
pub fn most(slots: &Slots) -> Option<u8> {
    let count = |key: &ChannelKey| slots.iter().flatten().filter(|slot| *slot == key).count();
    let best = slots.iter().flatten().max_by_key(|key| (count(key), std::cmp::Reverse(**key)));
    best.and_then(|key| u8::try_from(key.0).ok())
}

/// What happened to which server.
pub type Events = Vec<(ServerId, Event)>;

impl ChannelLoops {
    fn now(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.epoch.get_or_insert(now))
    }

    /// Brings a server's channels to what they are now; none: it has no loop.
    /// A new loop begins with the slots that the kernel has.
    pub fn follow(
        &mut self,
        server: ServerId,
        present: &[Present],
        kernel: &Slots,
        settings: &Settings,
        now: Instant,
    ) -> Events {
        let now = self.now(now);
        if present.is_empty() {
            self.servers.remove(&server);
            return Vec::new();
        }
        let is_new = !self.servers.contains_key(&server);
        let it = self
            .servers
            .entry(server)
            .or_insert_with(|| Loop { channels: Channels::new(settings.clone(), now), known: Vec::new() });
        it.channels.set_settings(settings.clone());
        let mut events = Vec::new();
        for old in &it.known {
            if !present.iter().any(|new| new.key == old.key) {
                events.extend(it.channels.remove_channel(old.key, now));
            }
        }
        for new in present {
            events.extend(it.channels.set_channel(new.key, new.capacity, now));
            if is_new {
                it.channels.adopt(kernel);
            }
            let before = it.known.iter().find(|old| old.key == new.key).and_then(|old| old.link_up);
            if let Some(up) = new.link_up
                && before != Some(up)
            {
                events.extend(it.channels.set_link(new.key, up, now));
            }
        }
        let known = |new: &Present| {
            let before = it.known.iter().find(|old| old.key == new.key).and_then(|old| old.link_up);
            Present { link_up: new.link_up.or(before), ..*new }
        };
        it.known = present.iter().map(known).collect();
        events.into_iter().map(|event| (server, event)).collect()
    }

    /// No server has channels.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Forgets servers that are not among these.
    pub fn retain(&mut self, keep: impl Fn(ServerId) -> bool) {
        self.servers.retain(|server, _| keep(*server));
    }

    /// Takes the result of a probe.
    pub fn probe(
        &mut self,
        server: ServerId,
        channel: ChannelKey,
        result: Result<Duration, &ProbeError>,
        now: Instant,
    ) -> Events {
        let result = match result {
            Ok(rtt) => Ok(rtt),
            Err(error) if error.is_local() => return Vec::new(),
            Err(ProbeError::TimedOut { .. }) => Err(Failure::Loss),
            Err(_) => Err(Failure::Error),
        };
        let now = self.now(now);
        let Some(it) = self.servers.get_mut(&server) else { return Vec::new() };
        it.channels.probe(channel, result, now).into_iter().map(|event| (server, event)).collect()
    }

    /// Takes what the packet path has seen of a channel.
    pub fn passed(&mut self, server: ServerId, channel: ChannelKey, seen: &Interval, now: Instant) {
        let now = self.now(now);
        let Some(it) = self.servers.get_mut(&server) else { return };
        let whole = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let resent = seen.lost_segments + seen.lost_handshakes;
        let passive = Passive {
            sent: whole(seen.segments + seen.handshakes.count() + resent),
            resent: whole(resent),
            handshakes: histogram(&seen.handshakes),
        };
        it.channels.passive(channel, &passive, now);
    }

    /// Whether a server has active flows.
    pub fn set_in_use(&mut self, server: ServerId, in_use: bool) {
        if let Some(it) = self.servers.get_mut(&server) {
            it.channels.set_in_use(in_use);
        }
    }

    /// Compares the channels of all servers.
    pub fn step(&mut self, now: Instant) -> Events {
        let now = self.now(now);
        self.share(now);
        let step = |(server, it): (&ServerId, &mut Loop)| {
            let server = *server;
            it.channels.step(now).into_iter().map(move |event| (server, event))
        };
        self.servers.iter_mut().flat_map(step).collect()
    }

    /// Tells each server what all of them lose on its channels.
    fn share(&mut self, now: Duration) {
        let mut probes: HashMap<ChannelKey, Vec<_>> = HashMap::new();
        for (key, counts) in self.servers.values().flat_map(|it| it.channels.probes(now)) {
            probes.entry(key).or_default().push(counts);
        }
        let Some(settings) = self.servers.values().next().map(|it| it.channels.settings().clone()) else { return };
        for (key, counts) in probes {
            let rate = pool::sure_rate(&counts, &settings);
            self.servers.values_mut().for_each(|it| it.channels.set_shared(key, rate));
        }
    }

    pub fn slots(&self, server: ServerId) -> Option<Slots> {
        self.servers.get(&server).map(|it| *it.channels.slots())
    }

    /// Whether some channel of the server lives, or it needs none.
    pub fn is_reachable(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_none_or(|it| it.channels.is_reachable())
    }

    /// Whether what is lost on a server's main channel may be the channel's fault.
    pub fn is_suspect(&self, server: ServerId) -> bool {
        let main = |it: &Loop| most(it.channels.slots()).map(|position| ChannelKey(u16::from(position)));
        self.servers.get(&server).is_some_and(|it| main(it).is_some_and(|key| it.channels.is_suspect(key)))
    }

    /// Now, on the clock of the reports.
    pub fn clock(&self, now: Instant) -> Duration {
        self.epoch.map_or(Duration::ZERO, |epoch| now.saturating_duration_since(epoch))
    }

    pub fn explain(&self, server: ServerId, now: Instant) -> Option<ChannelsReport> {
        let now = now.saturating_duration_since(self.epoch?);
        self.servers.get(&server).map(|it| it.channels.explain(now))
    }
}
