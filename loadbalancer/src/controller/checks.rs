//! What is asked of servers, and what they answer: checks decide whether a server is up, agents say how it is.

use std::time::Instant;

use model::health::Health;
use socket2::Socket;
use tokio::sync::mpsc;

use super::chores::Chore;
use super::component::{Changed, Component, Shared};
use super::component::{SECOND, TICK};
use super::event::Event;
use super::registry::ServerState;
use super::through_vips::VipProbes;
use super::{channels, interfaces, quality, targets};
use crate::config::{Config, Interface, XdpMode};
use crate::dataplane::clock::ticks_now;
use crate::health::{Answer, CheckSpec, Checker, Part, ProbeError, ProbeKey, ProbeReport, Transition, Via};
use crate::network::prober::{Prober, interface_name};
use decide::plan::desired::DesiredProbe;
use decide::quality::signal::SelfReport;

pub struct Checks {
    checker: Checker,
    through_vips: VipProbes,
    /// Somewhere for probes through VIPs to come from is being opened.
    is_asked: bool,
    /// When it is next looked whether probes through VIPs still come from somewhere.
    due: Instant,
}

impl Checks {
    pub fn new(reports: mpsc::Sender<ProbeReport>, config: &Config, now: Instant) -> Self {
        Self { checker: Checker::new(reports), through_vips: VipProbes::new(config), is_asked: false, due: now }
    }

    pub fn through_vips(&self) -> &VipProbes {
        &self.through_vips
    }

    /// Whether a report is of a probe that is still wanted as it was.
    pub fn is_current(&self, report: &ProbeReport) -> bool {
        self.checker.is_current(report)
    }

    /// All probes through VIPs.
    pub fn desired(&self) -> Vec<DesiredProbe> {
        self.through_vips.desired()
    }

    /// To be called once the packet path knows where probes through VIPs go: they are sent from now on.
    pub fn start(&mut self) {
        self.through_vips.start(&mut self.checker);
    }

    /// Asks all servers what the configuration has; over the best channel where they have some.
    pub fn follow(&mut self, shared: &Shared) {
        let config = shared.registry.config();
        self.through_vips.begin(config);
        let pairs = shared.registry.members().map(|(_, server, _)| server.channels.len() as u32).sum();
        for (service, server, id) in shared.registry.members() {
            let Some(state) = shared.registry.server(id) else { continue };
            let best = state.status.slots.as_ref().and_then(channels::most);
            let via = best.map_or_else(Via::default, |position| targets::via(config, position, server.addr));
            let check = service.check.as_ref().and_then(|check| targets::check(service, server, check, &via));
            let mut wanted: Vec<(Part, CheckSpec)> = check
                .map(|spec| (Part::Check, spec))
                .into_iter()
                .chain(targets::besides(service, server, &via))
                .chain(targets::channels(config, service, server, pairs))
                .collect();
            let mut parts: Vec<Part> = Vec::with_capacity(wanted.len());
            wanted.retain(|(part, spec)| {
                let key = ProbeKey { server: id, part: *part };
                let is_through_vip = targets::is_through_vip(service, *part);
                let source = || targets::source(config, server, spec.target.address, &shared.resolved);
                if !is_through_vip || self.through_vips.want(key, spec, id, (shared.prober.as_ref(), source())) {
                    parts.push(*part);
                }
                !is_through_vip
            });
            self.checker.keep(id, &parts);
            for (part, spec) in wanted {
                self.checker.set(ProbeKey { server: id, part }, spec);
            }
        }
        self.through_vips.end(shared.prober.as_ref());
    }

    /// Takes what probes through VIPs are to come from. They begin when the kernel's maps are next brought up to date.
    fn open(&mut self, opened: &Result<(Prober, Socket), String>, shared: &mut Shared) -> Changed {
        self.is_asked = false;
        let prober = match opened {
            Ok((prober, _)) => prober,
            Err(error) => {
                self.through_vips.miss(error.clone());
                return Changed::NOTHING;
            }
        };
        let interface = Interface { name: prober.interface().to_owned(), xdp: XdpMode::Auto };
        if let Err(error) = interfaces::attach(&interface, &mut shared.plane) {
            self.through_vips.miss(error.to_string());
            return Changed::NOTHING;
        }
        self.through_vips.settle();
        self.checker.set_packet_path(Some(prober.namespace().clone()));
        shared.prober = Some(prober.clone());
        Changed::PATHS
    }

    /// Lets go of what probes through VIPs come from. Gives the interface that they came in by.
    fn close(&mut self, shared: &mut Shared) -> Option<String> {
        self.through_vips.settle();
        let prober = shared.prober.take()?;
        // The checks that use it go, and with them the namespace and both ends of the pair.
        self.follow(shared);
        self.checker.set_packet_path(None);
        if let Err(error) = shared.plane.reconciler.kernel_mut().detach(prober.interface()) {
            tracing::error!(interface = prober.interface(), %error, "cannot detach");
        }
        Some(prober.interface().to_owned())
    }

