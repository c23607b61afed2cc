//! The one task that owns the gateway's state.

mod adopt;
mod attach;
mod flows;
mod lease;
mod operator;
mod prober;
mod queue;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use tokio::sync::{mpsc, oneshot, watch};

use super::channels::{self, ChannelLoops};
use super::desire::{self, ServerId, Standing};
use super::probes;
use super::quality::{self, Present, Quality};
use super::resolver::{Resolved, Targets};
use super::responder::Responders;
use super::snapshot::{Change, Snapshot};
use super::standby::{self, HookDone, StandbyPool};
use super::watching::{Load, Watching};
use crate::config::{Config, PassiveShare, Service};
use crate::dataplane::census::{self, Census};
use crate::dataplane::desired::{Desired, DesiredBackend};
use crate::dataplane::half_open::HalfOpen;
use crate::dataplane::kernel::AttachMode;
use crate::dataplane::reconcile::{ReconcileError, Reconciler};
use crate::dataplane::{signals, stats};
use crate::health::{Answer, CheckSpec, Checker, Health, LastWord, Part, ProbeKey, Report, ServerHealth, Via};
use crate::network::hop::Way;
use crate::quality::channel::Event as ChannelEvent;
use crate::quality::group::{Entry, Event, Nominal};
use crate::quality::signal::{ChannelKey, Kind, ServerKey};
use crate::quality::tiers::Event as TierEvent;
use crate::queue::report as queue_report;

use prober::ProberState;
use queue::QueueState;
pub(crate) use report::{add_outcomes, now_ms};

/// How often flows are counted.
pub const TICK: Duration = Duration::from_secs(1);
/// How often quality is turned into weights.
pub const QUALITY_TICK: Duration = Duration::from_millis(250);
/// How often all maps are compared with what they should say.
const COMPARE: Duration = Duration::from_secs(30);
/// Servers whose ways are told by name when many change at once.
const TOLD_WAYS: usize = 20;

/// What others ask of the controller.
#[derive(Debug)]
pub enum Request {
    Snapshot(oneshot::Sender<Snapshot>),
    Quality(oneshot::Sender<quality::Report>),
    Channels(oneshot::Sender<channels::Report>),
    Standby(oneshot::Sender<standby::Report>),
    Queue(oneshot::Sender<queue_report::Report>),
    /// Server, as `service/server` or by its name alone.
    Change(String, Change, oneshot::Sender<Result<String, String>>),
    Reload(oneshot::Sender<Result<(), String>>),
}

struct ServerState {
    check_key: u32,
    standing: Standing,
    health: Option<ServerHealth>,
    /// What its agent says.
    word: LastWord,
    entry: Entry,
    /// As in the configuration.
    channels: Vec<u8>,
    /// Some way leads to it; as of the last news of channels or of the network.
    reachable: bool,
    /// It is to be checked, but not to serve.
    held: bool,
    /// When its health last changed, in ticks: see [`census::affinity`].
    suspect_since: Option<u32>,
}

/// How an interface is attached.
struct Attached {
    index: u32,
    mode: AttachMode,
}

pub struct Controller {
    /// The configuration as it is in the file.
    file: Config,
    /// The same with leased standby servers in their services.
    pub config: Config,
    config_path: PathBuf,
    reconciler: Reconciler,
    seed: u64,
    /// Who the servers of the configuration are, in its order; to tell that takes hashing texts.
    ids: Vec<Vec<ServerId>>,
    /// Constants of each service in the kernel.
    constants: HashMap<u64, quality::Constants>,
    servers: HashMap<ServerId, ServerState>,
    keys: HashMap<u32, ServerId>,
    next_key: u32,
    checker: Checker,
    quality: Quality,
    channels: ChannelLoops,
    standby: StandbyPool,
    signals: signals::Tracker,
    watching: Watching,
    prober: ProberState,
    queue: QueueState,
    half_open: HalfOpen,
    responders: Responders,
    resolved: Resolved,
    targets: watch::Sender<Targets>,
    attached: BTreeMap<String, Result<Attached, String>>,
    census: Census,
    /// Correction that the last count asked for, by backend: it is made if the next one agrees.
    drift: HashMap<u16, i64>,
    nat_census: Census,
    nat_census_due: Instant,
    compare_due: Instant,
    started: Instant,
    reload_error: Option<String>,
    apply_error: Option<String>,
    repairs: u64,
}

