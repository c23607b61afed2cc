//! Paths: over which of its channels each server is reached.

use loadbalancer_common::backend::PATH_SLOTS;

use super::channels::{self, ChannelLoops};
use super::component::{Changed, Component, Shared};
use super::event::Event;
use super::registry::Registry;
use crate::health::{Part, ProbeReport};
use decide::channel::Event as ChannelEvent;
use decide::quality::signal::ChannelKey;
use model::ids::ServerId;

#[derive(Default)]
pub struct Paths {
    pub loops: ChannelLoops,
}

impl Paths {
    /// Brings the loops of channels to configuration and network. True: something has come of it.
    fn follow(&mut self, shared: &mut Shared) -> bool {
        let mut events = channels::Events::new();
        let config = shared.registry.config();
        for (_, server, id) in shared.registry.members() {
            let number = shared.plane.number(id);
            let kernel = number.map_or([None; PATH_SLOTS], |number| shared.plane.reconciler.channels_of(number));
            let key = |channel: u8| server.channels.get(usize::from(channel)).map(|it| ChannelKey(u16::from(*it)));
            let kernel = kernel.map(|channel| channel.and_then(key));
            let present = server.channels.iter().map(|position| {
                let channel = &config.channels[usize::from(*position)];
                channels::Present {
                    key: ChannelKey(u16::from(*position)),
                    capacity: channel.capacity,
                    link_up: match shared.resolved.hops.get(&channel.route(server.addr)) {
                        Some(Ok(_)) => Some(true),
                        Some(Err(error)) if !error.pending => Some(false),
                        _ => None,
                    },
                }
            });
            let present: Vec<channels::Present> = present.collect();
            let settings = &config.quality.channels;
            events.extend(self.loops.follow(id, &present, &kernel, settings, shared.now));
        }
        let registry = &shared.registry;
        self.loops.retain(|server| registry.server(server).is_some());
        let moved = self.take(&events, shared);
        shared.registry.note_reachable(&shared.resolved);
        moved
    }

    /// Takes over what the loops of channels say. True: they said something.
    fn take(&mut self, events: &channels::Events, shared: &mut Shared) -> bool {
        self.note_suspects(shared);
        if events.is_empty() {
            return false;
        }
        for (id, state) in shared.registry.servers_mut() {
            state.status.slots = self.loops.slots(id);
            state.status.cut_off = !self.loops.is_reachable(id);
        }
        shared.registry.note_reachable(&shared.resolved);
        for (server, event) in events {
            log_event(*server, event, &shared.registry);
        }
        true
    }

    /// On whose main channel probes are lost.
    fn note_suspects(&self, shared: &mut Shared) {
        if !self.loops.is_empty() {
            for (id, state) in shared.registry.servers_mut() {
                state.suspect_channel = self.loops.is_suspect(id);
            }
        }
    }

    fn on_report(&mut self, report: &ProbeReport, shared: &mut Shared) -> bool {
        let Part::Channel(position) = report.key.part else { return false };
        let key = ChannelKey(u16::from(position));
        let result = report.result.as_ref().map(|answer| answer.latency);
        let events = self.loops.probe(report.key.server, key, result, report.at);
        self.note_suspect(report.key.server, shared);
        !events.is_empty() && self.take(&events, shared)
    }

    fn note_suspect(&self, server: ServerId, shared: &mut Shared) {
        if let Some(state) = shared.registry.server_mut(server) {
            state.suspect_channel = self.loops.is_suspect(server);
        }
    }
}

impl Component for Paths {
    fn sync(&mut self, shared: &mut Shared) {
        self.follow(shared);
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        let moved = match event {
            Event::Report(report) => self.on_report(report, shared),
            Event::Resolved(_) => self.follow(shared),
            Event::Seen(seen) => {
                for (source, interval) in seen {
                    let Some(state) = shared.registry.server(source.server) else { continue };
                    if let Some(channel) = state.channels.get(usize::from(source.channel)) {
                        let key = ChannelKey(u16::from(*channel));
                        self.loops.passed(source.server, key, interval, shared.now);
                    }
                }
                false
            }
            _ => false,
        };
        // Checks take the best channel.
        if moved { Changed::PATHS } else { Changed::NOTHING }
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        for (id, _) in shared.registry.servers().filter(|(_, state)| !state.channels.is_empty()) {
            self.loops.set_in_use(id, shared.plane.active(id) > 0);
        }
        let events = self.loops.step(shared.now);
        if self.take(&events, shared) { Changed::PATHS } else { Changed::NOTHING }
    }
}

fn log_event(server: ServerId, event: &ChannelEvent, registry: &Registry) {
    let server = registry.name_of(server);
    let channels = &registry.config().channels;
    let name = |key: &ChannelKey| channels.get(usize::from(key.0)).map_or("", |channel| &channel.name);
    match event {
        ChannelEvent::Died { channel, cause } => {
            tracing::warn!(%server, channel = name(channel), %cause, "a channel is dead; its flows take others");
        }
        ChannelEvent::Back { channel } => tracing::info!(%server, channel = name(channel), "a channel is back"),
        ChannelEvent::Moved => tracing::debug!(%server, "flows take other channels"),
        ChannelEvent::Unreachable => tracing::warn!(%server, "all its channels are dead"),
        ChannelEvent::Reachable => tracing::info!(%server, "some channel to it works again"),
    }
}
