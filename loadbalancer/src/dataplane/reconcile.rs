//! Brings the kernel's maps to what is wanted: desired state minus actual state, in the order that is safe under traffic.
//!
//! Added from the inside out: path, backend, ring, service, VIP; removed from the outside in. So whatever a packet finds,
//! all that it refers to is there. The actual state is read from the kernel at the start, so a new controller goes on
//! where another stopped, and again for every full comparison.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable;
use loadbalancer_common::backend::{Backend, BackendCounters, PATH_SLOTS};
use loadbalancer_common::net::{AnyAddr, Be16, protocol};
use loadbalancer_common::outcome::{OutcomeCounters, SLOTS as OUTCOME_SLOTS};
use loadbalancer_common::path::Path;
use loadbalancer_common::probe::Probe;
use loadbalancer_common::ring::{RingBlock, RingRef, SLOTS};
use loadbalancer_common::service::{MAX_TIERS, Reply, Service, Vip, VipKey, VipKey4, VipKey6, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::next_mask;

use super::census;
use super::desired::{Desired, DesiredBackend, DesiredProbe, DesiredService};
use super::kernel::{Kernel, Maps};
use super::map::MapError;
use super::signals::Source;
use crate::ring::{self, Member};

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(
        "no room for {what}: all {limit} are in use\nhelp: raise `{key}` in [limits] and start anew with \
         `on_incompatible = \"replace\"`"
    )]
    Full { what: &'static str, limit: u32, key: &'static str },
}

/// Words of one ring block.
const BLOCK_WORDS: usize = size_of::<RingBlock>() / size_of::<u64>();

/// Address, port (zero: any) and protocol.
type Target = (IpAddr, u16, u8);

/// What the maps hold.
#[derive(Debug, Default, PartialEq)]
struct Actual {
    settings: Settings,
    /// By number; unused ones are zero.
    services: Vec<Service>,
    backends: Vec<Backend>,
    vips: BTreeMap<Target, Vip>,
    replies: BTreeMap<Target, Reply>,
    /// By source port.
    probes: BTreeMap<u32, Probe>,
}

/// The ring of one tier of a service.
#[derive(Debug)]
struct Built {
    members: Vec<Member>,
    region: u32,
    digest: u64,
}

/// How a service and its backends are numbered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// By identity of the service.
    pub services: HashMap<u64, u16>,
    /// By identity of service and backend.
    pub backends: HashMap<(u64, u64), u16>,
}

#[derive(Debug)]
pub struct Reconciler {
    kernel: Kernel,
    actual: Actual,
    paths: HashMap<u32, Path>,
    path_numbers: HashMap<[u8; size_of::<Path>()], u32>,
    free_paths: VecDeque<u32>,
    rings: HashMap<(u16, usize), Built>,
    free_regions: VecDeque<u32>,
    pub numbers: Numbers,
    /// See [`Self::sources`]: they are asked for often, and change only here.
    sources: Vec<Source>,
    /// Map writes until now.
    pub writes: u64,
}

