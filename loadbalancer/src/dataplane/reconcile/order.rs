//! The order of writes that is safe under traffic.
//!
//! Invariant: whatever a packet finds, all that it refers to is there. So what is added is written from the inside out: path,
//! server, ring, service, replies, VIP; what is removed from the outside in: VIP, replies, service and ring, the server, its flows, and
//! only then its number. A path never changes while a server refers to it, nor a ring while a service does: a new one is written,
//! then one word leads to it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::path::Path;
use loadbalancer_common::ring::RingRef;
use loadbalancer_common::service::{MAX_TIERS, Service, mode};

use super::super::ids::{BackendNumber, PathNumber, RingNumber, ServiceNumber};
use super::change::Change;
use super::entry;
use super::error::ReconcileError;
use super::rings::Tier;
use super::state::State;
use super::tables::Tables;
use decide::plan::desired::{Desired, DesiredBackend, DesiredService};
use decide::ring::member::Member;
use model::ids::{ServerId, ServiceId};

impl State {
    /// Makes the tables say what is desired. After an error, what was done so far stands, and the next call goes on.
    pub(super) fn apply(&mut self, desired: &Desired, tables: &mut impl Tables) -> Result<(), ReconcileError> {
        // More flags than needed cost a look-up, fewer a packet.
        let flags = entry::flags(desired);
        self.write_settings(desired, self.found.settings.flags | flags, tables)?;
        let mut vips = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for service in &desired.services {
            let number = self.add_service(service, tables)?;
            entry::add_vips(service, number, &mut vips);
            if service.mode == mode::DNAT {
                entry::add_replies(service, number, &self.found, &self.numbers, &mut replies);
            }
        }
        // Last, as an address that is a service first must not become a mere source.
        entry::add_nat_sources(desired, &mut vips);
        let (new_replies, old_replies) = difference(&self.found.replies, replies);
        let (new_vips, old_vips) = difference(&self.found.vips, vips);
        let changes = new_replies.into_iter().map(|(target, reply)| Change::Reply(target, Some(reply)));
        let changes = changes.chain(new_vips.into_iter().map(|(target, vip)| Change::Vip(target, Some(vip))));
        let changes = changes.chain(old_vips.into_iter().map(|target| Change::Vip(target, None)));
        let mut changes = changes.chain(old_replies.into_iter().map(|target| Change::Reply(target, None)));
        changes.try_for_each(|change| self.write(&change, tables))?;
        self.write_probes(desired, tables)?;
        self.remove_services(desired, tables)?;
        self.remove_backends(desired, tables)?;
        self.write_settings(desired, flags, tables)
    }

    fn write_settings(
        &mut self,
        desired: &Desired,
        flags: u32,
        tables: &mut impl Tables,
    ) -> Result<(), ReconcileError> {
        let settings = entry::settings(desired, flags, &self.sizes);
        if settings != self.found.settings {
            self.write(&Change::Settings(settings), tables)?;
        }
        Ok(())
    }

    /// Servers, rings, service.
    fn add_service(
        &mut self,
        desired: &DesiredService,
        tables: &mut impl Tables,
    ) -> Result<ServiceNumber, ReconcileError> {
        let number = match self.numbers.service(desired.id) {
            Some(number) => number,
            None => self.new_service(desired.id, tables)?,
        };
        let mut changed = false;
        let mut members: [Vec<Member>; MAX_TIERS] = Default::default();
        for backend in &desired.backends {
            let (backend_number, wrote) = self.add_backend(desired, number, backend, tables)?;
            changed |= wrote;
            entry::add_member(backend_number, backend, &mut members);
        }
        let before = *self.found.service(number);
        let mut tiers = [RingRef::default(); MAX_TIERS];
        let mut retired = BTreeSet::new();
        for (place, members) in members.into_iter().enumerate() {
            let tier = Tier { service: number, place };
            let referred = self.rings.referred(tier, RingRef(before.tiers[place]));
            let live = members.iter().filter(|member| member.weight > 0).count() as u32;
            let ring = if live == 0 {
                self.rings.forget(tier, referred);
                None
            } else {
                Some(self.add_ring(tier, members, referred, tables)?)
            };
            retired.extend(referred.filter(|referred| ring != Some(*referred)));
            tiers[place] = ring.map_or_else(RingRef::default, |ring| self.rings.reference(ring, live));
        }
        let service = entry::service(&before, desired, tiers);
        if service != before {
            self.write(&Change::Service(number, service), tables)?;
            changed = true;
        }
        // Only now does no packet find them any more.
        retired.into_iter().for_each(|ring| self.rings.release(ring));
        if changed {
            self.write(&Change::Room(number), tables)?;
        }
        Ok(number)
    }

