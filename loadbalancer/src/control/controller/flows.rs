//! Once a second: how many flows each server has, and who has too many.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use loadbalancer_common::backend::Backend;

use super::super::desire::ServerId;
use super::super::hot::{self, Load};
use super::{Controller, ServerState, TICK};
use crate::dataplane::census::{self, Census};
use crate::dataplane::reconcile::ReconcileError;
use crate::health::Health;

/// The walk over the `nat` flows may take this part of the time at most.
const NAT_CENSUS_SHARE: u32 = 20;

impl Controller {
    pub(super) fn count(&mut self, now: Instant) -> Result<(), ReconcileError> {
        let settings = *self.reconciler.settings();
        let maps = &self.reconciler.kernel().maps;
        let count = |maps: &crate::dataplane::kernel::Maps| -> Vec<i64> {
            maps.active.words().iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed) as i64).collect()
        };
        let before = count(maps);
        let number = |id: &ServerId| self.reconciler.numbers.backends.get(&(id.service, id.backend)).copied();
        let suspect = self.servers.iter().filter_map(|(id, state)| Some((number(id)?, state.suspect_since?))).collect();
        let is_down = |(id, state): (&ServerId, &ServerState)| {
            (state.standing.health == Some(Health::Down)).then(|| number(id)).flatten()
        };
        let down: HashSet<u16> = self.servers.iter().filter_map(is_down).collect();
        let mut census = census::affinity(maps, &settings, census::now(), &suspect);
        let has_nat =
            self.reconciler.numbers.services.values().any(|id| {
                self.reconciler.service(*id).is_some_and(|s| s.mode == loadbalancer_common::service::mode::NAT)
            });
        if has_nat {
            if now < self.nat_census_due {
                // Without the `nat` flows there is nothing to compare the counters with.
                self.census = census;
                return Ok(());
            }
            let mut nat = Census { active: vec![0; before.len()], ..Census::default() };
            census::nat(maps, &settings, census::now(), &mut nat)?;
            self.nat_census_due = now + TICK.max(now.elapsed() * NAT_CENSUS_SHARE) - TICK / 4;
            census.active.iter_mut().zip(&nat.active).for_each(|(all, nat)| *all += nat);
            census.expired += nat.expired;
            self.nat_census = nat;
        }
        let after = count(maps);
        let mut drift = HashMap::new();
        for (id, counted) in census.active.iter().enumerate().skip(1) {
            let error = i64::from(*counted) - (before[id] + after[id]) / 2;
            // What changed during the walk may be seen or not.
            if error.abs() <= (after[id] - before[id]).abs() {
                continue;
            }
            let id = id as u16;
            let last = self.drift.get(&id).copied().unwrap_or(0);
            let is_down = down.contains(&id);
            if last.signum() == error.signum() || is_down {
                // Two counts agree: the smaller one is safe. A server that is down gets no flows, so one count will do;
                // it must not seem full of those that died with it when it comes back.
                let correction = if error.abs() < last.abs() || is_down { error } else { last };
                let word = &maps.active.words()[id as usize];
                word.fetch_add(correction as u64, std::sync::atomic::Ordering::SeqCst);
            } else {
                drift.insert(id, error);
            }
        }
        self.drift = drift;
        if census.expired > 0 {
            let services: Vec<u16> = self.reconciler.numbers.services.values().copied().collect();
            services.into_iter().for_each(|id| self.reconciler.room(id));
        }
        self.census = census;
        Ok(())
    }

    pub(super) fn mark_hot(&mut self) -> Result<(), ReconcileError> {
        let mut marks = Vec::new();
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let mut tiers: HashMap<(u64, u8), Vec<(u16, Load)>> = HashMap::new();
            for (server, id) in service.servers.iter().zip(ids) {
                let Some(number) = self.reconciler.numbers.backends.get(&(id.service, id.backend)) else {
                    continue;
                };
                let Some(backend) = self.reconciler.backend(*number) else {
                    continue;
                };
                if backend.has(Backend::ACCEPTS) {
                    let load = Load { active: self.reconciler.active(*number), weight: backend.weight };
                    tiers.entry((id.service, server.tier)).or_default().push((*number, load));
                }
            }
            for members in tiers.values() {
                let loads: Vec<Load> = members.iter().map(|(_, load)| *load).collect();
                marks.extend(members.iter().map(|(id, _)| *id).zip(hot::marks(&loads)));
            }
        }
        marks.into_iter().try_for_each(|(id, mark)| self.reconciler.set_hot_mark(id, mark))
    }
}