impl Reconciler {
    /// Takes the kernel's state as it is.
    pub fn new(kernel: Kernel) -> Result<Self, ReconcileError> {
        let mut reconciler = Self {
            actual: Actual::read(&kernel.maps)?,
            paths: HashMap::new(),
            path_numbers: HashMap::new(),
            free_paths: VecDeque::new(),
            rings: HashMap::new(),
            free_regions: VecDeque::new(),
            numbers: Numbers::default(),
            sources: Vec::new(),
            writes: 0,
            kernel,
        };
        reconciler.recount()?;
        Ok(reconciler)
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    pub fn settings(&self) -> &Settings {
        &self.actual.settings
    }

    /// The servers that a service has in the kernel.
    pub fn backends_of(&self, service: u16) -> impl Iterator<Item = (u16, &Backend)> {
        let backends = self.actual.backends.iter().enumerate();
        let is_server = |backend: &Backend| backend.has(Backend::PRESENT) && !backend.has(Backend::LOCAL);
        backends
            .filter(move |(_, backend)| backend.service == service && is_server(backend))
            .map(|(id, backend)| (id as u16, backend))
    }

    pub fn backend(&self, id: u16) -> Option<&Backend> {
        self.actual.backends.get(id as usize)
    }

    pub fn service(&self, id: u16) -> Option<&Service> {
        self.actual.services.get(id as usize)
    }

    /// Which of a backend's channels each of its path slots has.
    pub fn channels_of(&self, backend: u16) -> [Option<u8>; PATH_SLOTS] {
        let paths = self.actual.backends.get(usize::from(backend)).map_or([0; PATH_SLOTS], |backend| backend.paths);
        paths.map(|id| self.paths.get(&id).map(|path| path.channel))
    }

    /// How many slots each backend has in the ring of a tier.
    pub fn slots_of(&self, service: u16, tier: u8) -> HashMap<u16, u32> {
        let mut slots = HashMap::new();
        let tiers = self.actual.services.get(usize::from(service)).map(|service| service.tiers);
        let ring = RingRef(tiers.map_or(0, |tiers| tiers[usize::from(tier) % MAX_TIERS]));
        if ring.members() != 0 {
            let words = self.region(ring.block() / self.kernel.sizes.ring_blocks());
            let numbers = words.flat_map(bytemuck::cast::<u64, [u16; 4]>).take(SLOTS as usize);
            numbers.for_each(|number| *slots.entry(number).or_default() += 1);
        }
        slots
    }

    /// A path as the kernel has it.
    pub fn path(&self, id: u32) -> Option<&Path> {
        self.paths.get(&id)
    }

    /// Whose passive signals there may be: every server with the channels of its paths.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    fn find_sources(&self) -> impl Iterator<Item = Source> {
        self.numbers.backends.iter().flat_map(move |(server, backend)| {
            let paths = self.actual.backends[*backend as usize].paths;
            let channel = move |place: usize| {
                // Slots of the same path lie beside each other.
                let is_new = place == 0 || paths[place] != paths[place - 1];
                let path = is_new.then(|| self.paths.get(&paths[place])).flatten()?;
                let mut before = paths[..place].iter().filter_map(|id| self.paths.get(id));
                before.all(|other| other.channel != path.channel).then_some(path.channel)
            };
            let source = move |channel| Source { server: *server, backend: *backend, channel };
            (0..PATH_SLOTS).filter_map(channel).map(source)
        })
    }

    pub fn active(&self, backend: u16) -> u32 {
        let active = self.kernel.maps.active.words()[backend as usize].load(Ordering::Relaxed) as i64;
        active.clamp(0, i64::from(u32::MAX)) as u32
    }

    /// Reads everything anew. Gives the number of differences to what was believed, which the next [`Self::apply`] mends.
    pub fn compare(&mut self) -> Result<usize, ReconcileError> {
        let found = Actual::read(&self.kernel.maps)?;
        let believed = &self.actual;
        let mut differences = usize::from(found.settings != believed.settings)
            + found.services.iter().zip(&believed.services).filter(|(found, believed)| found != believed).count()
            + found.backends.iter().zip(&believed.backends).filter(|(found, believed)| found != believed).count()
            + different(&found.vips, &believed.vips)
            + different(&found.replies, &believed.replies)
            + different(&found.probes, &believed.probes);
        for (id, believed) in &self.paths {
            let found = self.kernel.maps.paths.get(id)?;
            if found.as_ref() != Some(believed) {
                self.kernel.maps.paths.set(id, believed)?;
                differences += 1;
            }
        }
        let damaged: Vec<_> = self
            .rings
            .iter()
            .filter(|(_, built)| digest(self.region(built.region)) != built.digest)
            .map(|(key, _)| *key)
            .collect();
        for key in damaged {
            // Forgotten, so that it is built anew.
            if let Some(built) = self.rings.remove(&key) {
                self.free_regions.push_back(built.region);
            }
            differences += 1;
        }
        self.actual = found;
        Ok(differences)
    }