    fn new_service(&mut self, id: ServiceId, tables: &mut impl Tables) -> Result<ServiceNumber, ReconcileError> {
        let number = self.numbers.free_service(&self.found, self.sizes.services)?;
        self.write(&Change::ResetService(number), tables)?;
        self.numbers.insert_service(id, number);
        Ok(number)
    }

    /// Its number, and whether something was written.
    fn add_backend(
        &mut self,
        service: &DesiredService,
        service_number: ServiceNumber,
        desired: &DesiredBackend,
        tables: &mut impl Tables,
    ) -> Result<(BackendNumber, bool), ReconcileError> {
        let server = ServerId { service: service.id, backend: desired.id };
        let (number, is_new) = match self.numbers.backend(server) {
            Some(number) => (number, false),
            None => (self.new_backend(server, tables)?, true),
        };
        let mut paths = [0; PATH_SLOTS];
        if !desired.paths.is_empty() {
            for (slot, path_number) in paths.iter_mut().enumerate() {
                let path = &desired.paths[slot * desired.paths.len() / PATH_SLOTS];
                *path_number = self.add_path(path, tables)?.0;
            }
        }
        let before = *self.found.backend(number);
        let backend = entry::backend(&before, is_new, service_number, desired, paths);
        if backend == before {
            return Ok((number, false));
        }
        self.write(&Change::Backend(number, backend), tables)?;
        self.paths.release(&before, &self.found);
        Ok((number, true))
    }

    fn new_backend(&mut self, server: ServerId, tables: &mut impl Tables) -> Result<BackendNumber, ReconcileError> {
        let number = self.numbers.free_backend(&self.found, self.sizes.backends)?;
        self.write(&Change::ResetBackend(number), tables)?;
        self.numbers.insert_backend(server, number);
        Ok(number)
    }

    /// The number of a path with this content, written if it is new.
    fn add_path(&mut self, path: &Path, tables: &mut impl Tables) -> Result<PathNumber, ReconcileError> {
        if let Some(number) = self.paths.number(path) {
            return Ok(number);
        }
        let number = self.paths.next()?;
        self.write(&Change::Path(number, *path), tables)?;
        self.paths.insert_next(path);
        Ok(number)
    }

    /// Has a ring of these members, written where no service refers to. `referred`: what the tier's entry leads to.
    fn add_ring(
        &mut self,
        tier: Tier,
        members: Vec<Member>,
        referred: Option<RingNumber>,
        tables: &mut impl Tables,
    ) -> Result<RingNumber, ReconcileError> {
        if let Some(ring) = self.rings.built_of(tier, &members) {
            return Ok(ring);
        }
        let built = self.rings.built(tier);
        let content = self.rings.deal(members);
        // Of other members may come the same, and what an earlier controller has left may be it.
        let same = built.or(referred).filter(|ring| tables.ring(*ring).eq(content.words.iter().copied()));
        let ring = match same {
            Some(ring) => ring,
            None => {
                let ring = self.rings.next()?;
                self.write(&Change::Ring(ring, content.words.clone()), tables)?;
                ring
            }
        };
        self.rings.insert(tier, ring, content, referred);
        Ok(ring)
    }

