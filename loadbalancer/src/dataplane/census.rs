//! Counting and expiring flows: a walk over the affinity table and the tracking maps.
//!
//! The packet path counts active flows itself; what it cannot see (flows that fall silent, entries that the kernel
//! evicts) is corrected by this count.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytemuck::Pod;
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::clock::{TIME_MASK, age, ticks};
use loadbalancer_common::conntrack::{TO_CLIENT, TO_SERVER, Translation, Tuple};
use loadbalancer_common::settings::Settings;

use super::kernel::Maps;
use super::map::{Map, MapError};

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Active flows by backend number.
    pub active: Vec<u32>,
    /// Entries in the affinity table, by state.
    pub affinity: [u64; 8],
    /// Flows of `nat`, by state.
    pub nat: [u64; 8],
    /// Entries that had outlived their time and were removed.
    pub expired: u64,
}

impl Census {
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

/// Ticks since boot, by the clock that the packet path uses.
pub fn now() -> u32 {
    ticks(monotonic().as_nanos() as u64)
}

/// The monotonic clock, by which the packet path tells times.
pub fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Counts the affinity table's flows and removes those that are idle for longer than their state allows.
///
/// `suspect` has the tick at which a server's health last changed: what was not heard of since may have died with it
/// (where replies do not pass here, nobody tells), and does not count as active until it is.
pub fn affinity(maps: &Maps, settings: &Settings, now: u32, suspect: &HashMap<u16, u32>) -> Census {
    let mut census = Census::with_room_for(maps.backends.entries() as usize);
    // Ticks since then, by backend; beyond what an entry's time can tell, nothing is suspect any more.
    let mut suspect_age = vec![u16::MAX; maps.backends.entries() as usize];
    for (backend, since) in suspect {
        if let Some(age) = suspect_age.get_mut(*backend as usize) {
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
            census.expired += 1;
            continue;
        }
        census.affinity[entry.state() as usize & 7] += 1;
        if suspect_age.get(entry.backend() as usize).is_none_or(|suspect| age(now, entry.time()) < *suspect) {
            census.add(entry.backend(), entry.state());
        }
    }
    census
}

/// Adds the flows of `nat` to a census, and removes the idle ones.
pub fn nat(maps: &Maps, settings: &Settings, now: u32, census: &mut Census) -> Result<(), MapError> {
    nat_family(&maps.conntrack4, settings, now, census)?;
    nat_family(&maps.conntrack6, settings, now, census)
}

fn nat_family<A: Copy + PartialEq>(
    map: &Map<Tuple<A>, Translation<A>>,
    settings: &Settings,
    now: u32,
    census: &mut Census,
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
            census.nat[entry.state as usize & 7] += 1;
            census.add(entry.backend, entry.state as u8);
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
        census.expired += 1;
        census.nat[entry.state as usize & 7] -= 1;
        if state::is_active(entry.state as u8)
            && let Some(active) = census.active.get_mut(entry.backend as usize)
        {
            *active = active.saturating_sub(1);
        }
    }
    Ok(())
}

/// Removes every entry of some backends.
pub fn forget(maps: &Maps, backends: &HashSet<u16>) -> Result<(), MapError> {
    for word in maps.affinity.words() {
        let mut entry = Entry(word.load(Ordering::Relaxed));
        while !entry.is_free() && backends.contains(&entry.backend()) {
            match word.compare_exchange(entry.0, 0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => entry = Entry(found),
            }
        }
    }
    forget_family(&maps.conntrack4, backends)?;
    forget_family(&maps.conntrack6, backends)
}

fn forget_family<A: Copy>(map: &Map<Tuple<A>, Translation<A>>, backends: &HashSet<u16>) -> Result<(), MapError>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let mut keys = Vec::new();
    map.for_each(|key, entry| {
        if backends.contains(&entry.backend) {
            keys.push(*key);
        }
    })?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}