    /// Numbers, paths and ring regions in use, from the services and backends as read.
    fn recount(&mut self) -> Result<(), ReconcileError> {
        let maps = &self.kernel.maps;
        let mut used_paths = BTreeSet::new();
        for backend in self.actual.backends.iter().filter(|backend| backend.has(Backend::PRESENT)) {
            used_paths.extend(backend.paths.iter().copied().filter(|id| *id != 0));
        }
        for id in &used_paths {
            if let Some(path) = maps.paths.get(id)? {
                self.paths.insert(*id, path);
                self.path_numbers.insert(bytemuck::cast(path), *id);
            }
        }
        self.free_paths = (1..maps.paths.entries()).filter(|id| !used_paths.contains(id)).collect();
        let region_blocks = self.kernel.sizes.ring_blocks();
        let used_regions: HashSet<u32> = self
            .actual
            .services
            .iter()
            .flat_map(|service| service.tiers)
            .map(RingRef)
            .filter(|ring| ring.members() != 0)
            .map(|ring| ring.block() / region_blocks)
            .collect();
        self.free_regions = (0..self.kernel.sizes.rings).filter(|region| !used_regions.contains(region)).collect();
        for (id, service) in self.actual.services.iter().enumerate().filter(|(_, service)| service.mode != 0) {
            self.numbers.services.insert(service.identity, id as u16);
        }
        for (id, backend) in self.actual.backends.iter().enumerate().filter(|(_, b)| b.has(Backend::PRESENT)) {
            let service = self.actual.services[backend.service as usize].identity;
            self.numbers.backends.insert((service, backend.identity), id as u16);
        }
        Ok(())
    }

    /// Makes the maps say what is desired. After an error, what was done so far stands, and the next call goes on.
    pub fn apply(&mut self, desired: &Desired) -> Result<(), ReconcileError> {
        let result = self.apply_all(desired);
        self.sources = self.find_sources().collect();
        result
    }

    fn apply_all(&mut self, desired: &Desired) -> Result<(), ReconcileError> {
        // More flags than needed cost a look-up, fewer a packet.
        let flags = flags(desired);
        self.write_settings(desired, self.actual.settings.flags | flags)?;
        let mut vips = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for service in &desired.services {
            let id = self.add_service(service)?;
            targets(service, id, &mut vips);
            if service.mode == mode::DNAT {
                self.replies(service, id, &mut replies);
            }
        }
        // An address that is a service first must not become a mere source.
        for source in desired.services.iter().flat_map(DesiredService::nat_sources) {
            for number in [protocol::TCP, protocol::UDP, icmp(source)] {
                vips.entry((source, 0, number)).or_insert(Vip { service: 0, kind: Vip::NAT_SOURCE, pad: 0 });
            }
        }
        self.write_replies(&replies)?;
        self.write_vips(&vips)?;
        self.remove_vips(&vips)?;
        self.remove_replies(&replies)?;
        self.write_probes(desired)?;
        self.remove_rest(desired)?;
        self.write_settings(desired, flags)
    }

    fn write_settings(&mut self, desired: &Desired, flags: u32) -> Result<(), ReconcileError> {
        let settings = Settings {
            seed: desired.seed,
            affinity_mask: self.kernel.sizes.buckets() - 1,
            flags,
            timeouts: desired.timeouts,
            zero: 0,
            observed_mask: self.kernel.sizes.observed() - 1,
            prober: desired.prober.unwrap_or(0),
        };
        if settings != self.actual.settings {
            self.kernel.maps.settings.set(&0, &settings)?;
            self.actual.settings = settings;
            self.writes += 1;
        }
        Ok(())
    }

