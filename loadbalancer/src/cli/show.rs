//! Tables of the gateway's state.

use std::collections::BTreeMap;

use loadbalancer::api::types::snapshot::{Queue, Server, Snapshot};
use loadbalancer::controller::status::ServerState;
use loadbalancer_common::outcome::{Class, Outcome};

use super::table::{latency, percent, short, table, time};

pub fn status(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    match &snapshot.controller {
        None => {
            text.push_str("controller   not running: this is read from the pinned maps, and no server is checked\n")
        }
        Some(controller) => {
            text.push_str(&format!(
                "controller   version {}, pid {}, up {}{}\nconfig       {}\n",
                controller.version,
                controller.pid,
                time(controller.uptime_seconds),
                if controller.adopted { ", went on with pinned state" } else { "" },
                controller.config
            ));
            for interface in &controller.interfaces {
                let state = match (&interface.mode, &interface.problem) {
                    (Some(mode), None) => format!("{mode} XDP"),
                    (Some(mode), Some(problem)) => format!("{mode} XDP, but {problem}"),
                    (None, Some(problem)) => format!("NOT ATTACHED: {}", problem.replace('\n', "; ")),
                    (None, None) => "not attached yet".to_owned(),
                };
                text.push_str(&format!("interface    {}: {state}\n", interface.name));
            }
            text.push_str(&format!("maps         {} writes, {} repairs\n", controller.map_writes, controller.repairs));
            if let Some(error) = &controller.reload_error {
                text.push_str(&format!("RELOAD FAILED; the old configuration is in force\n{error}\n"));
            }
            for warning in &controller.warnings {
                text.push_str(&format!("WARNING      {warning}\n"));
            }
        }
    }
    let tables = &snapshot.tables;
    text.push_str(&format!(
        "flows        {} of {} affinity entries, {} of {} nat flows\n",
        tables.affinity_entries, tables.affinity_capacity, tables.nat_flows, tables.nat_capacity
    ));
    let count = |state: ServerState| all_servers(snapshot).filter(|(_, server)| server.state == state).count();
    let total: usize = snapshot.services.iter().map(|service| service.servers.len()).sum();
    text.push_str(&format!("servers      {total}: "));
    let states = [
        ServerState::Up,
        ServerState::Unchecked,
        ServerState::Unknown,
        ServerState::Down,
        ServerState::Unreachable,
        ServerState::Drained,
        ServerState::Leaving,
    ];
    let counts = states.into_iter().map(|state| (count(state), state.label())).filter(|(count, _)| *count > 0);
    let parts: Vec<String> = counts.map(|(count, state)| format!("{count} {state}")).collect();
    text.push_str(&parts.join(", "));
    text.push('\n');
    for (service, server) in all_servers(snapshot) {
        if let Some(reason) = &server.reason {
            text.push_str(&format!("  {service}/{} is {}: {reason}\n", server.name, server.state.label()));
        }
    }
    text
}

fn all_servers(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &Server)> {
    snapshot.services.iter().flat_map(|service| service.servers.iter().map(|server| (service.name.as_str(), server)))
}

pub fn services(snapshot: &Snapshot) -> String {
    let rows = snapshot.services.iter().map(|service| {
        let ready = service.servers.iter().filter(|server| server.state.is_ready()).count();
        let refused: u64 = of_class(&service.outcomes, Class::Refused);
        let dropped: u64 = of_class(&service.outcomes, Class::Dropped);
        vec![
            service.name.clone(),
            service.mode.clone(),
            format!("{ready}/{}", service.servers.len()),
            service.servers.iter().map(|server| u64::from(server.active)).sum::<u64>().to_string(),
            short(service.servers.iter().map(|server| server.flows).sum::<u64>() as f64),
            short(refused as f64),
            short(dropped as f64),
            service.listen.join(" "),
        ]
    });
    table(&["SERVICE", "MODE", ">READY", ">ACTIVE", ">FLOWS", ">REFUSED", ">DROPPED", "LISTEN"], rows.collect())
}

fn of_class(outcomes: &BTreeMap<String, u64>, class: Class) -> u64 {
    Outcome::ALL
        .iter()
        .filter(|outcome| outcome.class() == class)
        .filter_map(|outcome| outcomes.get(outcome.label()))
        .sum()
}

