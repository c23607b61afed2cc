//! What the kernel's tables hold: services, servers, and what leads to them.

use std::collections::{BTreeMap, BTreeSet};

use loadbalancer_common::backend::Backend;
use loadbalancer_common::probe::Probe;
use loadbalancer_common::service::{Reply, Service, Vip};
use loadbalancer_common::settings::Settings;

use super::super::ids::{BackendNumber, ServiceNumber};
use super::change::{Change, Target};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) settings: Settings,
    /// By number; unused ones are zero.
    pub(super) services: Vec<Service>,
    /// By number; unused ones are zero.
    pub(super) backends: Vec<Backend>,
    pub(super) vips: BTreeMap<Target, Vip>,
    pub(super) replies: BTreeMap<Target, Reply>,
    /// By source port.
    pub(super) probes: BTreeMap<u16, Probe>,
}

impl Found {
    pub(super) fn service(&self, number: ServiceNumber) -> &Service {
        &self.services[usize::from(number.0)]
    }

    pub(super) fn backend(&self, number: BackendNumber) -> &Backend {
        &self.backends[usize::from(number.0)]
    }

    /// Servers with their numbers.
    pub(super) fn present(&self) -> impl Iterator<Item = (BackendNumber, &Backend)> {
        let numbered =
            self.backends.iter().enumerate().map(|(number, backend)| (BackendNumber(number as u16), backend));
        numbered.filter(|(_, backend)| backend.has(Backend::PRESENT))
    }

    /// Takes over what was written.
    pub(super) fn note(&mut self, change: &Change) {
        match change {
            Change::Settings(settings) => self.settings = *settings,
            Change::Service(number, service) => self.services[usize::from(number.0)] = *service,
            Change::Backend(number, backend) => self.backends[usize::from(number.0)] = *backend,
            Change::Vip(target, vip) => set(&mut self.vips, *target, *vip),
            Change::Reply(target, reply) => set(&mut self.replies, *target, *reply),
            Change::Probe(port, probe) => set(&mut self.probes, *port, *probe),
            Change::ResetService(_)
            | Change::Room(_)
            | Change::ResetBackend(_)
            | Change::ForgetFlows(_)
            | Change::ResetActive(_)
            | Change::Path(..)
            | Change::Ring(..) => {}
        }
    }

    /// Entries that are other than in `other`.
    pub(super) fn differences(&self, other: &Self) -> usize {
        usize::from(self.settings != other.settings)
            + self.services.iter().zip(&other.services).filter(|(one, other)| one != other).count()
            + self.backends.iter().zip(&other.backends).filter(|(one, other)| one != other).count()
            + different(&self.vips, &other.vips)
            + different(&self.replies, &other.replies)
            + different(&self.probes, &other.probes)
    }
}

fn set<K: Ord, V>(entries: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => entries.insert(key, value),
        None => entries.remove(&key),
    };
}

fn different<K: Ord, V: PartialEq>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> usize {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    keys.into_iter().filter(|key| one.get(key) != other.get(key)).count()
}
