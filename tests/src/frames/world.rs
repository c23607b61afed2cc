//! A gateway in the kernel, set up by hand: services, backends and paths written straight into the maps.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::programs::{TestRun, TestRunOptions};
use bytemuck::Pod;
use loadbalancer::dataplane::load::Kernel;
use loadbalancer::dataplane::maps::Map;
use loadbalancer::dataplane::sizes::Sizes;
use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::checksum::sum_bytes;
use loadbalancer_common::clock::ticks_of_seconds;
use loadbalancer_common::net::{Addr4, Addr6, AnyAddr, Be16, ethertype, protocol};
use loadbalancer_common::outcome::{OutcomeCounters, SLOTS as OUTCOME_SLOTS};
use loadbalancer_common::path::{HEADER_ROOM, Path, encap};
use loadbalancer_common::queue::ClassKey;
use loadbalancer_common::ring::{RingRef, SLOT_BLOCKS, SLOTS};
use loadbalancer_common::service::{MAX_TIERS, Reply, Service, ServiceState, Vip, VipKey, VipKey4, VipKey6, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::{mask_of, next_mask};

use super::frame::{GATEWAY_MAC, SERVER_MAC, link};

/// `XDP_*` actions, by number.
pub const ACTIONS: [&str; 5] = ["ABORTED", "DROP", "PASS", "TX", "REDIRECT"];

/// The interface on which test frames come in: the kernel's test run takes the loopback interface.
pub const INGRESS: u32 = 1;
/// The interface on which servers are. It need not exist: a test run does not send.
pub const EGRESS: u32 = 77;

/// Seed of the flow hash.
pub const SEED: u64 = 0x5eed;

/// Source address that `nat` uses in tests.
pub const NAT_SOURCE4: &str = "10.0.0.1";
pub const NAT_SOURCE6: &str = "fd00::1";

#[derive(Debug)]
pub struct World {
    kernel: Option<Kernel>,
    services: u16,
    backends: u16,
    paths: u32,
    rings: u32,
    flags: u32,
    /// Keys in the map of classes: that one cannot be listed in batches.
    classes: Vec<ClassKey>,
    /// The kernel's part is used again by the next world of the same sizes.
    is_pooled: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        if self.is_pooled {
            let classes = std::mem::take(&mut self.classes);
            POOL.set(self.kernel.take().map(|kernel| (kernel, classes)));
        }
    }
}

thread_local! {
    /// The loaded programs and the keys of the map of classes, while no world uses them.
    static POOL: RefCell<Option<(Kernel, Vec<ClassKey>)>> = const { RefCell::new(None) };
}