    /// Backends, rings, service.
    fn add_service(&mut self, desired: &DesiredService) -> Result<u16, ReconcileError> {
        let id = match self.numbers.services.get(&desired.identity) {
            Some(id) => *id,
            None => self.new_service(desired.identity)?,
        };
        let mut changed = false;
        let mut tiers: [Vec<Member>; MAX_TIERS] = Default::default();
        for backend in &desired.backends {
            let (number, wrote) = self.add_backend(desired, id, backend)?;
            changed |= wrote;
            if backend.ring > 0 || backend.nominal > 0 {
                tiers[backend.tier as usize % MAX_TIERS].push(Member {
                    backend: number,
                    id: backend.identity,
                    nominal: backend.nominal,
                    weight: backend.ring,
                });
            }
            if let Some((tier, weight)) = backend.help {
                // Nominally it is not there, so that it takes slots only for the time that it helps.
                let member = Member { backend: number, id: backend.identity, nominal: 0, weight };
                tiers[usize::from(tier) % MAX_TIERS].push(member);
            }
        }
        let mut service = self.actual.services[id as usize];
        let mut retired = Vec::new();
        for (tier, members) in tiers.into_iter().enumerate() {
            let live = members.iter().filter(|member| member.weight > 0).count();
            if live == 0 {
                retired.extend(self.rings.remove(&(id, tier)).map(|built| built.region));
                retired.extend(self.found_region(service.tiers[tier]));
                service.tiers[tier] = 0;
                continue;
            }
            if self.rings.get(&(id, tier)).is_some_and(|built| built.members == members) {
                let region = self.rings[&(id, tier)].region;
                service.tiers[tier] = RingRef::new(region * self.kernel.sizes.ring_blocks(), live as u32).0;
                continue;
            }
            let old = self.rings.remove(&(id, tier)).map(|built| built.region);
            let old = old.or_else(|| self.found_region(service.tiers[tier]));
            let (region, digest) = self.publish(&members, old)?;
            retired.extend(old.filter(|old| *old != region));
            service.tiers[tier] = RingRef::new(region * self.kernel.sizes.ring_blocks(), live as u32).0;
            self.rings.insert((id, tier), Built { members, region, digest });
        }
        service.tier_count = service.tiers.iter().rposition(|ring| *ring != 0).map_or(0, |last| last as u8 + 1);
        service.mode = desired.mode;
        service.flags = desired.flags;
        (service.nat_port_first, service.nat_port_last) = desired.nat_ports;
        service.sample_mask = next_mask(service.sample_mask, desired.sample_mask);
        service.identity = desired.identity;
        if service != self.actual.services[id as usize] {
            self.kernel.maps.services.set(&u32::from(id), &service)?;
            self.actual.services[id as usize] = service;
            self.writes += 1;
            changed = true;
        }
        // Only now does no packet find them any more.
        self.free_regions.extend(retired);
        if changed {
            self.room(id);
        }
        Ok(id)
    }

    /// The region of a ring that an earlier controller has left.
    fn found_region(&self, ring: u64) -> Option<u32> {
        let ring = RingRef(ring);
        let region = ring.block() / self.kernel.sizes.ring_blocks();
        (ring.members() != 0 && !self.free_regions.contains(&region)).then_some(region)
    }

    /// New flows may find room in the service again.
    pub fn room(&self, service: u16) {
        // The epoch is the first word of the service's state.
        self.kernel.maps.service_state.value(service as usize)[0].fetch_add(1, Ordering::SeqCst);
    }

    fn new_service(&mut self, identity: u64) -> Result<u16, ReconcileError> {
        let limit = self.kernel.sizes.services;
        let free = (1..=limit as u16).find(|id| self.actual.services[*id as usize].mode == 0);
        let id = free.ok_or(ReconcileError::Full { what: "another service", limit, key: "services" })?;
        let zero = OutcomeCounters([0; OUTCOME_SLOTS]);
        self.kernel.maps.outcomes.set_per_cpu(&u32::from(id), &zero)?;
        for word in self.kernel.maps.service_state.value(id as usize) {
            word.store(0, Ordering::SeqCst);
        }
        self.numbers.services.insert(identity, id);
        Ok(id)
    }

