//! Weights: what is measured of servers goes in, and what their shares are to be comes out.

use std::collections::HashMap;

use model::health::Health;
use model::ids::{ServerId, ServiceId};

use super::component::{Changed, Component, Shared};
use super::event::Event;
use super::quality::{self, Constants, Present, Quality};
use super::registry::Registry;
use crate::config::{Check, Monitor, Service};
use crate::dataplane::stats;
use crate::health::{Part, ProbeReport};
use decide::quality::group::Event as GroupEvent;
use decide::quality::group::entry::{Entry, Nominal};
use decide::quality::signal::Kind;
use decide::sampling::{Load, PassiveShare, Sampling};
use decide::tiers::Event as TierEvent;

pub struct Weights {
    pub quality: Quality,
    /// Constants of each service in the kernel.
    constants: HashMap<ServiceId, Constants>,
    /// What is asked of the servers of each service, by its name.
    probes: HashMap<String, (Option<Check>, Vec<Monitor>)>,
    pub sampling: Sampling,
}

impl Weights {
    pub fn new(quality: Quality) -> Self {
        Self { quality, constants: HashMap::new(), probes: HashMap::new(), sampling: Sampling::default() }
    }

    /// Turns what was measured into weights. True: some changed.
    pub fn step(&mut self, shared: &mut Shared) -> bool {
        let (registry, plane) = (&shared.registry, &shared.plane);
        let mut present = Vec::with_capacity(self.quality.members());
        for (_, server, id) in registry.members() {
            let Some(state) = registry.server(id) else { continue };
            let status = &state.status;
            present.push(Present {
                id,
                tier: server.tier,
                nominal: Nominal {
                    weight: if state.held { 0 } else { u32::from(status.nominal_weight(server)) },
                    high_water: server.high_water.map(|mark| mark.get()),
                },
                entry: state.entry,
                up: !state.held && status.health.is_none_or(Health::may_serve) && state.reachable,
                active: plane.active(id),
                self_report: quality::self_report(state.agent.report()),
            });
        }
        let step = self.quality.step(&present, &self.constants, shared.now);
        for (id, state) in shared.registry.servers_mut() {
            state.status.decision = self.quality.given(id);
            if matches!(state.entry, Entry::Adopted(_)) && state.status.decision.is_some() {
                // It is taken over; what was before says nothing if it changes its tier.
                state.entry = Entry::Known;
            }
        }
        step.events.iter().for_each(|event| log_event(event, &shared.registry));
        for (service, event) in &step.tiers {
            log_tier_event(*service, event, &shared.registry);
        }
        step.changed
    }

    fn on_report(&mut self, report: &ProbeReport, shared: &Shared) {
        let key = report.key.server;
        let kind = match report.key.part {
            Part::Check => Kind::Check,
            Part::Monitor(position) => Kind::Monitor(position),
            Part::Agent | Part::Channel(_) => return,
        };
        let state = shared.registry.server(key);
        // Lost on a channel on which probes are lost as well: that says nothing of the server.
        if report.result.is_err() && state.is_none_or(|state| state.suspect_channel) {
            return;
        }
        let result = report.result.as_ref().map(|answer| answer.latency);
        self.quality.sample(key, kind, result, report.at);
    }

    /// Decides how many flows are sampled. True: that has changed.
    fn follow_load(&mut self, shared: &Shared) -> bool {
        if !self.sampling.is_due(shared.now) {
            return false;
        }
        let plane = &shared.plane;
        let services = &shared.registry.config().services;
        let open = services.iter().filter(|service| service.passive == PassiveShare::Auto);
        let mut active = HashMap::<ServiceId, u64>::new();
        for (id, number) in plane.servers() {
            *active.entry(id.service).or_default() += u64::from(plane.reconciler.active(number));
        }
        let loads = open.flat_map(Service::ids).filter_map(|service| {
            let packets = stats::forwarded(plane.maps(), plane.service_number(service)?).ok();
            Some(Load { service, packets, active: active.get(&service).copied().unwrap_or(0) })
        });
        self.sampling.look(loads, plane.reconciler.kernel().sizes.observed(), shared.now)
    }

    /// Monitors are known by their position: where it may have changed, what they told is forgotten.
    fn forget_changed_probes(&mut self, registry: &Registry) {
        for (_, _, id) in registry.members().filter(|(service, ..)| {
            let before = self.probes.get(&service.name);
            before.is_some_and(|(check, monitors)| (check, monitors) != (&service.check, &service.monitors))
        }) {
            self.quality.forget_probes(id);
        }
        let asked = |service: &Service| (service.name.clone(), (service.check.clone(), service.monitors.clone()));
        self.probes = registry.config().services.iter().map(asked).collect();
    }
}

impl Component for Weights {
    fn sync(&mut self, shared: &mut Shared) {
        self.constants.clear();
        for service in &shared.registry.config().services {
            let constants = Constants::of(service);
            self.constants.extend(service.ids().map(|id| (id, constants.clone())));
        }
        self.forget_changed_probes(&shared.registry);
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        match event {
            Event::Report(report) => self.on_report(report, shared),
            Event::Seen(seen) => {
                for (source, interval) in seen {
                    self.quality.passed(source.server, interval, shared.now);
                }
            }
            _ => {}
        }
        Changed::NOTHING
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        let sampled = self.follow_load(shared);
        let stepped = self.step(shared);
        let services = shared.registry.file().services.iter().filter(|service| service.standby.is_some());
        let level = |service: &Service| {
            let ids: Vec<ServiceId> = service.ids().collect();
            (service.name.clone(), self.quality.level(&ids))
        };
        shared.levels = services.map(level).collect();
        Changed::plan(stepped || sampled)
    }
}

fn log_event(event: &GroupEvent, registry: &Registry) {
    let name = |id: &ServerId| registry.name_of(*id);
    match event {
        GroupEvent::Ejected { server, cause, .. } => tracing::warn!(server = %name(server), %cause, "ejected"),
        GroupEvent::Returned { server } => tracing::info!(server = %name(server), "its ejection is over"),
        GroupEvent::PanicBegins => tracing::warn!("too few servers in good order: ejected ones serve again"),
        GroupEvent::PanicEnds => tracing::info!("enough servers in good order again"),
    }
}

fn log_tier_event(service: ServiceId, event: &TierEvent, registry: &Registry) {
    let is_it = |it: &&Service| it.ids().any(|id| id == service);
    let service = registry.config().services.iter().find(is_it).map_or("", |service| &service.name);
    match event {
        TierEvent::Begins { tier, cause: Some(cause) } => {
            tracing::info!(service, tier, why = %cause, "a tier helps the first");
        }
        TierEvent::Begins { tier, cause: None } => {
            tracing::info!(service, tier, "the first tier is back: this one helps until it has taken over");
        }
        TierEvent::Ends { tier } => tracing::info!(service, tier, "a tier helps no more"),
        TierEvent::First { tier, before } => {
            let text = "new flows go to another tier: it is the first with a server in order";
            tracing::warn!(service, tier, before, "{text}");
        }
    }
}
