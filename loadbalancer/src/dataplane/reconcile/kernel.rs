//! The packet path's maps as the reconciler's tables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use loadbalancer_common::backend::BackendCounters;
use loadbalancer_common::net::Be16;
use loadbalancer_common::outcome::{OutcomeCounters, SLOTS};
use loadbalancer_common::path::Path;
use loadbalancer_common::service::{VipKey, VipKey4, VipKey6};

use super::super::census;
use super::super::error::MapError;
use super::super::ids::{BackendNumber, PathNumber, RingNumber, ServiceNumber};
use super::super::load::Kernel;
use super::super::maps::{Map, Maps};
use super::change::{Change, Target};
use super::found::Found;
use super::rings::Rings;
use super::tables::Tables;

impl Tables for Kernel {
    fn found(&self) -> Result<Found, MapError> {
        let maps = &self.maps;
        let mut found = Found {
            settings: maps.settings.get(&0)?.unwrap_or_default(),
            services: values(&maps.services)?,
            backends: values(&maps.backends)?,
            ..Found::default()
        };
        entries(&maps.vips4, target4, &mut found.vips)?;
        entries(&maps.vips6, target6, &mut found.vips)?;
        entries(&maps.replies4, target4, &mut found.replies)?;
        entries(&maps.replies6, target6, &mut found.replies)?;
        entries(&maps.probes, |port| *port as u16, &mut found.probes)?;
        Ok(found)
    }

    fn path(&self, path: PathNumber) -> Result<Option<Path>, MapError> {
        self.maps.paths.get(&path.0)
    }

    fn ring(&self, ring: RingNumber) -> impl Iterator<Item = u64> {
        let length = Rings::words(self.sizes.ring_blocks());
        let words = &self.maps.rings.words()[ring.0 as usize * length..][..length];
        words.iter().map(|word| word.load(Ordering::Relaxed))
    }

    fn active(&self, backend: BackendNumber) -> u32 {
        self.maps.active_flows(backend)
    }

    fn write(&mut self, change: &Change) -> Result<(), MapError> {
        let maps = &self.maps;
        match change {
            Change::Settings(settings) => maps.settings.set(&0, settings),
            Change::ResetService(number) => reset_service(maps, *number),
            Change::Service(number, service) => maps.services.set(&u32::from(number.0), service),
            Change::Room(number) => {
                maps.service_state.room_epoch(*number).fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            Change::ResetBackend(number) => {
                maps.backend_counters.set_per_cpu(&u32::from(number.0), &BackendCounters::default())?;
                maps.active_counter(*number).store(0, Ordering::SeqCst);
                Ok(())
            }
            Change::Backend(number, backend) => maps.backends.set(&u32::from(number.0), backend),
            Change::ForgetFlows(backends) => census::walk::forget(maps, backends),
            Change::ResetActive(number) => {
                maps.active_counter(*number).store(0, Ordering::SeqCst);
                Ok(())
            }
            Change::Path(number, path) => maps.paths.set(&number.0, path),
            Change::Ring(ring, words) => {
                let start = ring.0 as usize * Rings::words(self.sizes.ring_blocks());
                for (target, word) in maps.rings.words()[start..].iter().zip(words) {
                    target.store(*word, Ordering::Relaxed);
                }
                Ok(())
            }
            Change::Vip(target, vip) => match key(*target) {
                Key::V4(key) => write(&maps.vips4, &key, vip.as_ref()),
                Key::V6(key) => write(&maps.vips6, &key, vip.as_ref()),
            },
            Change::Reply(target, reply) => match key(*target) {
                Key::V4(key) => write(&maps.replies4, &key, reply.as_ref()),
                Key::V6(key) => write(&maps.replies6, &key, reply.as_ref()),
            },
            Change::Probe(port, probe) => write(&maps.probes, &u32::from(*port), probe.as_ref()),
        }
    }
}

/// All values of an array.
fn values<V: Pod>(array: &Map<u32, V>) -> Result<Vec<V>, MapError> {
    (0..array.entries()).map(|number| Ok(array.get(&number)?.unwrap_or_else(V::zeroed))).collect()
}

/// All entries of a hash map.
fn entries<K: Pod, V: Pod, T: Ord>(
    map: &Map<K, V>,
    key: impl Fn(&K) -> T,
    entries: &mut BTreeMap<T, V>,
) -> Result<(), MapError> {
    map.for_each(|found, value| {
        entries.insert(key(found), *value);
    })
}

fn write<K: Pod, V: Pod>(map: &Map<K, V>, key: &K, value: Option<&V>) -> Result<(), MapError> {
    match value {
        Some(value) => map.set(key, value),
        // Someone else may have removed it.
        None => map.remove(key).map(|_| ()),
    }
}

fn reset_service(maps: &Maps, number: ServiceNumber) -> Result<(), MapError> {
    maps.outcomes.set_per_cpu(&u32::from(number.0), &OutcomeCounters([0; SLOTS]))?;
    for word in maps.service_state.value(usize::from(number.0)) {
        word.store(0, Ordering::SeqCst);
    }
    Ok(())
}

fn target4(key: &VipKey4) -> Target {
    Target { addr: IpAddr::V4(key.addr.into()), port: key.port.get(), protocol: key.protocol }
}

fn target6(key: &VipKey6) -> Target {
    Target { addr: IpAddr::V6(key.addr.into()), port: key.port.get(), protocol: key.protocol }
}

enum Key {
    V4(VipKey4),
    V6(VipKey6),
}

fn key(Target { addr, port, protocol }: Target) -> Key {
    let port = Be16::new(port);
    match addr {
        IpAddr::V4(addr) => Key::V4(VipKey { addr: addr.into(), port, protocol, pad: 0 }),
        IpAddr::V6(addr) => Key::V6(VipKey { addr: addr.into(), port, protocol, pad: 0 }),
    }
}
