//! Metrics of what was measured, and of what followed from it.

use decide::quality::explain::{ServerReport, SignalReport};
use decide::tiers::explain::TierReport;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::family;
use crate::controller::status::QualityStatus;

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
struct TierLabels {
    service: String,
    tier: u8,
}

pub(super) fn register(registry: &mut Registry, quality: &QualityStatus) {
    let rings = Counter::<u64>::default();
    rings.inc_by(quality.rings);
    registry.register("rings", "Rings published because weights changed", rings);
    of_servers(registry, quality);
    of_tiers(registry, quality);
    of_signals(registry, quality);
}

fn of_servers(registry: &mut Registry, quality: &QualityStatus) {
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
        let series = quality.groups.iter().flat_map(|group| {
            group.servers.iter().map(move |server| {
                let labels = ServerLabels { service: group.service.clone(), server: server.name.clone() };
                (labels, read(&server.report))
            })
        });
        family::gauges(registry, name, help, series);
    }
}

fn of_tiers(registry: &mut Registry, quality: &QualityStatus) {
    type Read = fn(&TierReport) -> f64;
    let all: [(&str, &str, Read); 2] = [
        ("tier_help_ratio", "Part of its weight with which a tier is in the ring of the first", |it| it.of_weight),
        ("tier_share_ratio", "Part of a service's new flows that are to go to a tier", |it| it.share),
    ];
    for (name, help, read) in all {
        let series = quality.groups.iter().map(|group| {
            let labels = TierLabels { service: group.service.clone(), tier: group.tier };
            (labels, group.help.as_ref().map(read))
        });
        family::gauges(registry, name, help, series);
    }
}

fn of_signals(registry: &mut Registry, quality: &QualityStatus) {
    type Read = fn(&SignalReport) -> Option<f64>;
    let all: [(&str, &str, Read); 4] = [
        ("server_signal_mean_seconds", "Mean latency of a signal in the last seconds", |it| it.mean_s),
        ("server_signal_p90_seconds", "90th percentile of its latency", |it| it.p90_s),
        ("server_signal_loss_ratio", "Part of it that was lost", |it| Some(it.loss)),
        ("server_signal_error_ratio", "Part of it that was refused", |it| Some(it.errors)),
    ];
    for (name, help, read) in all {
        let servers = quality.groups.iter().flat_map(|group| group.servers.iter().map(move |server| (group, server)));
        let series = servers.flat_map(|(group, server)| {
            server.report.signals.iter().map(move |signal| {
                let labels = SignalLabels {
                    service: group.service.clone(),
                    server: server.name.clone(),
                    signal: signal.kind.to_string(),
                };
                (labels, read(signal))
            })
        });
        family::gauges(registry, name, help, series);
    }
}
