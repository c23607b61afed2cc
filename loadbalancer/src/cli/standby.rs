//! `loadbalancer standby`: the pool of standby servers, who has which, and why.

use loadbalancer::control::standby::{NamedServer, NamedService, Report};
use loadbalancer::quality::standby::explain::{Phase, Waits};

use super::show::percent;
use super::table::{latency, table, time};

pub fn standby(report: &Report) -> String {
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

fn row(server: &NamedServer, uptime_s: f64) -> Vec<String> {
    let it = &server.report;
    let state = match it.state {
        Phase::Idle => "idle",
        Phase::Starting => "starting",
        Phase::Checking => "being checked",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Stopping => "stopping",
        Phase::Failed => "failed",
    };
    let mut reasons: Vec<String> = it.why.as_ref().map(ToString::to_string).into_iter().collect();
    if let Some(left) = it.free_in.filter(|left| !left.is_zero()) {
        reasons.push(format!("rests for {}", time(left.as_secs() + 1)));
    }
    reasons.extend(it.last_problem.as_ref().map(ToString::to_string));
    vec![
        server.name.clone(),
        server.address.clone(),
        state.to_owned(),
        time((uptime_s - it.since.as_secs_f64()).max(0.0) as u64),
        server.leased_to.clone().unwrap_or_else(none),
        it.flows.map_or_else(none, |flows| flows.to_string()),
        it.weight.to_string(),
        reasons.join("; "),
    ]
}

fn service(service: &NamedService) -> Vec<String> {
    let it = &service.report;
    let seconds = |time: std::time::Duration| self::time(time.as_secs());
    let quality = match (&it.breach, it.recovered_for) {
        (Some(breach), _) => {
            let wait = it.waits.map(|waits| match waits {
                Waits::Hold => "it has to last for a while",
                Waits::Starting => "a server is being started",
                Waits::Settling => "the last change has to act first",
                Waits::AtMaximum => "it has as many as it may",
                Waits::PoolEmpty => "no server is free",
            });
            let lasting = it.breach_for.map_or_else(String::new, |time| format!(" for {}", seconds(time)));
            let wait = wait.map_or_else(String::new, |wait| format!("; {wait}"));
            format!("{breach}{lasting}{wait}")
        }
        (None, Some(recovered)) if service.has.len() > it.min as usize => {
            format!("well for {}, gives one back after {}", seconds(recovered), seconds(it.give_back_after))
        }
        _ => "as it should be".to_owned(),
    };
    let has = if service.has.is_empty() { "0".to_owned() } else { service.has.join(", ") };
    vec![
        service.name.clone(),
        has,
        it.min.to_string(),
        if it.max == u32::MAX { none() } else { it.max.to_string() },
        it.p90.map_or_else(none, |p90| latency(p90.as_micros() as u64)),
        percent(it.failure_share),
        it.load.map_or_else(none, |load| format!("{load:.1}")),
        quality,
    ]
}
