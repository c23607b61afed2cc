//! What the kernel's maps should say, without the numbers that things have there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use loadbalancer_common::path::Path;
use loadbalancer_common::settings::TIMEOUTS;

use model::address::{Listen, Protocol};
use model::ids::{BackendId, ServerId, ServiceId};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Key of the flow hash.
    pub seed: u64,
    /// Idle time-outs in ticks, by state.
    pub timeouts: [u16; TIMEOUTS],
    /// See [`loadbalancer_common::settings::Settings::REDIRECT_BACK`].
    pub redirect_back: bool,
    pub services: Vec<DesiredService>,
    /// Interface by which our own probes come in; none: there are none.
    pub prober: Option<u32>,
    pub probes: Vec<DesiredProbe>,
}

/// A probe through a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredProbe {
    pub source: SocketAddr,
    pub vip: SocketAddr,
    pub protocol: Protocol,
    /// Who it is for.
    pub server: ServerId,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredService {
    /// Unique.
    pub id: ServiceId,
    /// One of [`loadbalancer_common::service::mode`].
    pub mode: u8,
    /// Flags of [`loadbalancer_common::service::Service`].
    pub flags: u8,
    /// First and last source port of `nat`.
    pub nat_ports: (u16, u16),
    /// See [`loadbalancer_common::signal::is_sampled`]; without the count of changes.
    pub sample_mask: u16,
    pub listens: Vec<Listen>,
    pub backends: Vec<DesiredBackend>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredBackend {
    /// Unique in its service.
    pub id: BackendId,
    pub addr: IpAddr,
    /// None: the packet's.
    pub port: Option<u16>,
    /// Source address of `nat`.
    pub source: Option<IpAddr>,
    /// Flags of [`loadbalancer_common::backend::Backend`], without `PRESENT` and `IPV6`.
    pub flags: u16,
    pub tier: u8,
    /// Weight in the ring; zero: not in it.
    pub ring: u32,
    /// A tier above its own in whose ring it is as well, and its weight there.
    pub help: Option<(u8, u32)>,
    /// Weight by which its active flows are judged.
    pub load: u32,
    /// Weight of the configuration, see [`crate::ring::member::Member::nominal`].
    pub nominal: u32,
    /// Weight that the operator has set, plus one; zero: none. Kept so that a new controller knows it.
    pub set_weight: u32,
    pub high_water: u32,
    /// The ways to it, in the shares in which they fill its slots; empty: none.
    pub paths: Vec<Path>,
}

impl DesiredService {
    /// Addresses that `nat` uses as source.
    pub fn nat_sources(&self) -> BTreeSet<IpAddr> {
        if self.mode != loadbalancer_common::service::mode::NAT {
            return BTreeSet::new();
        }
        self.backends.iter().filter_map(|backend| backend.source).collect()
    }

    pub fn protocols(&self) -> BTreeSet<Protocol> {
        self.listens.iter().map(|listen| listen.protocol).collect()
    }
}
