//! Tells others how things are.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::dispatch::Controller;
use super::status::{
    BackendStatus, ChannelsStatus, ControllerStatus, GatewayStatus, GroupStatus, InterfaceStatus, Named, Outcomes,
    QualityStatus, QueueSummary, ServerChannelsStatus, ServerQualityStatus, ServerState, ServiceStatus, TablesStatus,
    add_outcomes, now_ms,
};
use super::{quality, registry};
use crate::config::Service;
use crate::dataplane::ids::ServiceNumber;
use crate::dataplane::reconcile::ReconcileError;
use crate::dataplane::stats;
use decide::plan::reachability::reachability;
use decide::plan::status::ServerStatus;
use decide::plan::topology::{Server, Topology};
use decide::quality::explain::{GroupReport, ServerReport};
use decide::quality::signal::ChannelKey;
use decide::queue::report::{End, QueueReport, ServiceReport};
use model::health::Health;
use model::ids::ServerId;
use model::ids::{BackendId, ServiceId};

/// A server, and its weights in the rings of which tiers.
struct InRings {
    service: ServiceId,
    weights: [(u8, u32); 2],
    server: BackendStatus,
}

impl Controller {
    /// How the gateway is, but for its queues: see [`add_queues`].
    ///
    /// # Errors
    /// The packet path's counters cannot be read.
    pub(super) fn gateway_status(&self) -> Result<GatewayStatus, ReconcileError> {
        let plane = &self.shared.plane;
        let kernel = stats::read(plane.maps())?;
        let mut services: Vec<ServiceStatus> = Vec::new();
        for service in &self.config().services {
            let mut outcomes = Outcomes::new();
            for family in service.families() {
                let number = plane.service_number(service.id(family));
                if let Some(found) = number.and_then(|number| kernel.services.get(&number)) {
                    add_outcomes(&mut outcomes, &found.outcomes);
                }
            }
            let mut servers = self.configured_servers(service, &kernel);
            servers.extend(self.leaving_servers(service, &kernel));
            services.push(ServiceStatus {
                name: service.name.clone(),
                mode: service.mode.label(),
                listen: service.listen.clone(),
                outcomes,
                servers,
                queue: None,
            });
        }
        let mut unserved = Outcomes::new();
        if let Some(none) = kernel.services.get(&ServiceNumber(0)) {
            add_outcomes(&mut unserved, &none.outcomes);
        }
        Ok(GatewayStatus {
            taken_ms: now_ms(),
            controller: Some(self.controller_status()),
            services,
            unserved,
            tables: TablesStatus {
                affinity_entries: self.counts.census.affinity_entries(),
                affinity_capacity: plane.maps().affinity.words().len() as u64,
                nat_flows: self.counts.census.nat_flows(),
                nat_capacity: u64::from(self.config().limits.nat_flows),
            },
        })
    }

    pub(super) fn channels_status(&self) -> ChannelsStatus {
        let now = Instant::now();
        let name = |key: ChannelKey| {
            self.config().channels.get(usize::from(key.0)).map_or_else(String::new, |channel| channel.name.clone())
        };
        let mut servers = Vec::new();
        for service in &self.config().services {
            for server in &service.servers {
                let Some(report) = self.paths.loops.explain(service.server_id(server), now) else { continue };
                let channels = report.channels.into_iter();
                servers.push(ServerChannelsStatus {
                    service: service.name.clone(),
                    server: server.name.clone(),
                    reachable: report.reachable,
                    slots: report.slots.iter().map(|slot| slot.map(name)).collect(),
                    channels: channels.map(|report| Named { name: name(report.channel), report }).collect(),
                });
            }
        }
        ChannelsStatus { taken_ms: now_ms(), uptime: self.paths.loops.clock(now), servers }
    }