fn clear<K: Pod, V: Pod>(map: &Map<K, V>) -> Result<()> {
    let mut keys = Vec::new();
    map.for_each(|key, _| keys.push(*key))?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn watch_replies<K: Pod>(map: &Map<K, Reply>, service: u16, mask: u16) -> Result<()> {
    let mut replies = Vec::new();
    map.for_each(|key, reply| replies.push((*key, *reply)))?;
    for (key, reply) in replies.into_iter().filter(|(_, reply)| reply.service == service) {
        map.set(&key, &Reply { sample_mask: mask, ..reply })?;
    }
    Ok(())
}

/// A server as a test wants it.
#[derive(Clone, Debug)]
pub struct Server {
    pub addr: IpAddr,
    /// Zero keeps the port.
    pub port: u16,
    pub encap: u8,
    pub tags: Vec<u16>,
    pub mtu: u16,
    pub flags: u16,
    pub high_water: u32,
    pub ifindex: u32,
    pub tier: usize,
    pub channel: u8,
}

impl Server {
    pub fn at(addr: &str) -> Self {
        Self {
            addr: addr.parse().expect("an address"),
            port: 0,
            encap: encap::NONE,
            tags: Vec::new(),
            mtu: 1500,
            flags: Backend::PRESENT | Backend::ACCEPTS,
            high_water: u32::MAX,
            ifindex: EGRESS,
            tier: 0,
            channel: 0,
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// Until when flows of a service wait, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leases {
    /// Those that no server takes.
    pub queue: u64,
    /// All new ones.
    pub waiting: u64,
    /// Only clients that have shown where they are may wait.
    pub challenge: bool,
}

/// Result of one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    pub action: &'static str,
    pub frame: Vec<u8>,
    /// Outcomes that were counted: service, index and by how much.
    pub counted: Vec<(u16, usize, u64)>,
}

/// Of a case.
const CASE: Sizes = Sizes { services: 16, backends: 64, rings: 24, flows: 4096, nat_flows: 4096, vips: 64 };

impl World {
    pub fn new() -> Result<Self> {
        let (kernel, classes) = match POOL.with_borrow_mut(Option::take) {
            Some(pooled) => pooled,
            None => (Kernel::load(CASE, None).context("load the packet path")?, Vec::new()),
        };
        let mut world = Self::of(kernel, true);
        world.classes = classes;
        world.clear()?;
        world.write_settings()?;
        Ok(world)
    }

    /// A world that no case was in before, whose counters begin at zero.
    pub fn fresh() -> Result<Self> {
        Self::with_sizes(CASE)
    }

    /// A world of its own sizes.
    pub fn with_sizes(sizes: Sizes) -> Result<Self> {
        Self::with_kernel(Kernel::load(sizes, None).context("load the packet path")?)
    }

    /// A world of the packet path of another build.
    pub fn with_object(object: &[u8], sizes: Sizes) -> Result<Self> {
        Self::with_kernel(Kernel::load_object(object, sizes, None).context("load the packet path of another build")?)
    }

    fn with_kernel(kernel: Kernel) -> Result<Self> {
        let world = Self::of(kernel, false);
        world.write_settings()?;
        Ok(world)
    }

    fn of(kernel: Kernel, is_pooled: bool) -> Self {
        Self {
            kernel: Some(kernel),
            services: 0,
            backends: 0,
            paths: 0,
            rings: 0,
            flags: 0,
            classes: Vec::new(),
            is_pooled,
        }
    }

    /// Empties all maps. Loading the programs anew would take the verifier half a second.
    fn clear(&mut self) -> Result<()> {
        let classes = std::mem::take(&mut self.classes);
        let maps = &self.kernel().maps;
        for word in maps.affinity.words().iter().chain(maps.active.words()).chain(maps.service_state.words()) {
            word.store(0, Ordering::Relaxed);
        }
        for id in 0..maps.services.entries() {
            maps.services.set(&id, &Service::default())?;
        }
        for id in 0..maps.backends.entries() {
            maps.backends.set(&id, &Backend::default())?;
        }
        clear(&maps.vips4)?;
        clear(&maps.vips6)?;
        clear(&maps.replies4)?;
        clear(&maps.replies6)?;
        clear(&maps.probes)?;
        clear(&maps.conntrack4)?;
        clear(&maps.conntrack6)?;
        clear(&maps.fragments4)?;
        clear(&maps.fragments6)?;
        clear(&maps.last_hops4)?;
        clear(&maps.last_hops6)?;
        clear(&maps.verified)?;
        for key in classes {
            maps.classes.remove(&key)?;
        }
        self.records()?;
        Ok(())
    }

    pub fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().expect("the kernel is given back only when the world ends")
    }

    pub fn kernel_mut(&mut self) -> &mut Kernel {
        self.kernel.as_mut().expect("the kernel is given back only when the world ends")
    }

    fn write_settings(&self) -> Result<()> {
        let seconds = [0, 300, 20, 7440, 120, 120, 10, 600];
        let settings = Settings {
            seed: SEED,
            affinity_mask: self.kernel().sizes.buckets() - 1,
            flags: self.flags,
            timeouts: seconds.map(|s| ticks_of_seconds(s) as u16),
            zero: 0,
            observed_mask: self.kernel().sizes.observed() - 1,
            prober: 0,
        };
        Ok(self.kernel().maps.settings.set(&0, &settings)?)
    }

    /// Adds a service; gives its number and those of its servers.
    pub fn service(
        &mut self,
        mode: u8,
        flags: u8,
        listen: &[(&str, u16, u8)],
        servers: &[Server],
    ) -> Result<(u16, Vec<u16>)> {
        self.services += 1;
        let id = self.services;
        let mut ids = Vec::new();
        for server in servers {
            ids.push(self.backend(id, server)?);
        }
        let mut tiers = [0u64; MAX_TIERS];
        let mut tier_count = 0;
        for (tier, slot) in tiers.iter_mut().enumerate() {
            let members: Vec<u16> =
                ids.iter().zip(servers).filter(|(_, server)| server.tier == tier).map(|(id, _)| *id).collect();
            if !members.is_empty() {
                *slot = self.ring(&members).0;
                tier_count += 1;
            }
        }
        let service = Service {
            mode,
            flags,
            tier_count,
            nat_port_first: 20_000,
            nat_port_last: 29_999,
            // Every flow, so that all packets of all cases run through it.
            sample_mask: mask_of(1),
            tiers,
            ..Service::default()
        };
        self.kernel().maps.services.set(&(id as u32), &service)?;
        for (addr, port, number) in listen {
            let addr: IpAddr = addr.parse().context("VIP")?;
            self.vip(addr, *port, *number, id, Vip::SERVICE)?;
            let icmp = if addr.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP };
            self.vip(addr, 0, icmp, id, Vip::SERVICE)?;
            if *port == 0 {
                self.flags |= Settings::ANY_PORT;
            }
            if mode == loadbalancer_common::service::mode::DNAT {
                for (server, backend) in servers.iter().zip(&ids) {
                    self.reply(addr, *port, *number, server, *backend, id)?;
                }
            }
        }
        if mode == loadbalancer_common::service::mode::NAT {
            self.flags |= Settings::ANY_PORT;
            for number in [protocol::TCP, protocol::UDP] {
                self.vip(NAT_SOURCE4.parse()?, 0, number, 0, Vip::NAT_SOURCE)?;
                self.vip(NAT_SOURCE6.parse()?, 0, number, 0, Vip::NAT_SOURCE)?;
            }
            self.vip(NAT_SOURCE4.parse()?, 0, protocol::ICMP, 0, Vip::NAT_SOURCE)?;
            self.vip(NAT_SOURCE6.parse()?, 0, protocol::ICMPV6, 0, Vip::NAT_SOURCE)?;
        }
        if mode == mode::DNAT {
            self.flags |= Settings::DNAT;
        }
        self.write_settings()?;
        Ok((id, ids))
    }

    fn vip(&self, addr: IpAddr, port: u16, protocol: u8, service: u16, kind: u16) -> Result<()> {
        let vip = Vip { service, kind, pad: 0 };
        let port = Be16::new(port);
        match addr {
            IpAddr::V4(addr) => {
                self.kernel().maps.vips4.set(&VipKey4 { addr: addr.into(), port, protocol, pad: 0 }, &vip)?;
            }
            IpAddr::V6(addr) => {
                self.kernel().maps.vips6.set(&VipKey6 { addr: addr.into(), port, protocol, pad: 0 }, &vip)?;
            }
        }
        Ok(())
    }

    fn reply(&self, vip: IpAddr, port: u16, protocol: u8, server: &Server, backend: u16, service: u16) -> Result<()> {
        let server_port = if server.port == 0 { port } else { server.port };
        let value = Reply { vip: vip.into(), port: Be16::new(port), service, backend, sample_mask: mask_of(1) };
        let port = Be16::new(server_port);
        match server.addr {
            IpAddr::V4(addr) if vip.is_ipv4() => {
                let key: VipKey<Addr4> = VipKey { addr: addr.into(), port, protocol, pad: 0 };
                self.kernel().maps.replies4.set(&key, &value)?;
            }
            IpAddr::V6(addr) if vip.is_ipv6() => {
                let key: VipKey<Addr6> = VipKey { addr: addr.into(), port, protocol, pad: 0 };
                self.kernel().maps.replies6.set(&key, &value)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn backend(&mut self, service: u16, server: &Server) -> Result<u16> {
        self.paths += 1;
        self.kernel().maps.paths.set(&self.paths, &path(server))?;
        self.backends += 1;
        let source: IpAddr = if server.addr.is_ipv6() { NAT_SOURCE6 } else { NAT_SOURCE4 }.parse()?;
        let backend = Backend {
            paths: [self.paths; PATH_SLOTS],
            flags: server.flags,
            service,
            port: Be16::new(server.port),
            weight: 1,
            hot_mark: u32::MAX,
            high_water: server.high_water,
            addr: AnyAddr::from(server.addr),
            source: AnyAddr::from(source),
            ..Backend::default()
        };
        self.kernel().maps.backends.set(&(self.backends as u32), &backend)?;
        Ok(self.backends)
    }

    /// Changes a backend in place.
    pub fn change_backend(&self, id: u16, change: impl FnOnce(&mut Backend)) -> Result<()> {
        let mut backend = self.kernel().maps.backends.get(&(id as u32))?.context("the backend is there")?;
        change(&mut backend);
        Ok(self.kernel().maps.backends.set(&(id as u32), &backend)?)
    }

    /// Changes a service in place.
    pub fn change_service(&self, id: u16, change: impl FnOnce(&mut Service)) -> Result<()> {
        let mut service = self.kernel().maps.services.get(&(id as u32))?.context("the service is there")?;
        change(&mut service);
        Ok(self.kernel().maps.services.set(&(id as u32), &service)?)
    }

    /// Sets which flows of a service are watched.
    pub fn watch(&self, service: u16, mask: u16) -> Result<()> {
        let mut now = mask;
        self.change_service(service, |service| {
            now = next_mask(service.sample_mask, mask);
            service.sample_mask = now;
        })?;
        let mask = now;
        let maps = &self.kernel().maps;
        watch_replies(&maps.replies4, service, mask)?;
        watch_replies(&maps.replies6, service, mask)
    }

    pub fn settings(&self) -> Result<Settings> {
        self.kernel().maps.settings.get(&0)?.context("the settings are there")
    }

    /// Changes the settings in place.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<()> {
        let mut settings = self.settings()?;
        change(&mut settings);
        Ok(self.kernel().maps.settings.set(&0, &settings)?)
    }

    /// Sets how flows of a service wait.
    pub fn set_leases(&self, service: u16, leases: Leases) {
        let Leases { queue, waiting, challenge } = leases;
        let state = self.kernel().maps.service_state.value(service.into());
        state[ServiceState::QUEUE_UNTIL].store(queue, Ordering::Relaxed);
        state[ServiceState::WAITING_UNTIL].store(waiting, Ordering::Relaxed);
        state[ServiceState::CHALLENGE].store(challenge.into(), Ordering::Relaxed);
    }

    /// How often a server of a service had room again.
    pub fn room_epoch(&self, service: u16) -> u64 {
        self.kernel().maps.service_state.value(service.into())[ServiceState::ROOM_EPOCH].load(Ordering::Relaxed)
    }

    /// What the controller does when servers come, or may have room again.
    pub fn raise_room_epoch(&self, service: u16) {
        self.kernel().maps.service_state.value(service.into())[ServiceState::ROOM_EPOCH]
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a prefix of clients' addresses a class, or another.
    pub fn set_class(&mut self, key: ClassKey, class: u32) -> Result<()> {
        if !self.classes.contains(&key) {
            self.classes.push(key);
        }
        Ok(self.kernel().maps.classes.set(&key, &class)?)
    }

    /// Takes what the packet path has put into the queue's ring buffer.
    pub fn records(&self) -> Result<Vec<Vec<u8>>> {
        let mut buffer = self.kernel().queue_buffer()?;
        let mut records = Vec::new();
        while let Some(record) = buffer.read() {
            records.push(record.to_vec());
        }
        Ok(records)
    }

    /// A ring in which the members take turns.
    fn ring(&mut self, members: &[u16]) -> RingRef {
        let block = self.rings * self.kernel().sizes.ring_blocks();
        self.rings += 1;
        let mut numbers: Vec<u16> = (0..SLOTS as usize).map(|slot| members[slot % members.len()]).collect();
        numbers.resize(SLOT_BLOCKS as usize * 32, 0);
        numbers.extend(members);
        numbers.resize(numbers.len().next_multiple_of(32), 0);
        let words = &self.kernel().maps.rings.words()[block as usize * 8..];
        for (word, four) in words.iter().zip(numbers.chunks(4)) {
            word.store(bytemuck::cast([four[0], four[1], four[2], four[3]]), Ordering::Relaxed);
        }
        RingRef::new(block, members.len() as u32)
    }

    pub fn set_ring(&mut self, service: u16, members: &[u16]) -> Result<()> {
        let ring = if members.is_empty() { RingRef(0) } else { self.ring(members) };
        let mut entry = self.kernel().maps.services.get(&(service as u32))?.context("the service is there")?;
        entry.tiers[0] = ring.0;
        Ok(self.kernel().maps.services.set(&(service as u32), &entry)?)
    }

    pub fn active(&self, backend: u16) -> i64 {
        self.kernel().maps.active.words()[backend as usize].load(Ordering::Relaxed) as i64
    }

    /// Packets sent to a backend, ever.
    pub fn packets(&self, backend: u16) -> Result<u64> {
        let counters = self.kernel().maps.backend_counters.get_per_cpu(&u32::from(backend))?;
        Ok(counters.iter().map(|counters| counters.packets).sum())
    }

    /// New flows of a backend, ever.
    pub fn flows(&self, backend: u16) -> Result<u64> {
        let counters = self.kernel().maps.backend_counters.get_per_cpu(&u32::from(backend))?;
        Ok(counters.iter().map(|counters| counters.flows).sum())
    }

    pub fn set_active(&self, backend: u16, active: u64) {
        self.kernel().maps.active.words()[backend as usize].store(active, Ordering::Relaxed);
    }

    fn outcomes(&self) -> Result<Vec<[u64; OUTCOME_SLOTS]>> {
        (0..=self.services as u32)
            .map(|service| {
                let mut sum = [0u64; OUTCOME_SLOTS];
                for OutcomeCounters(counters) in self.kernel().maps.outcomes.get_per_cpu(&service)? {
                    for (total, counter) in sum.iter_mut().zip(counters) {
                        *total += counter;
                    }
                }
                Ok(sum)
            })
            .collect()
    }

    /// Frames by outcome, over all services.
    pub fn totals(&self) -> Result<Vec<u64>> {
        let mut totals = vec![0; OUTCOME_SLOTS];
        for service in self.outcomes()? {
            totals.iter_mut().zip(service).for_each(|(total, count)| *total += count);
        }
        Ok(totals)
    }

    /// Runs one frame through the program.
    pub fn run(&mut self, frame: &[u8]) -> Result<Ran> {
        self.run_times(frame, 1)
    }

    /// Runs a frame, which must stay as it is, several times. Gives the last action.
    pub fn run_times(&mut self, frame: &[u8], times: u32) -> Result<Ran> {
        let before = self.outcomes()?;
        let mut output = vec![0u8; frame.len() + 512];
        let result = self
            .kernel
            .as_mut()
            .expect("the kernel is given back only when the world ends")
            .program()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut output),
                repeat: times,
                ..Default::default()
            })
            .context("test run")?;
        output.truncate(result.data_size_out as usize);
        let after = self.outcomes()?;
        let mut counted = Vec::new();
        for (service, (before, after)) in before.iter().zip(&after).enumerate() {
            for index in 0..OUTCOME_SLOTS {
                if before[index] != after[index] {
                    counted.push((service as u16, index, after[index] - before[index]));
                }
            }
        }
        let action = ACTIONS.get(result.return_value as usize).copied().unwrap_or("UNKNOWN");
        Ok(Ran { action, frame: output, counted })
    }
}

