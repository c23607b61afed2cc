//! A walk over the affinity table and the tracking maps, which counts flows and expires idle ones.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::clock::{TIME_MASK, age};
use loadbalancer_common::conntrack::{TO_CLIENT, TO_SERVER, Translation, Tuple};
use loadbalancer_common::settings::Settings;

use super::super::error::MapError;
use super::super::ids::BackendNumber;
use super::super::maps::{Map, Maps};

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Active flows by backend number.
    pub active: Vec<u32>,
    /// Entries in the affinity table, by state.
    pub affinity: [u64; 8],
    /// Flows of `nat`, by state.
    pub nat: [u64; 8],
    /// Entries that had outlived their time and were removed.
    pub expired: u64,
}

impl FlowCounts {
    fn with_room_for(backends: usize) -> Self {
        Self { active: vec![0; backends], ..Self::default() }
    }

    fn add(&mut self, backend: u16, flow_state: u8) {
        if state::is_active(flow_state)
            && let Some(active) = self.active.get_mut(backend as usize)
        {
            *active += 1;
        }
    }
}

/// Counts the affinity table's flows and removes those that are idle for longer than their state allows.
///
/// `suspect` has the tick at which a server's health last changed: what was not heard of since may have died with it
/// (where replies do not pass here, nobody tells), and does not count as active until it is.
pub fn affinity(maps: &Maps, settings: &Settings, now: u32, suspect: &HashMap<BackendNumber, u32>) -> FlowCounts {
    let mut counts = FlowCounts::with_room_for(maps.backends.entries() as usize);
    // Ticks since then, by backend; beyond what an entry's time can tell, nothing is suspect any more.
    let mut suspect_age = vec![u16::MAX; maps.backends.entries() as usize];
    for (backend, since) in suspect {
        if let Some(age) = suspect_age.get_mut(usize::from(backend.0)) {
            *age = u16::try_from(now.saturating_sub(*since)).unwrap_or(u16::MAX);
        }
    }
    let now = now as u16 & TIME_MASK;
    for word in maps.affinity.words() {
        let entry = Entry(word.load(Ordering::Relaxed));
        if entry.is_free() {
            continue;
        }
        if entry.is_expired(settings, now)
            && word.compare_exchange(entry.0, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            counts.expired += 1;
            continue;
        }
        counts.affinity[entry.state() as usize & 7] += 1;
        if suspect_age.get(entry.backend() as usize).is_none_or(|suspect| age(now, entry.time()) < *suspect) {
            counts.add(entry.backend(), entry.state());
        }
    }
    counts
}

/// Adds the flows of `nat` to what was counted, and removes the idle ones.
///
/// # Errors
/// A map cannot be listed, or an entry cannot be removed.
pub fn nat(maps: &Maps, settings: &Settings, now: u32, counts: &mut FlowCounts) -> Result<(), MapError> {
    nat_family(&maps.conntrack4, settings, now, counts)?;
    nat_family(&maps.conntrack6, settings, now, counts)
}

fn nat_family<A: Copy + PartialEq>(
    map: &Map<Tuple<A>, Translation<A>>,
    settings: &Settings,
    now: u32,
    counts: &mut FlowCounts,
) -> Result<(), MapError>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let limit = |flow_state: u32| u32::from(settings.timeouts[flow_state as usize & 7]);
    let idle = |entry: &Translation<A>| now.saturating_sub(entry.time);
    // A flow's two entries are written one after the other: a lone one this young may be about to get its partner.
    const LONE: u32 = 2;
    let mut old = Vec::new();
    map.for_each(|key, entry| match entry.direction {
        TO_SERVER => {
            counts.nat[entry.state as usize & 7] += 1;
            counts.add(entry.backend, entry.state as u8);
            if idle(entry) > limit(entry.state) {
                old.push((*key, *entry));
            }
        }
        TO_CLIENT if idle(entry) > LONE => old.push((*key, *entry)),
        _ => {}
    })?;
    for (key, entry) in old {
        let partner_key = entry.reverse_key(key.protocol);
        // The partner may have been evicted, and its place taken by another flow's.
        let partner = map.get(&partner_key)?.filter(|partner| partner.reverse_key(key.protocol) == key);
        if entry.direction == TO_CLIENT {
            // It goes with the entry of the other direction; alone it would hold its port for ever.
            if partner.is_none() {
                map.remove(&key)?;
            }
            continue;
        }
        if partner.as_ref().is_some_and(|reply| idle(reply) <= limit(entry.state)) {
            continue;
        }
        // It may have come to life since the list was taken.
        if map.get(&key)?.is_some_and(|current| idle(&current) <= limit(current.state)) {
            continue;
        }
        map.remove(&key)?;
        if partner.is_some() {
            map.remove(&partner_key)?;
        }
        counts.expired += 1;
        counts.nat[entry.state as usize & 7] -= 1;
        if state::is_active(entry.state as u8)
            && let Some(active) = counts.active.get_mut(entry.backend as usize)
        {
            *active = active.saturating_sub(1);
        }
    }
    Ok(())
}

/// Removes every entry of some backends.
///
/// # Errors
/// A map cannot be listed, or an entry cannot be removed.
pub fn forget(maps: &Maps, backends: &HashSet<BackendNumber>) -> Result<(), MapError> {
    for word in maps.affinity.words() {
        let mut entry = Entry(word.load(Ordering::Relaxed));
        while !entry.is_free() && backends.contains(&BackendNumber(entry.backend())) {
            match word.compare_exchange(entry.0, 0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => entry = Entry(found),
            }
        }
    }
    forget_family(&maps.conntrack4, backends)?;
    forget_family(&maps.conntrack6, backends)
}

fn forget_family<A: Copy>(
    map: &Map<Tuple<A>, Translation<A>>,
    backends: &HashSet<BackendNumber>,
) -> Result<(), MapError>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let mut keys = Vec::new();
    map.for_each(|key, entry| {
        if backends.contains(&BackendNumber(entry.backend)) {
            keys.push(*key);
        }
    })?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}