impl Controller {
    pub fn new(
        config: Config,
        config_path: PathBuf,
        reconciler: Reconciler,
        seed: u64,
        reports: mpsc::Sender<Report>,
        hooks: mpsc::Sender<HookDone>,
        targets: watch::Sender<Targets>,
    ) -> Self {
        let now = Instant::now();
        let mut controller = Self {
            prober: ProberState::new(&config),
            file: config.clone(),
            config,
            config_path,
            reconciler,
            seed,
            ids: Vec::new(),
            constants: HashMap::new(),
            servers: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            checker: Checker::new(reports),
            quality: Quality::new(now),
            channels: ChannelLoops::default(),
            standby: StandbyPool::new(hooks, now),
            signals: signals::Tracker::default(),
            watching: Watching::default(),
            queue: QueueState::default(),
            half_open: HalfOpen::default(),
            responders: Responders::default(),
            resolved: Resolved::default(),
            targets,
            attached: BTreeMap::new(),
            census: Census::default(),
            drift: HashMap::new(),
            nat_census: Census::default(),
            nat_census_due: now,
            compare_due: now + COMPARE,
            started: now,
            reload_error: None,
            apply_error: None,
            repairs: 0,
        };
        controller.standby.follow(&controller.file, now);
        controller.adopt_standby(now);
        controller.config = controller.standby.effective(&controller.file);
        controller.follow_config();
        controller
    }

    pub fn reconciler_mut(&mut self) -> &mut Reconciler {
        &mut self.reconciler
    }

    /// Brings servers, checks and targets to the configuration.
    fn follow_config(&mut self) {
        let of_service = |service: &Service| service.servers.iter().map(|it| desire::server_id(service, it)).collect();
        self.ids = self.config.services.iter().map(of_service).collect();
        let of_service = |service| desire::identities(service).map(|it| (it, quality::Constants::of(service)));
        let constants = self.config.services.iter().flat_map(of_service);
        self.constants = constants.collect();
        let mut servers = HashMap::new();
        // All that are there at the beginning begin together, and need no slow start.
        let (entry, found) =
            if self.next_key == 0 { (Entry::Known, self.found_weights()) } else { (Entry::New, HashMap::new()) };
        for service in &self.config.services {
            for server in &service.servers {
                let id = desire::server_id(service, server);
                let mut state = self.servers.remove(&id).unwrap_or_else(|| {
                    self.next_key += 1;
                    self.keys.insert(self.next_key, id);
                    // What the operator has set outlives the controller that was told so.
                    let kernel = self.reconciler.numbers.backends.get(&(id.service, id.backend));
                    let kernel = kernel.and_then(|number| self.reconciler.backend(*number));
                    ServerState {
                        check_key: self.next_key,
                        standing: Standing {
                            health: None,
                            drained: kernel.is_some_and(|backend| backend.has(Backend::DRAINED)),
                            set_weight: kernel.and_then(adopt::set_weight),
                            ..Standing::default()
                        },
                        health: None,
                        word: LastWord::default(),
                        channels: Vec::new(),
                        reachable: false,
                        held: false,
                        entry: match found.get(&id) {
                            Some(found) => *found,
                            None if kernel.is_some() => Entry::Known,
                            None => entry,
                        },
                        suspect_since: None,
                    }
                });
                state.channels.clone_from(&server.channels);
                match &service.check {
                    Some(check) => {
                        match &mut state.health {
                            Some(health) => health.set_thresholds(check.thresholds),
                            none => *none = Some(ServerHealth::new(check.thresholds, Instant::now())),
                        }
                        // A server that was up or down for an earlier controller is so until its first check.
                        if state.standing.health.is_none() {
                            let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
                            let down = number
                                .and_then(|number| self.reconciler.backend(*number))
                                .is_some_and(|backend| backend.has(Backend::DOWN));
                            state.standing.health = Some(if down { Health::Down } else { Health::Unknown });
                        }
                    }
                    None => {
                        state.health = None;
                        state.standing.health = None;
                    }
                }
                if service.agent.is_none() {
                    state.word = LastWord::default();
                }
                servers.insert(id, state);
            }
        }
        for gone in self.servers.values() {
            self.checker.remove_server(gone.check_key);
            self.keys.remove(&gone.check_key);
        }
        self.servers = servers;
        self.follow_channels();
        self.follow_probes();
        self.follow_responders();
        self.follow_targets();
    }