    /// Our own probes: what is not wanted any more goes first, as a port may stand for another server now.
    fn write_probes(&mut self, desired: &Desired, tables: &mut impl Tables) -> Result<(), ReconcileError> {
        let (new, old) = difference(&self.found.probes, entry::probes(desired, &self.found, &self.numbers));
        let changes = old.into_iter().map(|port| Change::Probe(port, None));
        let mut changes = changes.chain(new.into_iter().map(|(port, probe)| Change::Probe(port, Some(probe))));
        Ok(changes.try_for_each(|change| self.write(&change, tables))?)
    }

    /// Services that are not desired, with their rings.
    fn remove_services(&mut self, desired: &Desired, tables: &mut impl Tables) -> Result<(), ReconcileError> {
        let wanted: HashSet<ServiceId> = desired.services.iter().map(|service| service.id).collect();
        let gone: Vec<_> = self.numbers.services().filter(|(id, _)| !wanted.contains(id)).collect();
        for (id, number) in gone {
            let before = *self.found.service(number);
            let tiers = (0..MAX_TIERS).map(|place| Tier { service: number, place });
            self.write(&Change::Service(number, Service::default()), tables)?;
            for tier in tiers {
                let referred = self.rings.referred(tier, RingRef(before.tiers[tier.place]));
                self.rings.forget(tier, referred);
                referred.into_iter().for_each(|ring| self.rings.release(ring));
            }
            self.numbers.remove_service(id);
        }
        Ok(())
    }

    /// Servers that are not desired: switched off, their flows forgotten, then their numbers given up.
    fn remove_backends(&mut self, desired: &Desired, tables: &mut impl Tables) -> Result<(), ReconcileError> {
        let id =
            |service: &DesiredService, backend: &DesiredBackend| ServerId { service: service.id, backend: backend.id };
        let all = |service: &'_ DesiredService| service.backends.iter().map(|it| id(service, it)).collect::<Vec<_>>();
        let wanted: HashSet<ServerId> = desired.services.iter().flat_map(all).collect();
        let services: HashSet<ServiceId> = desired.services.iter().map(|service| service.id).collect();
        // Also those that a crash left half removed.
        let known: HashMap<BackendNumber, ServerId> =
            self.numbers.backends().map(|(server, number)| (number, server)).collect();
        let is_unwanted = |number: &BackendNumber| match known.get(number) {
            Some(server) if wanted.contains(server) => false,
            // A flow that began after it was looked whether there are any: the server is out of all rings now, and goes once
            // the flow has ended.
            Some(server) => !services.contains(&server.service) || tables.active(*number) == 0,
            None => true,
        };
        let used = (1..self.found.backends.len() as u16).map(BackendNumber);
        let used = used.filter(|number| self.found.backend(*number).identity != 0);
        let unwanted: HashSet<BackendNumber> = used.filter(is_unwanted).collect();
        if unwanted.is_empty() {
            return Ok(());
        }
        for number in &unwanted {
            let before = *self.found.backend(*number);
            self.write(&Change::Backend(*number, Backend { flags: 0, ..before }), tables)?;
            self.paths.release(&before, &self.found);
        }
        self.write(&Change::ForgetFlows(unwanted.clone()), tables)?;
        for number in &unwanted {
            self.write(&Change::Backend(*number, Backend::default()), tables)?;
            self.write(&Change::ResetActive(*number), tables)?;
        }
        self.numbers.remove_backends(&unwanted);
        Ok(())
    }
}

/// What is to be set, and what is to go.
fn difference<K: Ord + Copy, V: PartialEq>(found: &BTreeMap<K, V>, wanted: BTreeMap<K, V>) -> (Vec<(K, V)>, Vec<K>) {
    let old = found.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    let new = wanted.into_iter().filter(|(key, value)| found.get(key) != Some(value)).collect();
    (new, old)
}
