//! Whether everything was as it is to be.

use std::collections::BTreeMap;

use loadbalancer::api::types::Snapshot;
use loadbalancer_common::outcome::{Class, Outcome};
use loadbalancer_tests::chance;
use loadbalancer_tests::traffic::load::LoadReport;
use serde::Serialize;

/// A stretch of time with the same servers.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub requests: u64,
    pub errors: u64,
    pub by_server: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ModeResult {
    pub mode: String,
    pub requests: u64,
    /// In all; those of the moment when the server stopped are its own.
    pub errors: u64,
    pub phases: Vec<Phase>,
    /// Frames that XDP sent on, and those that it left to the kernel.
    pub forwarded: u64,
    pub passed: u64,
    pub outcomes: BTreeMap<String, u64>,
    /// What was not as it is to be.
    pub complaints: Vec<String>,
}

impl Phase {
    pub fn between(name: &'static str, before: Option<&LoadReport>, after: &LoadReport) -> Self {
        let old = |server: &str| before.and_then(|before| before.by_server.get(server)).copied().unwrap_or(0);
        Self {
            name,
            requests: after.ok - before.map_or(0, |before| before.ok),
            errors: after.failed() - before.map_or(0, LoadReport::failed),
            by_server: after.by_server.iter().map(|(server, count)| (server.clone(), count - old(server))).collect(),
        }
    }
}

/// Outcomes that have no place in any phase.
const UNWANTED: [Outcome; 8] = [
    Outcome::NoServer,
    Outcome::Full,
    Outcome::NoPath,
    Outcome::PortsExhausted,
    Outcome::FragmentUnknown,
    Outcome::Invalid,
    Outcome::NoReturnPath,
    Outcome::Internal,
];

pub fn judge(mode: &str, phases: &[Phase], report: &LoadReport, snapshot: &Snapshot) -> ModeResult {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let services = snapshot.services.iter().map(|service| &service.outcomes);
    for (label, count) in services.chain([&snapshot.unserved]).flatten() {
        *outcomes.entry(label.clone()).or_default() += count;
    }
    let of_class = |class: Class| -> u64 {
        Outcome::ALL.iter().filter(|o| o.class() == class).filter_map(|o| outcomes.get(o.label())).sum()
    };
    let mut complaints = Vec::new();
    // Weights of server1, server2, server3; server4 is in the lower tier.
    for (phase, weights) in phases.iter().zip([[1, 1, 2, 0], [1, 0, 2, 0], [1, 1, 2, 0]]) {
        if phase.requests == 0 {
            complaints.push(format!("{}: no request was answered", phase.name));
            continue;
        }
        if phase.errors > 0 {
            complaints.push(format!("{}: {} requests failed: {:?}", phase.name, phase.errors, report.failures));
        }
        let total: u32 = weights.iter().sum();
        for (number, weight) in weights.iter().enumerate() {
            let server = format!("server{}", number + 1);
            let count = phase.by_server.get(&server).copied().unwrap_or(0);
            let expected = f64::from(*weight) / f64::from(total);
            // With the requests that were under way at the boundary.
            let (likely, under_way) = (chance::counts(phase.requests, expected), if *weight == 0 { 0 } else { 20 });
            if !(likely.start().saturating_sub(under_way)..=likely.end() + under_way).contains(&count) {
                complaints.push(format!(
                    "{}: {server} answered {count} of {} requests, expected {:.0} %",
                    phase.name,
                    phase.requests,
                    expected * 100.0
                ));
            }
        }
    }
    for outcome in UNWANTED {
        let count = outcomes.get(outcome.label()).copied().unwrap_or(0);
        if count > 0 {
            complaints.push(format!("{count} frames were counted as {}: {}", outcome.label(), outcome.meaning()));
        }
    }
    for interface in snapshot.controller.iter().flat_map(|controller| &controller.interfaces) {
        if interface.mode.as_deref() != Some("native") {
            complaints.push(format!("interface {} does not run native XDP", interface.name));
        }
    }
    ModeResult {
        mode: mode.to_owned(),
        requests: report.ok,
        errors: report.failed(),
        phases: phases.to_vec(),
        forwarded: of_class(Class::Forwarded),
        passed: of_class(Class::Passed),
        outcomes,
        complaints,
    }
}

pub fn print(results: &[ModeResult]) {
    println!("mode      requests  failed*   share of server1/2/3/4, expected 25/25/50/0        in XDP  to the kernel");
    for result in results {
        let first = &result.phases[0];
        let share = |server: &str| {
            first.by_server.get(server).copied().unwrap_or(0) as f64 / first.requests.max(1) as f64 * 100.0
        };
        let shares: Vec<String> =
            ["server1", "server2", "server3", "server4"].map(|server| format!("{:5.1} %", share(server))).to_vec();
        println!(
            "{:9} {:>8}  {:>6}   {}             {:>10}  {:>13}",
            result.mode,
            result.requests,
            result.errors,
            shares.join(" "),
            result.forwarded,
            result.passed
        );
    }
    println!("* all at the moment when server2 stopped: connections that it had, and those before its checks failed");
    println!("  (in dsr modes the servers' replies go to the client by way of the gateway's kernel)\n");
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    for (label, count) in results.iter().flat_map(|result| &result.outcomes) {
        *outcomes.entry(label).or_default() += count;
    }
    println!("what became of all frames:");
    for outcome in Outcome::ALL {
        let count = outcomes.get(outcome.label()).copied().unwrap_or(0);
        if count > 0 {
            println!("  {:<20} {count:>10}  {}", outcome.label(), outcome.meaning());
        }
    }
    println!();
    let complaints: Vec<(&str, &String)> =
        results.iter().flat_map(|result| result.complaints.iter().map(|c| (result.mode.as_str(), c))).collect();
    if complaints.is_empty() {
        println!("all is as expected");
    } else {
        println!("NOT as expected:");
        for (mode, complaint) in complaints {
            println!("  {mode}: {complaint}");
        }
    }
}
