//! Metrics of what waits.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

use super::family;
use decide::queue::report::{ClassReport, End, QueueReport};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClassLabels {
    service: String,
    /// Empty: of no class.
    class: String,
    priority: u8,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndLabels {
    service: String,
    class: String,
    priority: u8,
    how: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

type Seconds = Counter<f64, AtomicU64>;

pub(super) fn register(registry: &mut Registry, report: &QueueReport) {
    let classes = || {
        report.services.iter().flat_map(|service| {
            service.classes.iter().map(|class| {
                let name = class.name.clone().unwrap_or_default();
                (ClassLabels { service: service.name.clone(), class: name, priority: class.priority }, class)
            })
        })
    };
    type Read = fn(&ClassReport) -> Option<f64>;
    let gauges: [(&str, &str, Read); 4] = [
        ("queue_waiting", "Flows that wait for a server", |it| Some(it.waiting as f64)),
        ("queue_oldest_seconds", "How long the oldest of them has waited", |it| it.oldest_s),
        ("queue_wait_p50_seconds", "Median of the waits that ended in the last minute", |it| it.wait_p50_s),
        ("queue_wait_p99_seconds", "99th percentile of these waits", |it| it.wait_p99_s),
    ];
    for (name, help, read) in gauges {
        family::gauges(registry, name, help, classes().map(|(labels, class)| (labels, read(class))));
    }
    let arrived = classes().map(|(labels, class)| (labels, class.arrived));
    family::counters(registry, "queue_arrived", "Flows that came to the queue", arrived);
    let waited = Family::<ClassLabels, Seconds>::default();
    registry.register("queue_waited_seconds", "Time that flows have waited", waited.clone());
    for (labels, class) in classes() {
        waited.get_or_create(&labels).inc_by(class.waited_s);
    }
    let ended = classes().flat_map(|(ClassLabels { service, class: name, priority }, class)| {
        End::ALL.iter().zip(class.ends).map(move |(end, count)| {
            (EndLabels { service: service.clone(), class: name.clone(), priority, how: end.label() }, count)
        })
    });
    family::counters(registry, "queue_ended", "Flows that wait no more, by how that ended", ended);
    let challenges = report
        .services
        .iter()
        .map(|service| (ServiceLabels { service: service.name.clone() }, i64::from(service.challenges)));
    let help = "Whether clients have to show that they are at their address";
    family::whole_gauges(registry, "queue_challenges", help, challenges);
    if report.memory_limit > 0 {
        family::gauge(registry, "queue_memory_bytes", "Memory of all that waits", report.memory);
        family::gauge(registry, "queue_memory_limit_bytes", "Most memory of all that waits", report.memory_limit);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use decide::queue::report::ServiceReport;

    #[test]
    fn every_class_has_its_series() {
        let mut class =
            ClassReport { name: Some("gold".into()), priority: 1, waiting: 3, waited_s: 1.5, ..ClassReport::default() };
        class.ends[End::Released as usize] = 7;
        let service = ServiceReport { name: "web".into(), classes: vec![class], ..ServiceReport::default() };
        let mut registry = Registry::default();
        register(&mut registry, &QueueReport { services: vec![service], ..QueueReport::default() });
        let mut text = String::new();
        encode(&mut text, &registry).expect("metrics have a text form");
        for line in [
            "queue_waiting{service=\"web\",class=\"gold\",priority=\"1\"} 3.0",
            "queue_ended_total{service=\"web\",class=\"gold\",priority=\"1\",how=\"released\"} 7",
            "queue_waited_seconds_total{service=\"web\",class=\"gold\",priority=\"1\"} 1.5",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
