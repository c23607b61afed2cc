//! `loadbalancer channels`: the ways to each server, how good they are, and how many flows take them.

use decide::channel::explain::{Reason, State};
use loadbalancer::api::types::channels::{Channel, ChannelsReport, Moment, SlotChange};
use loadbalancer_common::backend::PATH_SLOTS;

use super::table::{latency, percent, table, time};

pub fn channels(report: &ChannelsReport) -> String {
    if report.servers.is_empty() {
        return "no server has channels: the routing table gives the ways\n\
                help: add [[channel]] to the configuration, and name channels in `channels` of a service or server"
            .to_owned();
    }
    let mut rows = Vec::new();
    for server in &report.servers {
        for it in &server.channels {
            rows.push(vec![
                format!("{}/{}", server.service, server.server),
                it.name.clone(),
                state(it, report.uptime_s),
                format!("{}/{PATH_SLOTS}", it.slots),
                percent(it.share),
                it.srtt.map_or_else(none, |time| latency(time.as_micros() as u64)),
                it.rttvar.map_or_else(none, |time| latency(time.as_micros() as u64)),
                percent(it.loss),
                it.score.map_or_else(none, |time| latency(time.as_micros() as u64)),
                sparkline(&it.history),
                it.last_change.as_ref().map_or_else(none, |change| ago(change, report.uptime_s)),
                it.last_change.as_ref().map_or_else(none, why),
            ]);
        }
    }
    let headings = [
        "SERVER",
        "CHANNEL",
        "STATE",
        ">SLOTS",
        ">DUE",
        ">RTT",
        ">+-",
        ">LOSS",
        ">SCORE",
        "LAST MINUTE",
        ">SINCE",
        "LAST CHANGE",
    ];
    table(&headings, rows)
}

fn none() -> String {
    "-".to_owned()
}

fn state(it: &Channel, uptime_s: f64) -> String {
    match it.state {
        State::Unknown => "not measured yet".to_owned(),
        State::Good => "good".to_owned(),
        State::Stale => "stale: slots frozen".to_owned(),
        State::Dead { cause, since, .. } => {
            let age = time((uptime_s - since.as_secs_f64()).max(0.0) as u64);
            format!("dead for {age}: {cause}")
        }
    }
}

fn ago(change: &SlotChange, uptime_s: f64) -> String {
    time((uptime_s - change.at.as_secs_f64()).max(0.0) as u64)
}

fn why(change: &SlotChange) -> String {
    let reason = match change.reason {
        Reason::Configured => "configured".to_owned(),
        Reason::Died(cause) => cause.to_string(),
        Reason::PeerDied => "another channel died or came back".to_owned(),
        Reason::Loses { loss } => format!("it loses {}", percent(loss)),
        Reason::Worse { score } => format!("its score is worse: {}", latency(score.as_micros() as u64)),
        Reason::Better { score } => format!("its score is better: {}", latency(score.as_micros() as u64)),
    };
    format!("{} -> {} slots: {reason}", change.from, change.to)
}

/// The scores of the last minute, three seconds a character; `x` where it was dead.
fn sparkline(history: &[Moment]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    /// Doublings of the score from the lowest bar to the highest.
    const RANGE: f64 = 8.0;
    let lowest = history.iter().filter_map(|moment| moment.score).min().map_or(1.0, |score| score.as_secs_f64());
    let bar = |moments: &[Moment]| {
        if moments.iter().any(|moment| moment.dead) {
            return 'x';
        }
        let Some(worst) = moments.iter().filter_map(|moment| moment.score).max() else { return ' ' };
        let doublings = (worst.as_secs_f64() / lowest).log2().clamp(0.0, RANGE);
        BARS[(doublings / RANGE * (BARS.len() - 1) as f64).round() as usize]
    };
    history.chunks(3).map(bar).collect()
}