pub fn backends(snapshot: &Snapshot) -> String {
    let rows = all_servers(snapshot).map(|(service, server)| {
        vec![
            format!("{service}/{}", server.name),
            address(server),
            server.state.label().to_owned(),
            server.state_seconds.map_or_else(|| "-".to_owned(), time),
            server.tier.to_string(),
            server.weight.to_string(),
            percent(server.share),
            server.active.to_string(),
            server.high_water.map_or_else(|| "-".to_owned(), |mark| mark.to_string()),
            server.check_latency_us.map_or_else(|| "-".to_owned(), latency),
            server.reason.clone().unwrap_or_default(),
        ]
    });
    let headings =
        ["SERVER", "ADDRESS", "STATE", ">FOR", ">TIER", ">WEIGHT", ">SHARE", ">ACTIVE", ">LIMIT", ">CHECK", "REASON"];
    table(&headings, rows.collect())
}

fn address(server: &Server) -> String {
    match server.port {
        Some(port) if server.address.contains(':') => format!("[{}]:{port}", server.address),
        Some(port) => format!("{}:{port}", server.address),
        None => server.address.clone(),
    }
}

/// Servers and outcomes; with an earlier snapshot as rates between the two.
pub fn stats(snapshot: &Snapshot, before: Option<&Snapshot>) -> String {
    let seconds = before.map(|before| snapshot.taken_ms.saturating_sub(before.taken_ms).max(1) as f64 / 1e3);
    let old: BTreeMap<(&str, &str), &Server> = before
        .into_iter()
        .flat_map(all_servers)
        .map(|(service, server)| ((service, server.name.as_str()), server))
        .collect();
    let rows = all_servers(snapshot).map(|(service, server)| {
        let old = old.get(&(service, server.name.as_str()));
        let value = |read: fn(&Server) -> u64| match (old, seconds) {
            (Some(old), Some(seconds)) => short(read(server).saturating_sub(read(old)) as f64 / seconds),
            _ => short(read(server) as f64),
        };
        vec![
            format!("{service}/{}", server.name),
            server.state.label().to_owned(),
            server.weight.to_string(),
            percent(server.share),
            server.active.to_string(),
            value(|server| server.flows),
            value(|server| server.packets),
            value(|server| server.bytes),
            value(|server| server.reply_packets),
            value(|server| server.reply_bytes),
            server.check_latency_us.map_or_else(|| "-".to_owned(), latency),
        ]
    });
    let headings: [&str; 11] = if before.is_some() {
        [
            "SERVER",
            "STATE",
            ">WEIGHT",
            ">SHARE",
            ">ACTIVE",
            ">FLOWS/s",
            ">PACKETS/s",
            ">BYTES/s",
            ">REPLIES/s",
            ">BYTES/s",
            ">CHECK",
        ]
    } else {
        [
            "SERVER", "STATE", ">WEIGHT", ">SHARE", ">ACTIVE", ">FLOWS", ">PACKETS", ">BYTES", ">REPLIES", ">BYTES",
            ">CHECK",
        ]
    };
    let mut text = table(&headings, rows.collect());
    text.push_str("\n\n");
    let mut rows = Vec::new();
    let services = snapshot.services.iter().map(|service| (service.name.as_str(), &service.outcomes));
    for (name, outcomes) in services.chain([("(no service)", &snapshot.unserved)]) {
        let old = before.and_then(|before| {
            let service = before.services.iter().find(|service| service.name == name);
            service.map(|service| &service.outcomes).or((name == "(no service)").then_some(&before.unserved))
        });
        for outcome in Outcome::ALL {
            let count = outcomes.get(outcome.label()).copied().unwrap_or(0);
            if count == 0 {
                continue;
            }
            let value = match (old, seconds) {
                (Some(old), Some(seconds)) => {
                    let old = old.get(outcome.label()).copied().unwrap_or(0);
                    format!("{}/s", short(count.saturating_sub(old) as f64 / seconds))
                }
                _ => count.to_string(),
            };
            rows.push(vec![name.to_owned(), outcome.label().to_owned(), value, outcome.meaning().to_owned()]);
        }
    }
    text.push_str(&table(&["SERVICE", "OUTCOME", ">FRAMES", "MEANING"], rows));
    for service in &snapshot.services {
        if let Some(queue) = &service.queue {
            text.push_str(&format!("\n\n{}: {}", service.name, queue_line(queue)));
        }
    }
    text
}

/// What waits, in a line.
fn queue_line(queue: &Queue) -> String {
    let oldest = queue.oldest_s.map_or_else(String::new, |oldest| format!(" (the oldest for {oldest:.1} s)"));
    format!(
        "{} wait{oldest}, {} released, {} ended otherwise; `loadbalancer queue` tells more",
        queue.waiting, queue.released, queue.not_released
    )
}