    fn add_backend(
        &mut self,
        service: &DesiredService,
        service_id: u16,
        desired: &DesiredBackend,
    ) -> Result<(u16, bool), ReconcileError> {
        let key = (service.identity, desired.identity);
        let (id, is_new) = match self.numbers.backends.get(&key) {
            Some(id) => (*id, false),
            None => (self.new_backend(key)?, true),
        };
        let before = self.actual.backends[id as usize];
        let mut paths = [0; PATH_SLOTS];
        if !desired.paths.is_empty() {
            for (slot, id) in paths.iter_mut().enumerate() {
                let path = &desired.paths[slot * desired.paths.len() / PATH_SLOTS];
                *id = self.path_number(path)?;
            }
        }
        let mut flags = Backend::PRESENT | desired.flags;
        if desired.addr.is_ipv6() {
            flags |= Backend::IPV6;
        }
        let backend = Backend {
            paths,
            flags,
            service: service_id,
            port: Be16::new(desired.port.unwrap_or(0)),
            pad: 0,
            weight: desired.load.max(1),
            hot_mark: if is_new { u32::MAX } else { before.hot_mark },
            high_water: desired.high_water,
            set_weight: desired.set_weight,
            identity: desired.identity,
            addr: AnyAddr::from(desired.addr),
            source: desired.source.map_or(AnyAddr::zeroed(), AnyAddr::from),
        };
        if backend == before {
            return Ok((id, false));
        }
        self.kernel.maps.backends.set(&u32::from(id), &backend)?;
        self.actual.backends[id as usize] = backend;
        self.writes += 1;
        self.drop_unused_paths(&before);
        Ok((id, true))
    }

    fn new_backend(&mut self, key: (u64, u64)) -> Result<u16, ReconcileError> {
        let limit = self.kernel.sizes.backends;
        let free = (1..=limit.min(u32::from(u16::MAX)) as u16).find(|id| {
            self.actual.backends[*id as usize].identity == 0 && !self.numbers.backends.values().any(|used| used == id)
        });
        let id = free.ok_or(ReconcileError::Full { what: "another server", limit, key: "backends" })?;
        self.kernel.maps.backend_counters.set_per_cpu(&u32::from(id), &BackendCounters::default())?;
        self.kernel.maps.active.words()[id as usize].store(0, Ordering::SeqCst);
        self.numbers.backends.insert(key, id);
        Ok(id)
    }

    /// The number of a path with this content, written if it is new.
    fn path_number(&mut self, path: &Path) -> Result<u32, ReconcileError> {
        if let Some(id) = self.path_numbers.get(bytemuck::bytes_of(path)) {
            return Ok(*id);
        }
        let limit = self.kernel.sizes.paths();
        let full = ReconcileError::Full { what: "another path", limit, key: "backends" };
        // The one that was given up first, as packets and fragments may still refer to the last.
        let id = self.free_paths.pop_front().ok_or(full)?;
        self.kernel.maps.paths.set(&id, path)?;
        self.paths.insert(id, *path);
        self.path_numbers.insert(bytemuck::cast(*path), id);
        self.writes += 1;
        Ok(id)
    }

    fn drop_unused_paths(&mut self, before: &Backend) {
        let candidates: BTreeSet<u32> = before.paths.iter().copied().filter(|id| *id != 0).collect();
        for id in candidates {
            let used = |backend: &Backend| backend.has(Backend::PRESENT) && backend.paths.contains(&id);
            if !self.actual.backends.iter().any(used)
                && let Some(path) = self.paths.remove(&id)
            {
                self.path_numbers.remove(bytemuck::bytes_of(&path));
                self.free_paths.push_back(id);
            }
        }
    }

    /// Builds a ring and writes it to a region that no service refers to; or finds that `old` holds it already.
    fn publish(&mut self, members: &[Member], old: Option<u32>) -> Result<(u32, u64), ReconcileError> {
        let ring = ring::build(members);
        let mut blocks = vec![RingBlock::default(); ring::blocks(ring.members().len())];
        ring.write_blocks(&mut blocks);
        // What an earlier, larger ring left behind its own members is cleared, so that contents can be compared.
        blocks.resize(self.kernel.sizes.ring_blocks() as usize, RingBlock::default());
        let words: Vec<u64> =
            blocks.iter().flat_map(|block| bytemuck::cast::<_, [u64; BLOCK_WORDS]>(block.0)).collect();
        let digest = digest(words.iter().copied());
        if let Some(old) = old
            && self.region(old).eq(words.iter().copied())
        {
            return Ok((old, digest));
        }
        let limit = self.kernel.sizes.rings;
        let full = ReconcileError::Full { what: "another ring", limit, key: "rings" };
        let region = self.free_regions.pop_front().ok_or(full)?;
        let start = (region * self.kernel.sizes.ring_blocks()) as usize * BLOCK_WORDS;
        for (target, word) in self.kernel.maps.rings.words()[start..].iter().zip(words) {
            target.store(word, Ordering::Relaxed);
        }
        self.writes += 1;
        Ok((region, digest))
    }

