//! Metrics of what waits.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

use super::Ratio;
use crate::queue::report::{ClassReport, Report};

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
    how: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

type Seconds = Counter<f64, AtomicU64>;

pub(super) fn register(registry: &mut Registry, report: &Report) {
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
        let family = Family::<ClassLabels, Ratio>::default();
        registry.register(name, help, family.clone());
        for (labels, class) in classes() {
            if let Some(value) = read(class) {
                family.get_or_create(&labels).set(value);
            }
        }
    }
    let arrived = Family::<ClassLabels, Counter>::default();
    registry.register("queue_arrived", "Flows that came to the queue", arrived.clone());
    let waited = Family::<ClassLabels, Seconds>::default();
    registry.register("queue_waited_seconds", "Time that flows have waited", waited.clone());
    let ended = Family::<EndLabels, Counter>::default();
    registry.register("queue_ended", "Flows that wait no more, by how that ended", ended.clone());
    for (labels, class) in classes() {
        arrived.get_or_create(&labels).inc_by(class.arrived);
        waited.get_or_create(&labels).inc_by(class.waited_s);
        for (how, count) in &class.ends {
            let ClassLabels { service, class, priority } = labels.clone();
            ended.get_or_create(&EndLabels { service, class, priority, how: how.clone() }).inc_by(*count);
        }
    }
    let challenges = Family::<ServiceLabels, Gauge>::default();
    registry.register(
        "queue_challenges",
        "Whether clients have to show that they are at their address",
        challenges.clone(),
    );
    for service in &report.services {
        let labels = ServiceLabels { service: service.name.clone() };
        challenges.get_or_create(&labels).set(i64::from(service.challenges));
    }
    if report.memory_limit > 0 {
        for (name, help, value) in [
            ("queue_memory_bytes", "Memory of all that waits", report.memory),
            ("queue_memory_limit_bytes", "Most memory of all that waits", report.memory_limit),
        ] {
            let gauge = Gauge::<i64>::default();
            gauge.set(value as i64);
            registry.register(name, help, gauge);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::queue::report::ServiceReport;

    #[test]
    fn every_class_has_its_series() {
        let class = ClassReport {
            name: Some("gold".into()),
            priority: 1,
            waiting: 3,
            waited_s: 1.5,
            ends: [("released".to_owned(), 7)].into(),
            ..ClassReport::default()
        };
        let service = ServiceReport { name: "web".into(), classes: vec![class], ..ServiceReport::default() };
        let mut registry = Registry::default();
        register(&mut registry, &Report { services: vec![service], ..Report::default() });
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