    pub(super) fn quality_status(&self) -> QualityStatus {
        let now = Instant::now();
        let reports: HashMap<quality::GroupKey, GroupReport> = self.weights.quality.explain(now).collect();
        let mut groups = Vec::new();
        let mut number = 0;
        for (service, servers) in self.shared.registry.by_service() {
            let mut members: BTreeMap<quality::GroupKey, Vec<(u32, &String, ServerId)>> = BTreeMap::new();
            let mut keys: Vec<quality::GroupKey> = Vec::new();
            for (server, id) in servers {
                number += 1;
                let key = (id.service, server.tier);
                if !keys.contains(&key) {
                    keys.push(key);
                }
                members.entry(key).or_default().push((number, &server.name, id));
            }
            keys.sort_by_key(|(_, tier)| *tier);
            for key in keys {
                let Some(report) = reports.get(&key) else { continue };
                let of_server: HashMap<ServerId, &ServerReport> =
                    report.servers.iter().map(|report| (report.server, report)).collect();
                let servers = members[&key].iter().filter_map(|(number, name, id)| {
                    let report = (*of_server.get(id)?).clone();
                    Some(ServerQualityStatus { name: name.to_string(), number: *number, report })
                });
                groups.push(GroupStatus {
                    service: service.name.clone(),
                    tier: key.1,
                    panic: report.panic,
                    published_at_s: report.published_at_s,
                    flows_per_sample: self.weights.sampling.flows_per_sample(service.passive, key.0),
                    help: self.weights.quality.explain_tier(key),
                    servers: servers.collect(),
                });
            }
        }
        let rings = self.weights.quality.rings;
        QualityStatus { taken_ms: now_ms(), uptime: self.started.elapsed(), rings, groups }
    }

    fn configured_servers(&self, service: &Service, kernel: &stats::KernelStats) -> Vec<BackendStatus> {
        let topology = self.config().topology();
        let servers = service.servers.iter().map(|server| self.configured_server(&topology, service, server, kernel));
        let mut servers: Vec<InRings> = servers.collect();
        let mut tier_weights: BTreeMap<(ServiceId, u8), u64> = BTreeMap::new();
        for it in &servers {
            for (tier, weight) in it.weights {
                *tier_weights.entry((it.service, tier)).or_default() += u64::from(weight);
            }
        }
        for it in &mut servers {
            let mut with_weight = tier_weights.iter().filter(|((of, _), total)| *of == it.service && **total > 0);
            let Some(((_, first), total)) = with_weight.next() else { continue };
            let weights = it.weights.iter().filter(|(tier, _)| tier == first).map(|(_, weight)| f64::from(*weight));
            it.server.share = weights.sum::<f64>() / *total as f64;
        }
        servers.into_iter().map(|it| it.server).collect()
    }

    fn configured_server(
        &self,
        topology: &Topology<'_>,
        service: &Service,
        server: &Server,
        kernel: &stats::KernelStats,
    ) -> InRings {
        let id = service.server_id(server);
        let unknown = ServerStatus::default();
        let known = self.shared.registry.server(id);
        let status = known.map_or(&unknown, |known| &known.status);
        let trouble = reachability(topology, &service.for_plan(), server, status, &self.shared.resolved).trouble;
        let serves = status.serves(server, trouble.is_none());
        let weight = if serves { status.ring_weight(server, trouble.is_none()) } else { 0 };
        let help = status.decision.and_then(|decision| decision.help).filter(|_| serves);
        let helped = help.map_or((server.tier, 0), |help| (help.tier, help.weight));
        let found = self.shared.plane.number(id).and_then(|number| kernel.backends.get(&number));
        let health = known.and_then(|known| known.health.as_ref());
        let (state, reason) = state_of(server, status, known, trouble);
        InRings {
            service: id.service,
            weights: [(server.tier, weight), helped],
            server: BackendStatus {
                name: server.name.clone(),
                address: server.addr,
                port: server.port,
                tier: server.tier,
                state,
                reason,
                weight: u32::from(status.set_weight.unwrap_or(server.weight)),
                share: 0.0,
                active: found.map_or(0, |found| found.active),
                high_water: match found.map(|found| found.backend.high_water) {
                    Some(u32::MAX) => None,
                    Some(mark) => Some(mark),
                    None => server.high_water.map(|mark| mark.get()),
                },
                hot_mark: found.map(|found| found.backend.hot_mark).filter(|mark| *mark != u32::MAX),
                check_latency: health.and_then(|health| health.last_latency()),
                in_state_for: health.map(|health| health.since().elapsed()),
                counters: found.map(|found| found.counters).unwrap_or_default(),
            },
        }
    }