    /// The words of a ring region.
    fn region(&self, region: u32) -> impl Iterator<Item = u64> {
        let length = self.kernel.sizes.ring_blocks() as usize * BLOCK_WORDS;
        let start = region as usize * length;
        self.kernel.maps.rings.words()[start..start + length].iter().map(|word| word.load(Ordering::Relaxed))
    }

    /// What replies of the servers of a `dnat` service look like.
    fn replies(&self, service: &DesiredService, id: u16, replies: &mut BTreeMap<Target, Reply>) {
        // The responder's bear the VIP already.
        for backend in service.backends.iter().filter(|backend| backend.flags & Backend::LOCAL == 0) {
            let Some(number) = self.numbers.backends.get(&(service.identity, backend.identity)) else {
                continue;
            };
            for listen in service.listens.iter().filter(|listen| listen.addr.is_ipv4() == backend.addr.is_ipv4()) {
                let server_port = backend.port.or(listen.port).unwrap_or(0);
                let reply = Reply {
                    vip: AnyAddr::from(listen.addr),
                    port: Be16::new(listen.port.unwrap_or(0)),
                    service: id,
                    backend: *number,
                    sample_mask: self.actual.services[usize::from(id)].sample_mask,
                };
                replies.insert((backend.addr, server_port, listen.protocol.number()), reply);
            }
        }
    }

    fn write_vips(&mut self, wanted: &BTreeMap<Target, Vip>) -> Result<(), ReconcileError> {
        for (target, vip) in wanted {
            if self.actual.vips.get(target) == Some(vip) {
                continue;
            }
            match key(*target) {
                Key::V4(key) => self.kernel.maps.vips4.set(&key, vip)?,
                Key::V6(key) => self.kernel.maps.vips6.set(&key, vip)?,
            }
            self.actual.vips.insert(*target, *vip);
            self.writes += 1;
        }
        Ok(())
    }

    fn write_replies(&mut self, wanted: &BTreeMap<Target, Reply>) -> Result<(), ReconcileError> {
        for (target, reply) in wanted {
            if self.actual.replies.get(target) == Some(reply) {
                continue;
            }
            match key(*target) {
                Key::V4(key) => self.kernel.maps.replies4.set(&key, reply)?,
                Key::V6(key) => self.kernel.maps.replies6.set(&key, reply)?,
            }
            self.actual.replies.insert(*target, *reply);
            self.writes += 1;
        }
        Ok(())
    }

    fn remove_vips(&mut self, wanted: &BTreeMap<Target, Vip>) -> Result<(), ReconcileError> {
        let unwanted: Vec<Target> = self.actual.vips.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for target in unwanted {
            match key(target) {
                Key::V4(key) => self.kernel.maps.vips4.remove(&key)?,
                Key::V6(key) => self.kernel.maps.vips6.remove(&key)?,
            };
            self.actual.vips.remove(&target);
            self.writes += 1;
        }
        Ok(())
    }

    fn remove_replies(&mut self, wanted: &BTreeMap<Target, Reply>) -> Result<(), ReconcileError> {
        let unwanted: Vec<Target> =
            self.actual.replies.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for target in unwanted {
            match key(target) {
                Key::V4(key) => self.kernel.maps.replies4.remove(&key)?,
                Key::V6(key) => self.kernel.maps.replies6.remove(&key)?,
            };
            self.actual.replies.remove(&target);
            self.writes += 1;
        }
        Ok(())
    }

