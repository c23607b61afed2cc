//! Metrics of what was measured, and of what followed from it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Ratio, Told};
use crate::control::channels::NamedChannel;
use crate::quality::channel::explain::State;
use crate::quality::explain::{ServerReport, SignalReport};
use crate::quality::standby::explain::Phase;
use crate::quality::tiers::explain::TierReport;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServerLabels {
    service: String,
    server: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SignalLabels {
    service: String,
    server: String,
    signal: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChannelLabels {
    service: String,
    server: String,
    channel: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StandbyLabels {
    server: String,
    state: &'static str,
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TierLabels {
    service: String,
    tier: u8,
}

pub(super) fn register(registry: &mut Registry, told: &Told) {
    let rings = Counter::<u64>::default();
    rings.inc_by(told.quality.rings);
    registry.register("rings", "Rings published because weights changed", rings);
    of_servers(registry, told);
    of_tiers(registry, told);
    of_signals(registry, told);
    of_channels(registry, told);
    let standby = Family::<StandbyLabels, Gauge>::default();
    registry.register("standby_server", "Standby servers by state, and the service that has them", standby.clone());
    for server in &told.standby.servers {
        let service = server.leased_to.clone().unwrap_or_default();
        let labels = StandbyLabels { server: server.name.clone(), state: phase(server.report.state), service };
        standby.get_or_create(&labels).set(1);
    }
}

const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Starting => "starting",
        Phase::Checking => "checking",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Stopping => "stopping",
        Phase::Failed => "failed",
    }
}

fn of_servers(registry: &mut Registry, told: &Told) {
    type Read = fn(&ServerReport) -> Option<f64>;
    let all: [(&str, &str, Read); 6] = [
        ("server_weight_factor", "What measured quality makes of a server's weight", |it| Some(it.factor)),
        ("server_score_ratio", "Latency over that of the server in the middle, with failures counted in", |it| {
            it.badness
        }),
        ("server_slow_start_ratio", "Part of its weight that slow start gives a server", |it| Some(it.slow_start)),
        ("server_ejected", "Whether a server is ejected", |it| Some(f64::from(u8::from(it.ejection.is_some())))),
        ("server_mark", "Flows that a server may have at once, as its latency has it", |it| {
            it.mark.map(|mark| f64::from(mark.flows))
        }),
        ("server_baseline_seconds", "Mean latency of a server with few flows", |it| {
            it.mark.and_then(|mark| mark.baseline_s)
        }),
    ];
    for (name, help, read) in all {
        let family = Family::<ServerLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for service in &told.quality.services {
            for server in &service.servers {
                if let Some(value) = read(&server.report) {
                    let labels = ServerLabels { service: service.service.clone(), server: server.name.clone() };
                    family.get_or_create(&labels).set(value);
                }
            }
        }
    }
}

fn of_tiers(registry: &mut Registry, told: &Told) {
    type Read = fn(&TierReport) -> f64;
    let all: [(&str, &str, Read); 2] = [
        ("tier_help_ratio", "Part of its weight with which a tier is in the ring of the first", |it| it.of_weight),
        ("tier_share_ratio", "Part of a service's new flows that are to go to a tier", |it| it.share),
    ];
    for (name, help, read) in all {
        let family = Family::<TierLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for service in &told.quality.services {
            if let Some(report) = &service.help {
                let labels = TierLabels { service: service.service.clone(), tier: service.tier };
                family.get_or_create(&labels).set(read(report));
            }
        }
    }
}

fn of_signals(registry: &mut Registry, told: &Told) {
    type Read = fn(&SignalReport) -> Option<f64>;
    let all: [(&str, &str, Read); 4] = [
        ("server_signal_mean_seconds", "Mean latency of a signal in the last seconds", |it| it.mean_s),
        ("server_signal_p90_seconds", "90th percentile of its latency", |it| it.p90_s),
        ("server_signal_loss_ratio", "Part of it that was lost", |it| Some(it.loss)),
        ("server_signal_error_ratio", "Part of it that was refused", |it| Some(it.errors)),
    ];
    for (name, help, read) in all {
        let family = Family::<SignalLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for service in &told.quality.services {
            for server in &service.servers {
                for signal in &server.report.signals {
                    let Some(value) = read(signal) else { continue };
                    let labels = SignalLabels {
                        service: service.service.clone(),
                        server: server.name.clone(),
                        signal: signal.kind.to_string(),
                    };
                    family.get_or_create(&labels).set(value);
                }
            }
        }
    }
}

fn of_channels(registry: &mut Registry, told: &Told) {
    type Read = fn(&NamedChannel) -> Option<f64>;
    let is_dead = |channel: &NamedChannel| matches!(channel.report.state, State::Dead { .. });
    let all: [(&str, &str, Read); 5] = [
        ("channel_up", "Whether a channel of a server is not dead", |it| {
            Some(f64::from(u8::from(!matches!(it.report.state, State::Dead { .. }))))
        }),
        ("channel_rtt_seconds", "Smoothed round-trip time", |it| it.report.srtt.map(|time| time.as_secs_f64())),
        ("channel_loss_ratio", "Part of probes and traffic that was lost", |it| Some(it.report.loss)),
        ("channel_score_seconds", "Score of a channel: less is better", |it| {
            it.report.score.map(|time| time.as_secs_f64())
        }),
        ("channel_slots", "Path slots of 8 that a channel has", |it| Some(it.report.slots as f64)),
    ];
    for (name, help, read) in all {
        let family = Family::<ChannelLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for server in &told.channels.servers {
            for channel in &server.channels {
                // What a dead channel was like says nothing.
                let Some(value) = read(channel).filter(|_| !is_dead(channel) || name == "channel_up") else { continue };
                let labels = ChannelLabels {
                    service: server.service.clone(),
                    server: server.server.clone(),
                    channel: channel.name.clone(),
                };
                family.get_or_create(&labels).set(value);
            }
        }
    }
}
