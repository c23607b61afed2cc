//! `loadbalancer quality`: why each weight is what it is.

use decide::quality::explain::Reason;
use decide::quality::signal::SelfReportState;
use decide::standby::need::{Breach, Quantity};
use decide::tiers::explain::{Course, Role};
use loadbalancer::api::types::quality::{QualityGroup, QualityReport, ServerQuality, ShareChange, Signal, TierHelp};

use super::table::{latency, percent, table, time};

pub fn quality(report: &QualityReport) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for service in &report.services {
        for server in &service.servers {
            rows.push(row(report, service, server));
        }
        if service.panic {
            notes.push_str(&format!(
                "\n{}: too few servers are in good order, so ejected ones serve as well",
                name(service)
            ));
        }
        if let Some(help) = &service.help {
            notes.push_str(&format!("\n{}: {}", name(service), tier(help)));
        }
    }
    let headings = [
        "SERVER",
        ">WEIGHT",
        ">SHARE",
        ">FACTOR",
        ">SCORE",
        "BY",
        ">MEAN",
        ">P90",
        ">LOSS",
        ">ERRORS",
        ">ACTIVE",
        "STATE",
        ">SINCE",
        "LAST CHANGE",
    ];
    format!("{}{notes}", table(&headings, rows))
}

fn name(service: &QualityGroup) -> String {
    if service.tier == 0 { service.service.clone() } else { format!("{} (tier {})", service.service, service.tier) }
}

/// How a tier helps, or is helped, and why.
fn tier(it: &TierHelp) -> String {
    let share = percent(it.share);
    let course = course(it);
    match (it.role, it.first) {
        (Role::First, _) => format!("the first tier, {share} of the new flows; {course}"),
        (Role::Helps, Some(first)) => {
            let of_weight = percent(it.of_weight);
            format!("helps tier {first} with {of_weight} of its weight, {share} of the new flows; {course}")
        }
        _ => "gets only what the tiers above refuse".to_owned(),
    }
}

fn course(it: &TierHelp) -> String {
    let nearest = it.nearest.map_or_else(|| "too little is heard of it".to_owned(), |nearest| beside(&nearest.0));
    match it.course {
        Course::Alone => format!("needs no help: {nearest}"),
        Course::Holds => format!("needs help if that lasts: {nearest}"),
        Course::Rises => format!("help rises: {nearest}"),
        Course::Spent => format!("all tiers help with all their weight, and it is not enough: {nearest}"),
        Course::Steady => format!("help stays: {nearest}"),
        Course::Falls => format!("help falls: {nearest}"),
        Course::Unknown => format!("all stays as it is, too little is known: {nearest}"),
    }
}

/// A quantity of the first tier, and its level.
fn beside(it: &Breach) -> String {
    match it.of {
        Quantity::P90 => format!("its p90 is {}, its level {}", micros(it.value), micros(it.level)),
        Quantity::Failures => format!("{} of its requests fail, its level is {}", percent(it.value), percent(it.level)),
        Quantity::Load => format!("it has {:.1} active flows per weight, its level is {:.1}", it.value, it.level),
        Quantity::Servers => "none of its servers is in order".to_owned(),
    }
}

fn row(report: &QualityReport, service: &QualityGroup, it: &ServerQuality) -> Vec<String> {
    let none = || "-".to_owned();
    let used = it.signal.as_ref().and_then(|kind| it.signals.iter().find(|signal| signal.kind == *kind));
    let signal = used.or(it.signals.first());
    let of_signal = |value: fn(&Signal) -> Option<f64>| signal.and_then(value).map_or_else(none, micros);
    let worst = |value: fn(&Signal) -> f64| {
        if it.signals.is_empty() { none() } else { percent(it.signals.iter().map(value).fold(0.0, f64::max)) }
    };
    let ago = |change: &ShareChange| time((report.uptime_s - change.at_s).max(0.0) as u64);
    vec![
        format!("{}/{}", service.service, it.name),
        it.nominal_weight.to_string(),
        percent(it.published_share),
        format!("{:.2}", it.factor),
        it.badness.map_or_else(none, |badness| format!("{badness:.*}", if badness < 100.0 { 2 } else { 0 })),
        it.signal.clone().unwrap_or_else(none),
        of_signal(|signal| signal.mean_s),
        of_signal(|signal| signal.p90_s),
        worst(|signal| signal.loss),
        worst(|signal| signal.errors),
        it.active.to_string(),
        format!("{}{}", state(it), mark(it)),
        it.last_change.as_ref().map_or_else(none, ago),
        it.last_change.as_ref().map_or_else(none, why),
    ]
}

fn micros(seconds: f64) -> String {
    latency((seconds * 1e6) as u64)
}

fn state(it: &ServerQuality) -> String {
    if let Some(ejection) = &it.ejection {
        let left = if ejection.ends_in_s > 0.0 {
            format!("for {}", time(ejection.ends_in_s.ceil() as u64))
        } else {
            "until a check passes".to_owned()
        };
        return format!("ejected {left}: {}", ejection.cause);
    }
    match it.self_report.state {
        SelfReportState::Drain => return "drained by its agent".to_owned(),
        SelfReportState::Maintenance => return "in maintenance, says its agent".to_owned(),
        SelfReportState::Down => return "down, says its agent".to_owned(),
        SelfReportState::Up => {}
    }
    if !it.up {
        return "down".to_owned();
    }
    if !it.serving {
        return "weight 0".to_owned();
    }
    if it.slow_start < 1.0 {
        return format!("slow start, {}", percent(it.slow_start));
    }
    if it.stale {
        return "stale: weight frozen".to_owned();
    }
    if it.slowness.is_none() {
        return "too few samples yet".to_owned();
    }
    if it.correcting { "being corrected".to_owned() } else { "steady".to_owned() }
}

/// How many flows it may have, where that follows latency.
fn mark(it: &ServerQuality) -> String {
    let Some(mark) = &it.mark else { return String::new() };
    let baseline = match mark.baseline_s {
        _ if mark.lowered => "measures its baseline".to_owned(),
        Some(baseline_s) => format!("baseline {}", micros(baseline_s)),
        None => "no baseline yet".to_owned(),
    };
    format!("; {} flows at most, {baseline}", mark.flows)
}

fn why(change: &ShareChange) -> String {
    let reason = match change.reason {
        Reason::Configured => "configured".to_owned(),
        Reason::Slower { slowness } => format!("{slowness:.1} x the middle's latency"),
        Reason::Faster { slowness } => format!("it can take more: {slowness:.1} x the middle's latency"),
        Reason::Failing { rate } => format!("{} of its requests fail", percent(rate)),
        Reason::Ejected(cause) => format!("ejected: {cause}"),
        Reason::EjectionOver => "its ejection is over".to_owned(),
        Reason::Panic => "too few servers are left without it".to_owned(),
        Reason::SlowStart => "slow start".to_owned(),
        Reason::SelfReport => "its agent says so".to_owned(),
        Reason::Down => "it is down".to_owned(),
        Reason::Peers => "others changed".to_owned(),
    };
    format!("{} -> {}: {reason}", percent(change.from), percent(change.to))
}