    /// Our own probes: what is not wanted any more goes first, as a port may stand for another server now.
    fn write_probes(&mut self, desired: &Desired) -> Result<(), ReconcileError> {
        let wanted: BTreeMap<u32, Probe> = desired
            .probes
            .iter()
            .filter_map(|probe| Some((u32::from(probe.source.port()), self.probe(desired, probe)?)))
            .collect();
        let unwanted: Vec<u32> = self.actual.probes.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for port in unwanted {
            self.kernel.maps.probes.remove(&port)?;
            self.actual.probes.remove(&port);
            self.writes += 1;
        }
        for (port, probe) in wanted {
            if self.actual.probes.get(&port) != Some(&probe) {
                self.kernel.maps.probes.set(&port, &probe)?;
                self.actual.probes.insert(port, probe);
                self.writes += 1;
            }
        }
        Ok(())
    }

    /// None: its server is not in the kernel.
    fn probe(&self, desired: &Desired, probe: &DesiredProbe) -> Option<Probe> {
        let service = *self.numbers.services.get(&probe.server.0)?;
        let number = *self.numbers.backends.get(&probe.server)?;
        let backend = self.actual.backends.get(usize::from(number))?;
        let mode = desired.services.iter().find(|service| service.identity == probe.server.0)?.mode;
        let (replier, replier_port) = match mode {
            mode::NAT => (AnyAddr::zeroed(), Be16(0)),
            mode::DNAT if backend.port.get() == 0 => (backend.addr, Be16::new(probe.vip.port())),
            mode::DNAT => (backend.addr, backend.port),
            _ => (AnyAddr::from(probe.vip.ip()), Be16::new(probe.vip.port())),
        };
        Some(Probe {
            source: probe.source.ip().into(),
            vip: probe.vip.ip().into(),
            replier,
            vip_port: Be16::new(probe.vip.port()),
            replier_port,
            service,
            backend: number,
            protocol: probe.protocol.number(),
            pad: [0; 7],
        })
    }

    /// Services and backends that are not desired: switched off, their flows forgotten, then their numbers given up.
    fn remove_rest(&mut self, desired: &Desired) -> Result<(), ReconcileError> {
        let wanted: HashSet<(u64, u64)> = desired
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| (service.identity, backend.identity)))
            .collect();
        let services: HashSet<u64> = desired.services.iter().map(|service| service.identity).collect();
        let gone: Vec<(u64, u16)> = self
            .numbers
            .services
            .iter()
            .filter(|(identity, _)| !services.contains(identity))
            .map(|(identity, id)| (*identity, *id))
            .collect();
        for (identity, id) in gone {
            let before = self.actual.services[id as usize];
            self.kernel.maps.services.set(&u32::from(id), &Service::default())?;
            self.actual.services[id as usize] = Service::default();
            for tier in 0..MAX_TIERS {
                let built = self.rings.remove(&(id, tier)).map(|built| built.region);
                if let Some(region) = built.or_else(|| self.found_region(before.tiers[tier])) {
                    self.free_regions.push_back(region);
                }
            }
            self.numbers.services.remove(&identity);
            self.writes += 1;
        }
        // Also those that a crash left half removed.
        let known: HashMap<u16, (u64, u64)> = self.numbers.backends.iter().map(|(key, id)| (*id, *key)).collect();
        let unwanted: HashSet<u16> = (1..self.actual.backends.len() as u16)
            .filter(|id| self.actual.backends[*id as usize].identity != 0)
            .filter(|id| known.get(id).is_none_or(|key| !wanted.contains(key)))
            // A flow that began after it was looked whether there are any: the server is out of all rings now, and goes once
            // the flow has ended.
            .filter(|id| known.get(id).is_none_or(|(service, _)| !services.contains(service)) || self.active(*id) == 0)
            .collect();
        if unwanted.is_empty() {
            return Ok(());
        }
        for id in &unwanted {
            let before = self.actual.backends[*id as usize];
            let off = Backend { flags: 0, ..before };
            self.kernel.maps.backends.set(&u32::from(*id), &off)?;
            self.actual.backends[*id as usize] = off;
            self.drop_unused_paths(&before);
        }
        census::forget(&self.kernel.maps, &unwanted)?;
        for id in &unwanted {
            self.kernel.maps.backends.set(&u32::from(*id), &Backend::default())?;
            self.actual.backends[*id as usize] = Backend::default();
            self.kernel.maps.active.words()[*id as usize].store(0, Ordering::SeqCst);
            self.writes += 2;
        }
        self.numbers.backends.retain(|_, id| !unwanted.contains(id));
        Ok(())
    }

    /// Sets from how many active flows on a backend is hot.
    pub fn set_hot_mark(&mut self, id: u16, hot_mark: u32) -> Result<(), ReconcileError> {
        let Some(backend) = self.actual.backends.get_mut(id as usize) else {
            return Ok(());
        };
        if backend.hot_mark != hot_mark {
            backend.hot_mark = hot_mark;
            self.kernel.maps.backends.set(&u32::from(id), backend)?;
        }
        Ok(())
    }
}

