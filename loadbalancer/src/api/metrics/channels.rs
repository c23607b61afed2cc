//! Metrics of the channels to each server.

use decide::channel::explain::{ChannelReport, State};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::registry::Registry;

use super::family;
use crate::controller::status::ChannelsStatus;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChannelLabels {
    service: String,
    server: String,
    channel: String,
}

pub(super) fn register(registry: &mut Registry, channels: &ChannelsStatus) {
    type Read = fn(&ChannelReport) -> Option<f64>;
    let all: [(&str, &str, Read); 5] = [
        ("channel_up", "Whether a channel of a server is not dead", |it| Some(f64::from(u8::from(!is_dead(it))))),
        ("channel_rtt_seconds", "Smoothed round-trip time", |it| it.srtt.map(|time| time.as_secs_f64())),
        ("channel_loss_ratio", "Part of probes and traffic that was lost", |it| Some(it.loss)),
        ("channel_score_seconds", "Score of a channel: less is better", |it| it.score.map(|time| time.as_secs_f64())),
        ("channel_slots", "Path slots of 8 that a channel has", |it| Some(it.slots as f64)),
    ];
    for (name, help, read) in all {
        let series = channels.servers.iter().flat_map(|server| {
            server.channels.iter().map(move |channel| {
                let labels = ChannelLabels {
                    service: server.service.clone(),
                    server: server.server.clone(),
                    channel: channel.name.clone(),
                };
                // What a dead channel was like says nothing.
                let tells = name == "channel_up" || !is_dead(&channel.report);
                (labels, read(&channel.report).filter(|_| tells))
            })
        });
        family::gauges(registry, name, help, series);
    }
}

fn is_dead(channel: &ChannelReport) -> bool {
    matches!(channel.state, State::Dead { .. })
}
