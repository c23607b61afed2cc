//! What others are told.

use std::collections::{BTreeMap, HashMap};
use std::time::{Instant, SystemTime};

use loadbalancer_common::outcome::Outcome;

use super::super::desire::{self, ServerId, Standing};
use super::super::snapshot::{self, Snapshot};
use super::super::{channels, quality};
use super::Controller;
use crate::config::Service;
use crate::dataplane::reconcile::ReconcileError;
use crate::dataplane::stats;
use crate::health::Health;
use crate::quality::channel::explain::ChannelReport;
use crate::quality::explain::GroupReport;
use crate::quality::signal::ChannelKey;
use crate::queue::report::{End, ServiceReport};

impl Controller {
    pub fn snapshot(&self) -> Result<Snapshot, ReconcileError> {
        let kernel = stats::read(&self.reconciler.kernel().maps)?;
        let queues = self.queue.report_now();
        let mut services: Vec<snapshot::Service> = Vec::new();
        for service in &self.config.services {
            let mut shown = snapshot::Service {
                name: service.name.clone(),
                mode: service.mode.label().to_owned(),
                listen: service.listen.iter().map(ToString::to_string).collect(),
                ..snapshot::Service::default()
            };
            for part in desire::parts(service) {
                let identity = desire::service_identity(service, part);
                let number = self.reconciler.numbers.services.get(&identity);
                if let Some(found) = number.and_then(|number| kernel.services.get(number)) {
                    add_outcomes(&mut shown.outcomes, &found.outcomes);
                }
            }
            shown.servers = self.server_snapshots(service, &kernel);
            shown.queue = queues.services.iter().find(|queue| queue.name == service.name).map(queue_in_short);
            services.push(shown);
        }
        let mut unserved = BTreeMap::new();
        if let Some(none) = kernel.services.get(&0) {
            add_outcomes(&mut unserved, &none.outcomes);
        }
        Ok(Snapshot {
            taken_ms: now_ms(),
            controller: Some(self.controller_snapshot()),
            services,
            unserved,
            tables: snapshot::Tables {
                affinity_entries: self.census.affinity[1..].iter().sum(),
                affinity_capacity: self.reconciler.kernel().maps.affinity.words().len() as u64,
                nat_flows: self.nat_census.nat.iter().sum(),
                nat_capacity: u64::from(self.config.limits.nat_flows),
            },
        })
    }

    pub(super) fn channels_report(&self) -> channels::Report {
        let now = Instant::now();
        let name = |key: ChannelKey| {
            self.config.channels.get(usize::from(key.0)).map_or_else(String::new, |channel| channel.name.clone())
        };
        let mut servers = Vec::new();
        for service in &self.config.services {
            for server in &service.servers {
                let state = self.servers.get(&desire::server_id(service, server));
                let report = state.and_then(|state| self.channels.explain(state.check_key, now));
                let Some(report) = report else { continue };
                let named = |report: ChannelReport| channels::NamedChannel { name: name(report.channel), report };
                servers.push(channels::ServerReport {
                    service: service.name.clone(),
                    server: server.name.clone(),
                    reachable: report.reachable,
                    slots: report.slots.iter().map(|slot| slot.map(name)).collect(),
                    channels: report.channels.into_iter().map(named).collect(),
                });
            }
        }
        channels::Report { taken_ms: now_ms(), uptime_s: self.channels.clock(now).as_secs_f64(), servers }
    }

