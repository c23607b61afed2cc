//! `loadbalancer queue`: what waits for a server, for how long, and what became of those before.

use decide::queue::report::End;
use loadbalancer::api::types::queue::{ClassQueue, QueueReport, ServiceQueue};

use super::table::{percent, short, table};

pub fn queue(report: &QueueReport) -> String {
    let mut parts: Vec<String> = report.error.iter().map(|error| format!("error: {error}\n")).collect();
    if report.services.is_empty() {
        parts.push(
            "no service queues\nhelp: add [service.queue] to a service, and `high_water` to its servers".to_owned(),
        );
        return parts.join("\n");
    }
    let rows = report.services.iter().flat_map(|service| service.classes.iter().map(move |class| row(service, class)));
    let headings =
        ["SERVICE", "CLASS", ">PRIO", ">WAITING", ">OLDEST", ">P50", ">P99", ">ARRIVED", ">RELEASED", "NOT RELEASED"];
    parts.push(table(&headings, rows.collect()));
    parts.push(String::new());
    let used = report.memory as f64 / report.memory_limit.max(1) as f64;
    parts.push(format!(
        "memory {}B of {}B ({})",
        short(report.memory as f64),
        short(report.memory_limit as f64),
        percent(used)
    ));
    parts.extend(report.services.iter().map(notes).filter(|notes| !notes.is_empty()));
    parts.join("\n")
}

fn row(service: &ServiceQueue, class: &ClassQueue) -> Vec<String> {
    let none = || "-".to_owned();
    let others = class.ends.iter().filter(|(label, count)| *label != End::Released.label() && **count > 0);
    let others: Vec<String> =
        others.map(|(label, count)| format!("{} {}", short(*count as f64), label.replace('_', " "))).collect();
    vec![
        service.name.clone(),
        class.name.clone().unwrap_or_else(none),
        class.priority.to_string(),
        short(class.waiting as f64),
        class.oldest_s.map_or_else(none, seconds),
        class.wait_p50_s.map_or_else(none, seconds),
        class.wait_p99_s.map_or_else(none, seconds),
        short(class.arrived as f64),
        short(class.ends.get(End::Released.label()).copied().unwrap_or(0) as f64),
        if others.is_empty() { none() } else { others.join(", ") },
    ]
}

/// A time from microseconds to minutes.
fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

fn notes(service: &ServiceQueue) -> String {
    let mut notes = Vec::new();
    if service.waiting >= service.most {
        notes.push("its queue is full (max_entries)".to_owned());
    }
    if service.challenges {
        notes.push("clients must show that they are at their address, as many who wait have not".to_owned());
    }
    if service.classes.iter().any(|class| class.overloaded) {
        notes.push("overloaded for a while, so the newest go first".to_owned());
    }
    if notes.is_empty() { String::new() } else { format!("{}: {}", service.name, notes.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fitting_units() {
        assert_eq!([0.000_07, 0.012, 3.25].map(seconds), ["70 us", "12.0 ms", "3.2 s"]);
    }
}