    /// Has what probes through VIPs come from opened if there is something to ask, and closed if there is not.
    fn follow_need(&mut self, shared: &mut Shared) -> Changed {
        let needed = targets::need_prober(shared.registry.config());
        if needed && shared.prober.is_none() && !self.is_asked {
            self.is_asked = true;
            let pins = &shared.registry.config().gateway.pin_directory;
            shared.chores.ask(Chore::OpenProber(interface_name(pins)));
        } else if !needed && let Some(interface) = self.close(shared) {
            // A client of the responder that has vanished would keep it for a while.
            shared.chores.ask(Chore::RemoveLink(interface));
            return Changed::PATHS;
        }
        Changed::NOTHING
    }

    fn on_report(&mut self, report: &ProbeReport, shared: &mut Shared) -> Changed {
        let id = report.key.server;
        let Some(state) = shared.registry.server_mut(id) else { return Changed::NOTHING };
        let news = match report.key.part {
            // That says nothing of the server.
            Part::Check if report.result.is_err() && state.suspect_channel => return Changed::NOTHING,
            Part::Check => on_check(state, report),
            Part::Agent => on_agent(state, report),
            Part::Monitor(_) | Part::Channel(_) => return Changed::NOTHING,
        };
        // Most reports have none, and a name is looked for among all servers.
        if news.is_told() {
            news.tell(&shared.registry.name_of(id), report);
        }
        Changed::plan(news.changed)
    }
}

impl Component for Checks {
    fn sync(&mut self, shared: &mut Shared) {
        for gone in shared.registry.gone() {
            self.checker.remove_server(*gone);
        }
        self.follow(shared);
        self.follow_need(shared);
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        match event {
            Event::Report(report) => self.on_report(report, shared),
            Event::Prober(opened) => self.open(opened, shared),
            // What they come from is known with the routes.
            Event::Resolved(_) if shared.prober.is_some() => Changed::PATHS,
            Event::Stop => {
                // Without a controller nobody probes.
                if let Some(interface) = self.close(shared) {
                    shared.chores.ask(Chore::RemoveLink(interface));
                }
                Changed::PATHS
            }
            _ => Changed::NOTHING,
        }
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        if shared.now < self.due {
            return Changed::NOTHING;
        }
        self.due = shared.now + SECOND - TICK / 2;
        let mut changed = Changed::NOTHING;
        if shared.prober.as_ref().is_some_and(|prober| !prober.is_up()) {
            tracing::warn!("the interface of checks through VIPs is down or gone; it is made anew");
            self.close(shared);
            changed |= Changed::PATHS;
        } else if self.through_vips.lacks_ports() {
            changed |= Changed::PATHS;
        }
        changed |= self.follow_need(shared);
        changed
    }
}

/// What a report says that was not known before.
#[derive(Default)]
struct News {
    /// The plan depends on it.
    changed: bool,
    health: Option<Transition>,
    agent_failure: Option<ProbeError>,
    self_report: Option<SelfReport>,
}

impl News {
    fn is_told(&self) -> bool {
        self.health.is_some() || self.agent_failure.is_some() || self.self_report.is_some()
    }

    fn tell(&self, server: &str, report: &ProbeReport) {
        if let Some(transition) = &self.health {
            let (from, to) = (transition.from.label(), transition.to.label());
            match &report.result {
                Err(reason) => tracing::warn!(server, from, to, %reason, "health changed"),
                Ok(_) => tracing::info!(server, from, to, "health changed"),
            }
        }
        if let Some(error) = &self.agent_failure {
            tracing::warn!(server, %error, "its agent could not be asked; what it said before stays");
        }
        if let Some(said) = &self.self_report {
            tracing::info!(server, state = ?said.state, percent = said.weight_percent, "its agent says");
        }
    }
}

/// Takes the result of a check.
fn on_check(state: &mut ServerState, report: &ProbeReport) -> News {
    let Some(health) = &mut state.health else { return News::default() };
    let result = report.result.as_ref().map(|answer| answer.latency);
    let transition = health.observe(result.map_err(Clone::clone), report.at);
    let now = health.health();
    // What an earlier controller knew stands until this one knows better.
    let changed = now != Health::Unknown && state.status.health != Some(now);
    if changed {
        if now == Health::Down || state.status.health == Some(Health::Down) {
            state.suspect_since = Some(ticks_now());
        }
        state.status.health = Some(now);
    }
    News { changed, health: transition, ..News::default() }
}

/// Takes what an agent says.
fn on_agent(state: &mut ServerState, report: &ProbeReport) -> News {
    let before = quality::self_report(state.agent.report());
    let failed = state.agent.last_failure().is_some();
    let said = report.result.clone().map(|Answer { report, .. }| report.map_or_else(Default::default, |said| *said));
    let agent_failure = said.as_ref().err().filter(|_| !failed).cloned();
    state.agent.observe(said, report.at);
    let now = quality::self_report(state.agent.report());
    let differs = now.state != before.state || now.weight_percent != before.weight_percent;
    News { changed: now != before, agent_failure, self_report: differs.then_some(now), ..News::default() }
}