impl Actual {
    fn read(maps: &Maps) -> Result<Self, MapError> {
        let services = (0..maps.services.entries()).map(|id| Ok(maps.services.get(&id)?.unwrap_or_default()));
        let backends = (0..maps.backends.entries()).map(|id| Ok(maps.backends.get(&id)?.unwrap_or_default()));
        let mut actual = Self {
            settings: maps.settings.get(&0)?.unwrap_or_default(),
            services: services.collect::<Result<_, MapError>>()?,
            backends: backends.collect::<Result<_, MapError>>()?,
            ..Self::default()
        };
        maps.vips4.for_each(|key, vip| {
            actual.vips.insert(target4(key), *vip);
        })?;
        maps.vips6.for_each(|key, vip| {
            actual.vips.insert(target6(key), *vip);
        })?;
        maps.replies4.for_each(|key, reply| {
            actual.replies.insert(target4(key), *reply);
        })?;
        maps.replies6.for_each(|key, reply| {
            actual.replies.insert(target6(key), *reply);
        })?;
        maps.probes.for_each(|port, probe| {
            actual.probes.insert(*port, *probe);
        })?;
        Ok(actual)
    }
}

fn target4(key: &VipKey4) -> Target {
    (IpAddr::V4(key.addr.into()), key.port.get(), key.protocol)
}

fn target6(key: &VipKey6) -> Target {
    (IpAddr::V6(key.addr.into()), key.port.get(), key.protocol)
}

enum Key {
    V4(VipKey4),
    V6(VipKey6),
}

fn key((addr, port, protocol): Target) -> Key {
    let port = Be16::new(port);
    match addr {
        IpAddr::V4(addr) => Key::V4(VipKey { addr: addr.into(), port, protocol, pad: 0 }),
        IpAddr::V6(addr) => Key::V6(VipKey { addr: addr.into(), port, protocol, pad: 0 }),
    }
}

fn icmp(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
}

/// What a service's listeners are looked up by, with the entry for ICMP of each address.
fn targets(service: &DesiredService, id: u16, vips: &mut BTreeMap<Target, Vip>) {
    let vip = Vip { service: id, kind: Vip::SERVICE, pad: 0 };
    for listen in &service.listens {
        vips.insert((listen.addr, listen.port.unwrap_or(0), listen.protocol.number()), vip);
        // The first service of an address answers for it.
        vips.entry((listen.addr, 0, icmp(listen.addr))).or_insert(vip);
    }
}

fn flags(desired: &Desired) -> u32 {
    let mut flags = if desired.redirect_back { Settings::REDIRECT_BACK } else { 0 };
    for service in &desired.services {
        if service.mode == mode::NAT || service.listens.iter().any(|listen| listen.port.is_none()) {
            flags |= Settings::ANY_PORT;
        }
        if service.mode == mode::DNAT {
            flags |= Settings::DNAT;
        }
    }
    flags
}

fn different<K: Ord, V: PartialEq>(found: &BTreeMap<K, V>, believed: &BTreeMap<K, V>) -> usize {
    let keys: BTreeSet<_> = found.keys().chain(believed.keys()).collect();
    keys.into_iter().filter(|key| found.get(key) != believed.get(key)).count()
}

/// A number that stands for the words of a ring.
fn digest(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, |digest, word| loadbalancer_common::hash::mix(digest ^ word))
}