    /// Asks all servers what the configuration has; over the best channel where they have some.
    fn follow_probes(&mut self) {
        let config = &self.config;
        self.prober.begin(config);
        let all = || config.services.iter().flat_map(|service| service.servers.iter().map(move |it| (service, it)));
        let pairs = all().map(|(_, server)| server.channels.len() as u32).sum();
        for (service, server) in all() {
            let Some(state) = self.servers.get(&desire::server_id(service, server)) else { continue };
            let best = state.standing.slots.as_ref().and_then(channels::most);
            let via = best.map_or_else(Via::default, |position| probes::via(config, position, server.addr));
            let check = service.check.as_ref().and_then(|check| probes::check(service, server, check, &via));
            let mut wanted: Vec<(Part, CheckSpec)> = check
                .map(|spec| (Part::Check, spec))
                .into_iter()
                .chain(probes::besides(service, server, &via))
                .chain(probes::channels(config, service, server, pairs))
                .collect();
            let mut parts: Vec<Part> = Vec::with_capacity(wanted.len());
            wanted.retain(|(part, spec)| {
                let key = ProbeKey { server: state.check_key, part: *part };
                let mut through = || {
                    let source = probes::source(config, server, spec.target, &self.resolved);
                    let id = desire::server_id(service, server);
                    self.prober.want(key, spec, (id.service, id.backend), source)
                };
                let is_through_vip = probes::is_through_vip(service, *part);
                if !is_through_vip || through() {
                    parts.push(*part);
                }
                !is_through_vip
            });
            self.checker.keep(state.check_key, &parts);
            for (part, spec) in wanted {
                self.checker.set(ProbeKey { server: state.check_key, part }, spec);
            }
        }
        self.prober.end();
    }

    /// Brings the loops of channels to configuration and network.
    fn follow_channels(&mut self) {
        let now = Instant::now();
        let mut events = channels::Events::new();
        for service in &self.config.services {
            for server in &service.servers {
                let id = desire::server_id(service, server);
                let Some(state) = self.servers.get(&id) else { continue };
                let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
                let kernel = number.map_or([None; PATH_SLOTS], |number| self.reconciler.channels_of(*number));
                let key = |channel: u8| server.channels.get(usize::from(channel)).map(|it| ChannelKey(u16::from(*it)));
                let kernel = kernel.map(|channel| channel.and_then(key));
                let present = server.channels.iter().map(|position| {
                    let channel = &self.config.channels[usize::from(*position)];
                    let hop = self.resolved.hops.get(&desire::channel_way(channel, server.addr));
                    channels::Present {
                        key: ChannelKey(u16::from(*position)),
                        capacity: channel.capacity,
                        link_up: match hop {
                            Some(Ok(_)) => Some(true),
                            Some(Err(error)) if !error.pending => Some(false),
                            _ => None,
                        },
                    }
                });
                let present: Vec<channels::Present> = present.collect();
                let settings = &self.config.quality.channels;
                events.extend(self.channels.follow(state.check_key, &present, &kernel, settings, now));
            }
        }
        let keys = &self.keys;
        self.channels.retain(|server| keys.contains_key(&server));
        if !self.take_channel_events(&events) {
            self.note_reachable();
        }
    }