    /// Servers that the configuration does not have any more, but the kernel does.
    fn leaving_servers(&self, service: &Service, kernel: &stats::KernelStats) -> Vec<BackendStatus> {
        let mut servers = Vec::new();
        for family in service.families() {
            let identity = service.id(family);
            let Some(number) = self.shared.plane.service_number(identity) else { continue };
            for (id, backend) in self.shared.plane.reconciler.backends_of(number) {
                let server = ServerId { service: identity, backend: BackendId(backend.identity) };
                if self.shared.registry.server(server).is_some() {
                    continue;
                }
                let Some(found) = kernel.backends.get(&id) else { continue };
                servers.push(BackendStatus {
                    name: stats::address(backend).to_string(),
                    reason: Some("it is no longer in the configuration; its live flows go on".to_owned()),
                    weight: 0,
                    high_water: None,
                    hot_mark: None,
                    ..BackendStatus::of(found, ServerState::Leaving)
                });
            }
        }
        servers
    }

    fn controller_status(&self) -> ControllerStatus {
        let interfaces = self.config().gateway.interfaces.iter().map(|interface| {
            let name = &interface.name;
            let attached = self.interfaces.state(name).map(Result::as_ref);
            InterfaceStatus {
                name: name.clone(),
                mode: attached.and_then(Result::ok).map(|attached| attached.mode),
                problem: attached.and_then(Result::err).cloned().or_else(|| {
                    if !self.shared.resolved.interfaces.contains_key(name) {
                        return Some("it does not exist; it is attached to when it is there again".to_owned());
                    }
                    let is_down = self.shared.resolved.down.contains(name);
                    is_down.then(|| {
                        format!("it is down, or has no carrier; `ip link set {name} up`, or see to its other end")
                    })
                }),
            }
        });
        ControllerStatus {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime: self.started.elapsed(),
            config: self.shared.registry.path().to_owned(),
            adopted: self.shared.plane.reconciler.kernel().adopted,
            interfaces: interfaces.collect(),
            reload_error: self.reload_error.clone(),
            warnings: self.shared.plane.error.iter().chain(self.prober_error()).cloned().collect(),
            map_writes: self.shared.plane.reconciler.writes(),
            repairs: self.shared.plane.repairs,
        }
    }
}

/// What a server does, and why it does nothing.
fn state_of(
    server: &Server,
    status: &ServerStatus,
    known: Option<&registry::ServerState>,
    trouble: Option<String>,
) -> (ServerState, Option<String>) {
    let failure = || known.and_then(|known| known.health.as_ref()?.last_failure()).map(|it| it.error.to_string());
    let is_ejected = status.decision.is_some_and(|decision| !decision.serves) && server.weight > 0;
    match (status.health, trouble) {
        (Some(Health::Down), _) => (ServerState::Down, failure()),
        (_, Some(reason)) => (ServerState::Unreachable, Some(reason)),
        _ if status.drained => (ServerState::Drained, None),
        _ if is_ejected => (ServerState::Ejected, None),
        (None, _) => (ServerState::Unchecked, None),
        (Some(Health::Unknown), _) => (ServerState::Unknown, None),
        (Some(Health::Up), _) => (ServerState::Up, None),
    }
}

/// Adds what waits to what is told of services.
pub(super) fn add_queues(status: &mut GatewayStatus, report: &QueueReport) {
    for service in &mut status.services {
        service.queue = report.services.iter().find(|queue| queue.name == service.name).map(queue_in_short);
    }
}

fn queue_in_short(report: &ServiceReport) -> QueueSummary {
    let released = report.ended(End::Released);
    let all: u64 = End::ALL.iter().map(|end| report.ended(*end)).sum();
    QueueSummary {
        waiting: report.waiting,
        oldest_s: report.classes.iter().filter_map(|class| class.oldest_s).reduce(f64::max),
        released,
        not_released: all - released,
    }
}
