//! All maps of the packet path: their names, sizes and layouts.

use aya::maps::MapData;
use bytemuck::Pod;
use loadbalancer_common::affinity::Bucket;
use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};
use loadbalancer_common::outcome::OutcomeCounters;
use loadbalancer_common::path::{LastHop, Path};
use loadbalancer_common::probe::Probe;
use loadbalancer_common::queue::{BUFFER_BYTES, ClassKey};
use loadbalancer_common::ring::RingBlock;
use loadbalancer_common::service::{Reply, Service, ServiceState, Vip, VipKey4, VipKey6};
use loadbalancer_common::settings::{Settings, program};
use loadbalancer_common::signal::{CHANNELS, Observed, Signals};

use super::super::error::KernelError;
use super::super::sizes::Sizes;
use super::map::Map;
use super::mapped::Mapped;

/// All maps of the packet path.
#[derive(Debug)]
pub struct Maps {
    pub settings: Map<u32, Settings>,
    pub vips4: Map<VipKey4, Vip>,
    pub vips6: Map<VipKey6, Vip>,
    pub replies4: Map<VipKey4, Reply>,
    pub replies6: Map<VipKey6, Reply>,
    pub services: Map<u32, Service>,
    pub service_state: Mapped<ServiceState>,
    pub rings: Mapped<RingBlock>,
    pub backends: Map<u32, Backend>,
    pub active: Mapped<u64>,
    pub paths: Map<u32, Path>,
    pub affinity: Mapped<Bucket>,
    pub conntrack4: Map<Tuple<Addr4>, Translation<Addr4>>,
    pub conntrack6: Map<Tuple<Addr6>, Translation<Addr6>>,
    pub fragments4: Map<FragmentKey<Addr4>, Fragment<Addr4>>,
    pub fragments6: Map<FragmentKey<Addr6>, Fragment<Addr6>>,
    pub last_hops4: Map<Addr4, LastHop>,
    pub last_hops6: Map<Addr6, LastHop>,
    pub probes: Map<u32, Probe>,
    pub outcomes: Map<u32, OutcomeCounters>,
    pub backend_counters: Map<u32, BackendCounters>,
    pub observed: Map<u32, Observed>,
    pub signals: Mapped<Signals>,
    pub classes: Map<ClassKey, u32>,
    pub verified: Map<[u32; 4], u32>,
}

/// Names of the maps and how many entries each has.
pub(in crate::dataplane) fn entries(sizes: &Sizes) -> [(&'static str, u32); 28] {
    [
        ("PROGRAMS", program::COUNT),
        ("SETTINGS", 1),
        ("VIPS4", sizes.vips),
        ("VIPS6", sizes.vips),
        ("REPLIES4", sizes.backends * 2),
        ("REPLIES6", sizes.backends * 2),
        ("SERVICES", sizes.services + 1),
        ("SERVICE_STATE", sizes.services + 1),
        ("RINGS", sizes.rings * sizes.ring_blocks()),
        ("BACKENDS", sizes.backends + 1),
        ("ACTIVE", sizes.backends + 1),
        ("PATHS", sizes.paths()),
        ("AFFINITY", sizes.buckets()),
        // Two entries a flow.
        ("CONNTRACK4", sizes.nat_flows * 2),
        ("CONNTRACK6", sizes.nat_flows * 2),
        ("FRAGMENTS4", 8192),
        ("FRAGMENTS6", 8192),
        ("LAST_HOPS4", sizes.flows.min(262_144)),
        ("LAST_HOPS6", sizes.flows.min(262_144)),
        ("NAT_PORTS", sizes.backends + 1),
        // One for each port; memory is taken as they come.
        ("PROBES", 1 << 16),
        ("OUTCOMES", sizes.services + 1),
        ("BACKEND_COUNTERS", sizes.backends + 1),
        ("QUEUE", BUFFER_BYTES),
        // Memory is taken as they come.
        ("CLASSES", 1 << 21),
        ("VERIFIED", 65_536),
        ("OBSERVED", sizes.observed()),
        ("SIGNALS", (sizes.backends + 1) * CHANNELS as u32),
    ]
}

impl Maps {
    /// Handles of all maps, each asked for by its name.
    ///
    /// # Errors
    /// One is not there, has another layout, or the kernel gives no handle of it.
    pub(in crate::dataplane) fn take(
        source: &dyn Fn(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        let take = Taker(source);
        Ok(Self {
            settings: take.map("SETTINGS")?,
            vips4: take.map("VIPS4")?,
            vips6: take.map("VIPS6")?,
            replies4: take.map("REPLIES4")?,
            replies6: take.map("REPLIES6")?,
            services: take.map("SERVICES")?,
            service_state: take.mapped("SERVICE_STATE")?,
            rings: take.mapped("RINGS")?,
            backends: take.map("BACKENDS")?,
            active: take.mapped("ACTIVE")?,
            paths: take.map("PATHS")?,
            affinity: take.mapped("AFFINITY")?,
            conntrack4: take.map("CONNTRACK4")?,
            conntrack6: take.map("CONNTRACK6")?,
            fragments4: take.map("FRAGMENTS4")?,
            fragments6: take.map("FRAGMENTS6")?,
            last_hops4: take.map("LAST_HOPS4")?,
            last_hops6: take.map("LAST_HOPS6")?,
            probes: take.map("PROBES")?,
            outcomes: take.map("OUTCOMES")?,
            backend_counters: take.map("BACKEND_COUNTERS")?,
            observed: take.map("OBSERVED")?,
            signals: take.mapped("SIGNALS")?,
            classes: take.map("CLASSES")?,
            verified: take.map("VERIFIED")?,
        })
    }
}

struct Taker<'a>(&'a dyn Fn(&'static str) -> Result<MapData, KernelError>);

impl Taker<'_> {
    fn map<K: Pod, V: Pod>(&self, name: &'static str) -> Result<Map<K, V>, KernelError> {
        Map::open(&(self.0)(name)?, name)
    }

    /// The values of an array.
    fn mapped<V: Pod>(&self, name: &'static str) -> Result<Mapped<V>, KernelError> {
        Ok(self.map::<u32, V>(name)?.mapped()?)
    }
}
