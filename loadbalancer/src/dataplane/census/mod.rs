//! Counting flows, once a second.
//!
//! The packet path counts active flows itself; what it cannot see (flows that fall silent, entries that the kernel
//! evicts) is corrected by this count.

pub mod walk;
mod drift;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loadbalancer_common::settings::Settings;

use super::clock::ticks_now;
use super::error::MapError;
use super::ids::BackendNumber;
use super::maps::Maps;
use drift::DriftCorrection;
use walk::FlowCounts;

/// The walk over the `nat` flows may take this part of the time at most.
const NAT_SHARE: u32 = 20;

/// What a count must know of servers.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// When the health of some last changed, in ticks: see [`walk::affinity`].
    pub suspect: HashMap<BackendNumber, u32>,
    pub down: HashSet<BackendNumber>,
    /// Some are of `nat` services.
    pub has_nat: bool,
}

/// What was counted, and what the packet path's counters are corrected by.
#[derive(Debug)]
pub struct Census {
    interval: Duration,
    affinity: FlowCounts,
    nat: FlowCounts,
    nat_due: Instant,
    drift: DriftCorrection,
}

impl Census {
    /// `interval`: how often flows are counted.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            affinity: FlowCounts::default(),
            nat: FlowCounts::default(),
            nat_due: now,
            drift: DriftCorrection::default(),
        }
    }

    /// Counts flows, removes idle ones, and corrects the packet path's counters. True: some were removed, so that servers may have
    /// room.
    ///
    /// # Errors
    /// A map cannot be listed, or an entry cannot be removed.
    pub fn count(
        &mut self,
        maps: &Maps,
        settings: &Settings,
        servers: &Servers,
        now: Instant,
    ) -> Result<bool, MapError> {
        let before = counters(maps);
        self.affinity = walk::affinity(maps, settings, ticks_now(), &servers.suspect);
        let mut active = self.affinity.active.clone();
        let mut expired = self.affinity.expired;
        if servers.has_nat {
            if now < self.nat_due {
                // Without the `nat` flows there is nothing to compare the counters with.
                return Ok(false);
            }
            let mut nat = FlowCounts { active: vec![0; before.len()], ..FlowCounts::default() };
            walk::nat(maps, settings, ticks_now(), &mut nat)?;
            self.nat_due = now + self.interval.max(now.elapsed() * NAT_SHARE) - self.interval / 4;
            active.iter_mut().zip(&nat.active).for_each(|(all, nat)| *all += nat);
            expired += nat.expired;
            self.nat = nat;
        }
        let corrections = self.drift.corrections(&before, &counters(maps), &active, &servers.down);
        for (backend, correction) in corrections {
            maps.active_counter(backend).fetch_add(correction as u64, Ordering::SeqCst);
        }
        Ok(expired > 0)
    }

    /// Entries in the affinity table.
    pub fn affinity_entries(&self) -> u64 {
        self.affinity.affinity.iter().skip(1).sum()
    }

    /// Flows of `nat`.
    pub fn nat_flows(&self) -> u64 {
        self.nat.nat.iter().sum()
    }
}

/// The packet path's counters of active flows, by backend number.
fn counters(maps: &Maps) -> Vec<i64> {
    maps.active.words().iter().map(|word| word.load(Ordering::Relaxed) as i64).collect()
}