/// The path to a server. Built here a second time, on purpose: what the controller builds is checked against this.
pub fn path(server: &Server) -> Path {
    let outer_v6 = server.addr.is_ipv6();
    let mut header =
        link((SERVER_MAC, GATEWAY_MAC), &server.tags, if outer_v6 { ethertype::IPV6 } else { ethertype::IPV4 });
    let l2_len = header.len();
    let mut outer_sum = 0;
    match server.encap {
        encap::IPV4 | encap::GUE_IPV4 => {
            let protocol = if server.encap == encap::GUE_IPV4 { protocol::UDP } else { 0 };
            let mut outer = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1];
            match server.addr {
                IpAddr::V4(addr) => outer.extend(addr.octets()),
                IpAddr::V6(_) => panic!("an IPv4 tunnel ends at an IPv4 address"),
            }
            outer_sum = sum_bytes(&outer) as u32;
            header.extend(outer);
        }
        encap::IPV6 | encap::GUE_IPV6 => {
            let next = if server.encap == encap::GUE_IPV6 { protocol::UDP } else { 0 };
            header.extend([0x60, 0, 0, 0, 0, 0, next, 64]);
            header.extend("fd00::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
            match server.addr {
                IpAddr::V6(addr) => header.extend(addr.octets()),
                IpAddr::V4(_) => panic!("an IPv6 tunnel ends at an IPv6 address"),
            }
        }
        _ => {}
    }
    if matches!(server.encap, encap::GUE_IPV4 | encap::GUE_IPV6) {
        header.extend([0, 0, 0x17, 0xc0, 0, 0, 0, 0]);
    }
    let mut room = [0u8; HEADER_ROOM];
    room[..header.len()].copy_from_slice(&header);
    Path {
        ifindex: server.ifindex,
        mtu: server.mtu - encap::overhead(server.encap) as u16,
        header_len: header.len() as u8,
        l2_len: l2_len as u8,
        encap: server.encap,
        channel: server.channel,
        pad: [0; 2],
        outer_sum,
        header: room,
    }
}