    pub(super) fn quality_report(&self) -> quality::Report {
        let now = Instant::now();
        let reports: HashMap<quality::GroupKey, GroupReport> = self.quality.explain(now).collect();
        let mut services = Vec::new();
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let names: HashMap<ServerId, &String> =
                ids.iter().copied().zip(service.servers.iter().map(|server| &server.name)).collect();
            let mut keys: Vec<quality::GroupKey> = Vec::new();
            for (server, id) in service.servers.iter().zip(ids) {
                let key = (id.service, server.tier);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            keys.sort_by_key(|(_, tier)| *tier);
            for key in keys {
                let Some(report) = reports.get(&key) else { continue };
                let servers = report.servers.iter().filter_map(|server| {
                    let name = names.get(self.keys.get(&server.server.0)?)?.to_string();
                    Some(quality::NamedServer { name, report: server.clone() })
                });
                services.push(quality::ServiceReport {
                    service: service.name.clone(),
                    tier: key.1,
                    panic: report.panic,
                    published_at_s: report.published_at_s,
                    flows_per_sample: self.watching.flows_per_sample(service.passive, key.0),
                    help: self.quality.explain_tier(key),
                    servers: servers.collect(),
                });
            }
        }
        quality::Report {
            taken_ms: now_ms(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            rings: self.quality.rings,
            services,
        }
    }

    fn server_snapshots(&self, service: &Service, kernel: &stats::KernelStats) -> Vec<snapshot::Server> {
        let mut tier_weights: HashMap<(u64, u8), u64> = HashMap::new();
        let mut servers = Vec::new();
        for server in &service.servers {
            let id = desire::server_id(service, server);
            let unknown = Standing::default();
            let state = self.servers.get(&id);
            let standing = state.map_or(&unknown, |state| &state.standing);
            let trouble = desire::reach(&self.config, service, server, standing, &self.resolved).trouble;
            let serves = desire::serves(server, standing, trouble.is_none());
            let effective = if serves { desire::ring_weight(server, standing, trouble.is_none()) } else { 0 };
            let help = standing.given.and_then(|given| given.help).filter(|_| serves);
            let helped = help.map_or((server.tier, 0), |help| (help.tier, help.weight));
            let in_rings = [(server.tier, effective), helped];
            for (tier, weight) in in_rings {
                *tier_weights.entry((id.service, tier)).or_default() += u64::from(weight);
            }
            let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
            let found = number.and_then(|number| kernel.backends.get(number));
            let counters = found.map(|found| found.counters).unwrap_or_default();
            let health = state.and_then(|state| state.health.as_ref());
            let (label, reason) = match (&trouble, standing) {
                (_, Standing { health: Some(Health::Down), .. }) => {
                    ("down", health.and_then(|health| health.last_failure()).map(|failure| failure.error.to_string()))
                }
                (Some(reason), _) => ("unreachable", Some(reason.clone())),
                (_, Standing { drained: true, .. }) => ("drained", None),
                (_, Standing { given: Some(given), .. }) if !given.serves && server.weight > 0 => ("ejected", None),
                (_, Standing { health: None, .. }) => ("unchecked", None),
                (_, Standing { health: Some(health), .. }) => (health.label(), None),
            };
            servers.push((
                (id.service, in_rings),
                snapshot::Server {
                    name: server.name.clone(),
                    address: server.addr.to_string(),
                    port: server.port,
                    tier: server.tier,
                    state: label.to_owned(),
                    reason,
                    weight: u32::from(standing.set_weight.unwrap_or(server.weight)),
                    share: 0.0,
                    active: found.map_or(0, |found| found.active),
                    high_water: match found.map(|found| found.backend.high_water) {
                        Some(u32::MAX) => None,
                        Some(mark) => Some(mark),
                        None => server.high_water.map(|mark| mark.get()),
                    },
                    hot_mark: found.map(|found| found.backend.hot_mark).filter(|mark| *mark != u32::MAX),
                    check_latency_us: health
                        .and_then(|health| health.last_latency())
                        .map(|latency| latency.as_micros() as u64),
                    state_seconds: health.map(|health| health.since().elapsed().as_secs()),
                    packets: counters.packets,
                    bytes: counters.bytes,
                    flows: counters.flows,
                    reply_packets: counters.reply_packets,
                    reply_bytes: counters.reply_bytes,
                },
            ));
        }
        for ((service, in_rings), shown) in &mut servers {
            let of_service = tier_weights.iter().filter(|((of, _), total)| of == service && **total > 0);
            let Some(((_, first), total)) = of_service.min_by_key(|((_, tier), _)| *tier) else { continue };
            let weights = in_rings.iter().filter(|(tier, _)| tier == first).map(|(_, weight)| f64::from(*weight));
            shown.share = weights.sum::<f64>() / *total as f64;
        }
        let mut servers: Vec<snapshot::Server> = servers.into_iter().map(|(_, shown)| shown).collect();
        for part in desire::parts(service) {
            let identity = desire::service_identity(service, part);
            let Some(number) = self.reconciler.numbers.services.get(&identity) else {
                continue;
            };
            for (id, backend) in self.reconciler.backends_of(*number) {
                if self.servers.contains_key(&ServerId { service: identity, backend: backend.identity }) {
                    continue;
                }
                let Some(found) = kernel.backends.get(&id) else {
                    continue;
                };
                servers.push(snapshot::Server {
                    name: stats::address(backend).to_string(),
                    address: stats::address(backend).to_string(),
                    port: (backend.port.get() != 0).then(|| backend.port.get()),
                    state: "leaving".to_owned(),
                    reason: Some("it is no longer in the configuration; its live flows go on".to_owned()),
                    active: found.active,
                    packets: found.counters.packets,
                    bytes: found.counters.bytes,
                    flows: found.counters.flows,
                    reply_packets: found.counters.reply_packets,
                    reply_bytes: found.counters.reply_bytes,
                    ..snapshot::Server::default()
                });
            }
        }
        servers
    }

    fn controller_snapshot(&self) -> snapshot::Controller {
        let interfaces = self.config.gateway.interfaces.iter().map(|interface| {
            let attached = self.attached.get(&interface.name);
            snapshot::Interface {
                name: interface.name.clone(),
                mode: attached
                    .and_then(|attached| attached.as_ref().ok())
                    .map(|attached| attached.mode.label().to_owned()),
                problem: attached.and_then(|attached| attached.as_ref().err()).cloned().or_else(|| {
                    let name = &interface.name;
                    if !self.resolved.interfaces.contains_key(name) {
                        return Some("it does not exist; it is attached to when it is there again".to_owned());
                    }
                    let is_down = self.resolved.down.contains(name);
                    is_down.then(|| {
                        format!("it is down, or has no carrier; `ip link set {name} up`, or see to its other end")
                    })
                }),
            }
        });
        snapshot::Controller {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.config_path.display().to_string(),
            adopted: self.reconciler.kernel().adopted,
            interfaces: interfaces.collect(),
            reload_error: self.reload_error.clone(),
            warnings: self.apply_error.iter().chain(self.prober.error()).cloned().collect(),
            map_writes: self.reconciler.writes,
            repairs: self.repairs,
        }
    }
}

pub(crate) fn add_outcomes(to: &mut BTreeMap<String, u64>, counters: &[u64]) {
    for outcome in Outcome::ALL {
        *to.entry(outcome.label().to_owned()).or_default() += counters[*outcome as usize];
    }
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn queue_in_short(report: &ServiceReport) -> snapshot::Queue {
    let released = report.ended(End::Released);
    let all: u64 = End::ALL.iter().map(|end| report.ended(*end)).sum();
    snapshot::Queue {
        waiting: report.waiting,
        oldest_s: report.classes.iter().filter_map(|class| class.oldest_s).reduce(f64::max),
        released,
        not_released: all - released,
    }
}
