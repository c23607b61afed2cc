//! Families of series.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What tells the series of a family apart.
pub(super) trait Labels: Clone + Debug + Eq + Hash + Send + Sync + EncodeLabelSet + 'static {}

impl<T: Clone + Debug + Eq + Hash + Send + Sync + EncodeLabelSet + 'static> Labels for T {}

/// A gauge for each set of labels that has a value.
pub(super) fn gauges<L: Labels>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (L, Option<f64>)>,
) {
    let family = Family::<L, Gauge<f64, AtomicU64>>::default();
    registry.register(name, help, family.clone());
    for (labels, value) in series {
        if let Some(value) = value {
            family.get_or_create(&labels).set(value);
        }
    }
}

/// A gauge of whole numbers for each set of labels.
pub(super) fn whole_gauges<L: Labels>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (L, i64)>,
) {
    let family = Family::<L, Gauge>::default();
    registry.register(name, help, family.clone());
    for (labels, value) in series {
        family.get_or_create(&labels).set(value);
    }
}

/// A counter for each set of labels; values of equal labels are added.
pub(super) fn counters<L: Labels>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (L, u64)>,
) {
    let family = Family::<L, Counter>::default();
    registry.register(name, help, family.clone());
    for (labels, value) in series {
        family.get_or_create(&labels).inc_by(value);
    }
}

/// A gauge without labels.
pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value as i64);
    registry.register(name, help, gauge);
}