    fn note_reachable(&mut self) {
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            for (server, id) in service.servers.iter().zip(ids) {
                let Some(state) = self.servers.get_mut(id) else { continue };
                let reach = desire::reach(&self.config, service, server, &state.standing, &self.resolved);
                state.reachable = reach.trouble.is_none();
            }
        }
    }

    /// Takes over what the loops of channels say. True: the kernel must be told.
    fn take_channel_events(&mut self, events: &channels::Events) -> bool {
        if events.is_empty() {
            return false;
        }
        for state in self.servers.values_mut() {
            state.standing.slots = self.channels.slots(state.check_key);
            state.standing.cut_off = !self.channels.is_reachable(state.check_key);
        }
        self.note_reachable();
        for (server, event) in events {
            self.tell_channel_event(*server, event);
        }
        // Checks take the best channel.
        self.follow_probes();
        true
    }

    fn tell_channel_event(&self, server: u32, event: &ChannelEvent) {
        let server = self.keys.get(&server).and_then(|id| self.name_of(*id)).unwrap_or_default();
        let name = |key: &ChannelKey| self.config.channels.get(usize::from(key.0)).map_or("", |channel| &channel.name);
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

    fn follow_targets(&mut self) {
        let mut targets = Targets::default();
        let servers = self.config.services.iter().flat_map(|service| &service.servers);
        targets.ways.extend(servers.flat_map(|server| desire::ways(&self.config, server)));
        targets.ways.extend(self.leaving().values().flatten().map(|backend| Way::from(backend.addr)));
        targets.interfaces.extend(self.config.gateway.interfaces.iter().map(|interface| interface.name.clone()));
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }

    /// Servers that the configuration has no more, but that still have live flows, by service.
    fn leaving(&self) -> HashMap<u64, Vec<DesiredBackend>> {
        let mut leaving: HashMap<u64, Vec<DesiredBackend>> = HashMap::new();
        for service in &self.config.services {
            for part in desire::parts(service) {
                let identity = desire::service_identity(service, part);
                let Some(number) = self.reconciler.numbers.services.get(&identity) else {
                    continue;
                };
                for (id, backend) in self.reconciler.backends_of(*number) {
                    let server = ServerId { service: identity, backend: backend.identity };
                    if self.servers.contains_key(&server) || self.reconciler.active(id) == 0 {
                        continue;
                    }
                    let port = backend.port.get();
                    leaving.entry(identity).or_default().push(DesiredBackend {
                        identity: backend.identity,
                        addr: stats::address(backend),
                        port: (port != 0).then_some(port),
                        source: stats::source(backend),
                        flags: backend.flags & Backend::DOWN,
                        tier: 0,
                        ring: 0,
                        help: None,
                        load: 0,
                        nominal: 0,
                        set_weight: 0,
                        high_water: backend.high_water,
                        paths: self.reconciler.path(backend.paths[0]).copied().into_iter().collect(),
                    });
                }
            }
        }
        leaving
    }

    /// Makes the kernel say what is wanted now.
    pub fn apply(&mut self) {
        self.step_quality();
        self.write();
    }

    /// Every [`QUALITY_TICK`]: turns what was measured into weights.
    pub fn on_quality_tick(&mut self) {
        self.take_signals();
        for (id, state) in self.servers.iter().filter(|(_, state)| !state.channels.is_empty()) {
            let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
            let in_use = number.is_some_and(|number| self.reconciler.active(*number) > 0);
            self.channels.set_in_use(state.check_key, in_use);
        }
        let events = self.channels.step(Instant::now());
        let moved = self.take_channel_events(&events);
        let watched = self.look_at_load();
        if self.step_quality() || moved || watched {
            self.write();
        }
        self.step_standby();
    }

    /// Passes on what the packet path has seen of the quality of servers and channels.
    fn take_signals(&mut self) {
        let now = Instant::now();
        let maps = &self.reconciler.kernel().maps;
        for (source, seen) in self.signals.read(maps, self.reconciler.sources()) {
            let (service, backend) = source.server;
            let Some(state) = self.servers.get(&ServerId { service, backend }) else { continue };
            self.quality.passed(ServerKey(state.check_key), &seen, now);
            if let Some(channel) = state.channels.get(usize::from(source.channel)) {
                self.channels.passed(state.check_key, ChannelKey(u16::from(*channel)), &seen, now);
            }
        }
    }

    /// Decides how many flows are watched. Gives whether that has changed.
    fn look_at_load(&mut self) -> bool {
        let now = Instant::now();
        if !self.watching.is_due(now) {
            return false;
        }
        let maps = &self.reconciler.kernel().maps;
        let open = self.config.services.iter().filter(|service| service.passive == PassiveShare::Auto);
        let identities = open.flat_map(desire::identities);
        let mut active = HashMap::<u64, u64>::new();
        for ((service, _), backend) in &self.reconciler.numbers.backends {
            *active.entry(*service).or_default() += u64::from(self.reconciler.active(*backend));
        }
        let loads = identities.filter_map(|identity| {
            let number = self.reconciler.numbers.services.get(&identity)?;
            let packets = stats::forwarded(maps, *number).ok();
            Some(Load { identity, packets, active: active.get(&identity).copied().unwrap_or(0) })
        });
        self.watching.look(loads, self.reconciler.kernel().sizes.observed(), now)
    }

    fn step_quality(&mut self) -> bool {
        let mut present = Vec::with_capacity(self.servers.len());
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            for (server, id) in service.servers.iter().zip(ids) {
                let id = *id;
                let Some(state) = self.servers.get(&id) else { continue };
                let standing = &state.standing;
                let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
                present.push(Present {
                    key: ServerKey(state.check_key),
                    id,
                    tier: server.tier,
                    nominal: Nominal {
                        weight: if state.held { 0 } else { u32::from(desire::nominal_weight(server, standing)) },
                        high_water: server.high_water.map(|mark| mark.get()),
                    },
                    entry: state.entry,
                    up: !state.held && standing.health.is_none_or(Health::may_serve) && state.reachable,
                    active: number.map_or(0, |number| self.reconciler.active(*number)),
                    word: quality::word(state.word.word()),
                });
            }
        }
        let step = self.quality.step(&present, &self.constants, Instant::now());
        for state in self.servers.values_mut() {
            state.standing.given = self.quality.given(ServerKey(state.check_key));
            if matches!(state.entry, Entry::Adopted(_)) && state.standing.given.is_some() {
                // It is taken over; what was before says nothing if it changes its tier.
                state.entry = Entry::Known;
            }
        }
        for event in &step.events {
            self.tell_event(event);
        }
        for (service, event) in &step.tiers {
            self.tell_tier_event(*service, event);
        }
        step.changed
    }

    fn tell_tier_event(&self, service: u64, event: &TierEvent) {
        let is_it = |it: &&Service| desire::identities(it).any(|identity| identity == service);
        let service = self.config.services.iter().find(is_it).map_or("", |service| &service.name);
        match event {
            TierEvent::Begins { tier, cause: Some(cause) } => {
                tracing::info!(service, tier, why = %cause, "a tier helps the first");
            }
            TierEvent::Begins { tier, cause: None } => {
                tracing::info!(service, tier, "the first tier is back: this one helps until it has taken over");
            }
            TierEvent::Ends { tier } => tracing::info!(service, tier, "a tier helps no more"),
            TierEvent::First { tier, before } => {
                tracing::warn!(
                    service,
                    tier,
                    before,
                    "new flows go to another tier: it is the first with a server in order"
                );
            }
        }
    }

    fn tell_event(&self, event: &Event) {
        let name = |key: &ServerKey| self.keys.get(&key.0).and_then(|id| self.name_of(*id)).unwrap_or_default();
        match event {
            Event::Ejected { server, cause, .. } => {
                tracing::warn!(server = %name(server), %cause, "ejected");
            }
            Event::Returned { server } => tracing::info!(server = %name(server), "its ejection is over"),
            Event::PanicBegins => tracing::warn!("too few servers in good order: ejected ones serve again"),
            Event::PanicEnds => tracing::info!("enough servers in good order again"),
        }
    }

    fn write(&mut self) {
        let standings = self.servers.iter().map(|(id, state)| (*id, state.standing.clone())).collect();
        let mut desired =
            desire::desired(&self.config, self.seed, &standings, &self.resolved, &self.leaving(), &self.watching);
        self.keep_sources(&mut desired);
        (desired.prober, desired.probes) = self.prober.desired();
        if let Some(outer) = desired.prober {
            desire::add_responders(&self.config, outer, &mut desired.services);
        }
        let result = self.reconciler.apply(&desired);
        if result.is_ok() {
            // Not before the packet path knows where they go.
            self.prober.start(&mut self.checker);
        }
        self.note_apply(result);
        self.follow_queue();
    }

    /// A server without a way has no source of its own now, but its flows have one: what it sends once the way is back is a
    /// reply. Taken for the machine's own, it would be answered with a reset.
    fn keep_sources(&self, desired: &mut Desired) {
        for service in &mut desired.services {
            let identity = service.identity;
            for backend in service.backends.iter_mut().filter(|backend| backend.source.is_none()) {
                let number = self.reconciler.numbers.backends.get(&(identity, backend.identity));
                backend.source = number.and_then(|number| self.reconciler.backend(*number)).and_then(stats::source);
            }
        }
    }

    fn note_apply(&mut self, result: Result<(), ReconcileError>) {
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = &error
            && self.apply_error.as_ref() != Some(error)
        {
            tracing::error!(%error, "the kernel's maps are not up to date");
        }
        self.apply_error = error;
    }

    /// Says which servers' ways have changed, by name only as long as a person would read them.
    fn tell_changes(&self, resolved: &Resolved) {
        let (mut found, mut lost) = (0usize, 0usize);
        for (way, hop) in &resolved.hops {
            let address = way.target;
            let interface = way.via.as_ref().map(|via| via.interface.as_str());
            let before = self.resolved.hops.get(way);
            match (before, hop) {
                (Some(Ok(before)), Ok(now)) if before == now => {}
                (Some(Err(before)), Err(now)) if before == now => {}
                (_, Err(error)) if error.pending => {}
                (_, Ok(hop)) => {
                    found += 1;
                    if found <= TOLD_WAYS {
                        tracing::info!(server = %address, interface, ifindex = hop.ifindex, "way found");
                    }
                }
                (_, Err(error)) => {
                    lost += 1;
                    if lost <= TOLD_WAYS {
                        tracing::warn!(server = %address, interface, reason = %error.reason, "no way to the server");
                    }
                }
            }
        }
        if found > TOLD_WAYS {
            tracing::info!(servers = found - TOLD_WAYS, "ways found to more servers");
        }
        if lost > TOLD_WAYS {
            tracing::warn!(servers = lost - TOLD_WAYS, "no way to more servers; `loadbalancer backends` lists them");
        }
    }

    pub fn on_resolved(&mut self, resolved: Resolved) {
        self.tell_changes(&resolved);
        let mut resolved = resolved;
        for (way, hop) in &mut resolved.hops {
            // While an address is asked for again, what was known stays good.
            if matches!(hop, Err(error) if error.pending)
                && let Some(Ok(known)) = self.resolved.hops.get(way)
            {
                *hop = Ok(known.clone());
            }
        }
        self.resolved = resolved;
        self.follow_channels();
        if self.prober.is_open() {
            // What they come from is known with the way.
            self.follow_probes();
        }
        self.apply();
    }

    /// Takes the result of a probe. True if the kernel must be told.
    pub fn on_report(&mut self, report: Report) -> bool {
        if !self.checker.is_current(&report) {
            return false;
        }
        let Some(id) = self.keys.get(&report.key.server).copied() else {
            return false;
        };
        match report.key.part {
            // Lost on a channel on which probes are lost as well: that says nothing of the server.
            Part::Check | Part::Monitor(_) if report.result.is_err() && self.channels.is_suspect(report.key.server) => {
                false
            }
            Part::Check => {
                self.measure(Kind::Check, &report);
                self.on_check(id, report)
            }
            Part::Monitor(position) => {
                self.measure(Kind::Monitor(position), &report);
                false
            }
            Part::Agent => self.on_word(id, report),
            Part::Channel(position) => {
                let result = report.result.as_ref().map(|answer| answer.latency);
                let key = ChannelKey(u16::from(position));
                let events = self.channels.probe(report.key.server, key, result, report.at);
                self.take_channel_events(&events)
            }
        }
    }

    fn measure(&mut self, kind: Kind, report: &Report) {
        let result = report.result.as_ref().map(|answer| answer.latency);
        self.quality.sample(ServerKey(report.key.server), kind, result, report.at);
    }

    fn on_check(&mut self, id: ServerId, report: Report) -> bool {
        let Some(state) = self.servers.get_mut(&id) else {
            return false;
        };
        let Some(health) = &mut state.health else {
            return false;
        };
        let failure = report.result.as_ref().err().map(ToString::to_string);
        let transition = health.observe(report.result.map(|answer| answer.latency), report.at);
        let now = health.health();
        if let Some(transition) = transition {
            let name = self.name_of(id).unwrap_or_default();
            let (from, to) = (transition.from.label(), transition.to.label());
            match failure {
                Some(reason) => tracing::warn!(server = %name, from, to, %reason, "health changed"),
                None => tracing::info!(server = %name, from, to, "health changed"),
            }
        }
        let Some(state) = self.servers.get_mut(&id) else {
            return false;
        };
        // What an earlier controller knew stands until this one knows better.
        if now == Health::Unknown || state.standing.health == Some(now) {
            return false;
        }
        if now == Health::Down || state.standing.health == Some(Health::Down) {
            state.suspect_since = Some(census::now());
        }
        state.standing.health = Some(now);
        true
    }

    fn on_word(&mut self, id: ServerId, report: Report) -> bool {
        let Some(state) = self.servers.get_mut(&id) else {
            return false;
        };
        let before = quality::word(state.word.word());
        let failed = state.word.last_failure().is_some();
        let said = report.result.map(|Answer { word, .. }| word.map_or_else(Default::default, |word| *word));
        let first_failure = said.as_ref().err().filter(|_| !failed).cloned();
        state.word.observe(said, report.at);
        let now = quality::word(state.word.word());
        if now == before && first_failure.is_none() {
            return false;
        }
        let name = self.name_of(id).unwrap_or_default();
        if let Some(error) = first_failure {
            tracing::warn!(server = %name, %error, "its agent could not be asked; what it said before stays");
        }
        if now.state != before.state || now.weight_percent != before.weight_percent {
            tracing::info!(server = %name, state = ?now.state, percent = now.weight_percent, "its agent says");
        }
        now != before
    }

    fn name_of(&self, id: ServerId) -> Option<String> {
        self.config.services.iter().zip(&self.ids).find_map(|(service, ids)| {
            let server = &service.servers[ids.iter().position(|candidate| *candidate == id)?];
            Some(format!("{}/{}", service.name, server.name))
        })
    }

    /// Whether the kernel has servers that are in no configuration any more.
    fn has_orphans(&self) -> bool {
        let known = |(service, backend): &(u64, u64)| ServerId { service: *service, backend: *backend };
        let mut servers = self.reconciler.numbers.backends.keys().filter(|(_, it)| *it != desire::responder_identity());
        servers.any(|key| !self.servers.contains_key(&known(key)))
    }

    /// Once a second: counts flows, corrects the packet path's counters, and sets the marks that follow from them.
    pub fn on_tick(&mut self) -> Result<(), ReconcileError> {
        let now = Instant::now();
        self.count(now)?;
        self.sweep_half_open()?;
        self.mark_hot()?;
        if now >= self.compare_due {
            self.compare_due = now + COMPARE;
            let differences = self.reconciler.compare()?;
            if differences > 0 {
                self.repairs += differences as u64;
                tracing::warn!(differences, "the kernel's maps were changed by someone else; they are mended");
                self.apply();
            }
        }
        if self.has_orphans() || self.apply_error.is_some() {
            self.follow_targets();
            self.apply();
        }
        Ok(())
    }

    pub async fn handle(&mut self, request: Request) {
        // Whoever asked may have gone meanwhile; then nobody misses the answer.
        match request {
            Request::Snapshot(reply) => match self.snapshot() {
                Ok(snapshot) => drop(reply.send(snapshot)),
                Err(error) => tracing::error!(%error, "cannot read the counters"),
            },
            Request::Quality(reply) => drop(reply.send(self.quality_report())),
            Request::Channels(reply) => drop(reply.send(self.channels_report())),
            Request::Standby(reply) => drop(reply.send(self.standby.report(now_ms(), Instant::now()))),
            Request::Queue(reply) => self.queue.report(reply),
            Request::Change(server, change, reply) => drop(reply.send(self.change(&server, &change))),
            Request::Reload(reply) => drop(reply.send(self.reload())),
        }
    }

    /// VIPs of all services.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        let vips: std::collections::BTreeSet<IpAddr> =
            self.config.services.iter().flat_map(|service| &service.listen).map(|listen| listen.addr).collect();
        vips.into_iter()
    }
}
