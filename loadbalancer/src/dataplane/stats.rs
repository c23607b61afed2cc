//! Reading the packet path's counters, from a running controller's maps or from pinned ones alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::net::{Addr4, Addr6, AnyAddr};
use loadbalancer_common::outcome::{Outcome, OutcomeCounters, SLOTS};
use loadbalancer_common::service::{Service, Vip};

use super::error::MapError;
use super::ids::{BackendNumber, ServiceNumber};
use super::maps::Maps;
use model::address::{Listen, Protocol};

#[derive(Clone, Debug, Default)]
pub struct KernelStats {
    /// Number 0 counts frames that belong to no service.
    pub services: BTreeMap<ServiceNumber, KernelService>,
    pub backends: BTreeMap<BackendNumber, KernelBackend>,
}

#[derive(Clone, Debug)]
pub struct KernelService {
    pub service: Service,
    pub listens: Vec<Listen>,
    /// Frames by outcome.
    pub outcomes: [u64; SLOTS],
}

#[derive(Clone, Debug)]
pub struct KernelBackend {
    pub backend: Backend,
    pub counters: BackendCounters,
    pub active: u32,
}

/// Reads all counters. Each is exact; all of them together are of no single moment.
///
/// # Errors
/// A map cannot be read.
pub fn read(maps: &Maps) -> Result<KernelStats, MapError> {
    let mut stats = KernelStats::default();
    for id in 0..maps.services.entries() {
        let service = maps.services.get(&id)?.unwrap_or_default();
        if id == 0 || service.mode != 0 {
            let mut outcomes = [0; SLOTS];
            for OutcomeCounters(counters) in maps.outcomes.get_per_cpu(&id)? {
                outcomes.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter);
            }
            stats.services.insert(ServiceNumber(id as u16), KernelService { service, listens: Vec::new(), outcomes });
        }
    }
    for id in 1..maps.backends.entries() {
        let backend = maps.backends.get(&id)?.unwrap_or_default();
        if !backend.has(Backend::PRESENT) {
            continue;
        }
        let mut counters = BackendCounters::default();
        for part in maps.backend_counters.get_per_cpu(&id)? {
            counters.packets += part.packets;
            counters.bytes += part.bytes;
            counters.flows += part.flows;
            counters.reply_packets += part.reply_packets;
            counters.reply_bytes += part.reply_bytes;
        }
        let number = BackendNumber(id as u16);
        stats.backends.insert(number, KernelBackend { backend, counters, active: maps.active_flows(number) });
    }
    let mut add = |addr: IpAddr, port: u16, number: u8, vip: &Vip| {
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.number() == number);
        if vip.kind == Vip::SERVICE
            && let Some(protocol) = protocol
            && let Some(service) = stats.services.get_mut(&ServiceNumber(vip.service))
        {
            service.listens.push(Listen { addr, port: (port != 0).then_some(port), protocol });
        }
    };
    maps.vips4.for_each(|key, vip| add(IpAddr::V4(key.addr.into()), key.port.get(), key.protocol, vip))?;
    maps.vips6.for_each(|key, vip| add(IpAddr::V6(key.addr.into()), key.port.get(), key.protocol, vip))?;
    for service in stats.services.values_mut() {
        service.listens.sort();
    }
    Ok(stats)
}

/// Packets of a service that were forwarded, in both directions.
///
/// # Errors
/// The kernel refuses to tell.
pub fn forwarded(maps: &Maps, service: ServiceNumber) -> Result<u64, MapError> {
    let counters = maps.outcomes.get_per_cpu(&u32::from(service.0))?;
    let both = [Outcome::Forwarded, Outcome::ReplyForwarded];
    Ok(counters.iter().flat_map(|counters| both.map(|outcome| counters.0[outcome as usize])).sum())
}

/// The address in a backend.
pub fn address(backend: &Backend) -> IpAddr {
    any_address(backend.addr, backend.has(Backend::IPV6))
}

/// The address that a server's `nat` flows come from; none: it has none, or never had a way.
pub fn source(backend: &Backend) -> Option<IpAddr> {
    (backend.source.0 != [0; 4]).then(|| any_address(backend.source, backend.has(Backend::IPV6)))
}

fn any_address(addr: AnyAddr, ipv6: bool) -> IpAddr {
    if ipv6 { IpAddr::V6(Addr6(addr.0).into()) } else { IpAddr::V4(Addr4(addr.0[0]).into()) }
}
