//! `loadbalancer standby`: the pool of standby servers, who has which, and why.

use decide::standby::explain::{Phase, Waits};
use loadbalancer::api::types::standby::{StandbyReport, StandbyServer, StandbyService};

use super::table::{latency, percent, table, time};

pub fn standby(report: &StandbyReport) -> String {
    if report.servers.is_empty() {
        return "there is no pool of standby servers\n\
                help: add [[standby.server]] to the configuration, and [service.standby] to services that may get some"
            .to_owned();
    }
    let servers = report.servers.iter().map(|server| row(server, report.uptime_s)).collect();
    let services = report.services.iter().map(service).collect();
    let headings = ["SERVER", "ADDRESS", "STATE", ">FOR", "SERVICE", ">FLOWS", ">WEIGHT", "REASON"];
    let mut text = table(&headings, servers);
    text.push_str("\n\n");
    let headings = ["SERVICE", ">HAS", ">MIN", ">MAX", ">P90", ">FAILURES", ">LOAD", "QUALITY"];
    text.push_str(&table(&headings, services));
    text
}

fn none() -> String {
    "-".to_owned()
}

fn row(it: &StandbyServer, uptime_s: f64) -> Vec<String> {
    let state = if it.state == Phase::Checking { "being checked" } else { it.state.label() };
    let mut reasons: Vec<String> = it.why.iter().map(|why| why.0.to_string()).collect();
    if let Some(left) = it.free_in.filter(|left| !left.is_zero()) {
        reasons.push(format!("rests for {}", time(left.as_secs() + 1)));
    }
    reasons.extend(it.last_problem.iter().map(|problem| problem.0.to_string()));
    vec![
        it.name.clone(),
        it.address.clone(),
        state.to_owned(),
        time((uptime_s - it.since.as_secs_f64()).max(0.0) as u64),
        it.leased_to.clone().unwrap_or_else(none),
        it.flows.map_or_else(none, |flows| flows.to_string()),
        it.weight.to_string(),
        reasons.join("; "),
    ]
}

fn service(it: &StandbyService) -> Vec<String> {
    let seconds = |time: std::time::Duration| self::time(time.as_secs());
    let quality = match (&it.breach, it.recovered_for) {
        (Some(breach), _) => {
            let wait = it.waits.as_ref().map(|waits| match waits.0 {
                Waits::Hold => "it has to last for a while",
                Waits::Starting => "a server is being started",
                Waits::Settling => "the last change has to act first",
                Waits::AtMaximum => "it has as many as it may",
                Waits::PoolEmpty => "no server is free",
            });
            let lasting = it.breach_for.map_or_else(String::new, |time| format!(" for {}", seconds(time)));
            let wait = wait.map_or_else(String::new, |wait| format!("; {wait}"));
            format!("{}{lasting}{wait}", breach.0)
        }
        (None, Some(recovered)) if it.has.len() > it.min as usize => {
            format!("well for {}, gives one back after {}", seconds(recovered), seconds(it.give_back_after))
        }
        _ => "as it should be".to_owned(),
    };
    let has = if it.has.is_empty() { "0".to_owned() } else { it.has.join(", ") };
    vec![
        it.name.clone(),
        has,
        it.min.to_string(),
        if it.max == u32::MAX { none() } else { it.max.to_string() },
        it.p90.map_or_else(none, |p90| latency(p90.as_micros() as u64)),
        percent(it.failure_share),
        it.load.map_or_else(none, |load| format!("{load:.1}")),
        quality,
    ]
}
