//! Looking at single flows in the maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use loadbalancer_common::affinity::{Entry, bucket, other_bucket, state, tag};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::clock::{TIME_MASK, age, seconds_of_ticks};
use loadbalancer_common::conntrack::{TO_SERVER, Translation, Tuple};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Addr4, Addr6, Be16, protocol};

use super::clock::ticks_now;
use super::error::MapError;
use super::ids::BackendNumber;
use super::maps::Map;
use super::maps::Maps;
use super::stats;
use model::address::Protocol;

/// Which flows of `nat` to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub client: Option<IpAddr>,
    pub server: Option<IpAddr>,
    pub vip: Option<IpAddr>,
}

/// A flow of a `nat` service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatFlow {
    pub protocol: String,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// What the server sees as its client.
    pub source: SocketAddr,
    pub server: SocketAddr,
    pub state: String,
    /// Since the client's last packet, at most.
    pub idle_seconds: u64,
}

/// A flow to look for in the affinity table.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub vip: SocketAddr,
}

/// What the affinity table says of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub server: String,
    pub state: String,
    /// Since the last packet, at most.
    pub idle_seconds: u64,
}

/// Flows of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub server: String,
    /// Entries in the affinity table.
    pub affinity: u64,
    /// Flows of `nat`.
    pub nat: u64,
    /// As the packet path counts them.
    pub active: u64,
}

/// Flows of `nat` services that pass the filter, up to a limit, and how many there are.
///
/// # Errors
/// A map cannot be listed.
pub fn nat(maps: &Maps, filter: &Filter, limit: usize) -> Result<(Vec<NatFlow>, usize), MapError> {
    let mut listed = Vec::new();
    let mut total = 0;
    nat_family(&maps.conntrack4, filter, limit, &mut listed, &mut total)?;
    nat_family(&maps.conntrack6, filter, limit, &mut listed, &mut total)?;
    Ok((listed, total))
}

fn nat_family<A: Copy + IntoIp>(
    map: &Map<Tuple<A>, Translation<A>>,
    filter: &Filter,
    limit: usize,
    listed: &mut Vec<NatFlow>,
    total: &mut usize,
) -> Result<(), MapError>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let now = ticks_now();
    let socket = |addr: A, port: Be16| SocketAddr::new(addr.into_ip(), port.get());
    map.for_each(|key, entry| {
        if entry.direction != TO_SERVER {
            return;
        }
        let flow = NatFlow {
            protocol: if key.protocol == protocol::TCP { "tcp" } else { "udp" }.to_owned(),
            client: socket(key.src, key.sport),
            vip: socket(key.dst, key.dport),
            source: socket(entry.src, entry.sport),
            server: socket(entry.dst, entry.dport),
            state: state::label(entry.state as u8).to_owned(),
            idle_seconds: seconds_of_ticks(u64::from(now.saturating_sub(entry.time)) + 1),
        };
        let passes = filter.client.is_none_or(|client| client == flow.client.ip())
            && filter.server.is_none_or(|server| server == flow.server.ip())
            && filter.vip.is_none_or(|vip| vip == flow.vip.ip());
        if passes {
            *total += 1;
            if listed.len() < limit {
                listed.push(flow);
            }
        }
    })
}

/// Addresses as the standard library has them.
trait IntoIp {
    fn into_ip(self) -> IpAddr;
}

impl IntoIp for Addr4 {
    fn into_ip(self) -> IpAddr {
        IpAddr::V4(self.into())
    }
}

impl IntoIp for Addr6 {
    fn into_ip(self) -> IpAddr {
        IpAddr::V6(self.into())
    }
}

/// The affinity entry of a flow.
///
/// # Errors
/// The settings or the server cannot be read.
pub fn find(maps: &Maps, lookup: &Lookup) -> Result<Option<Affinity>, MapError> {
    let settings = maps.settings.get(&0)?.unwrap_or_default();
    let (client_port, port) = (Be16::new(lookup.client.port()), Be16::new(lookup.vip.port()));
    let number = lookup.protocol.number();
    let hash = match (lookup.client.ip(), lookup.vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            hash::flow4(settings.seed, client.into(), vip.into(), client_port, port, number)
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            hash::flow6(settings.seed, client.into(), vip.into(), client_port, port, number)
        }
        _ => return Ok(None),
    };
    let first = bucket(hash, settings.affinity_mask);
    let now = ticks_now() as u16 & TIME_MASK;
    for index in [first, other_bucket(first, tag(hash), settings.affinity_mask)] {
        for word in maps.affinity.value(index as usize) {
            let entry = Entry(word.load(Ordering::Relaxed));
            if !entry.is_free() && entry.tag() == tag(hash) {
                let backend = maps.backends.get(&u32::from(entry.backend()))?.unwrap_or_default();
                return Ok(Some(Affinity {
                    server: name(&backend),
                    state: state::label(entry.state()).to_owned(),
                    idle_seconds: seconds_of_ticks(u64::from(age(now, entry.time())) + 1),
                }));
            }
        }
    }
    Ok(None)
}

/// Flows per server.
///
/// # Errors
/// A map cannot be read.
pub fn count(maps: &Maps) -> Result<Vec<Count>, MapError> {
    let mut counts: BTreeMap<u16, Count> = BTreeMap::new();
    for id in 1..maps.backends.entries() {
        let backend = maps.backends.get(&id)?.unwrap_or_default();
        if backend.has(Backend::PRESENT) {
            let active = u64::from(maps.active_flows(BackendNumber(id as u16)));
            counts.insert(id as u16, Count { server: name(&backend), active, ..Count::default() });
        }
    }
    for word in maps.affinity.words() {
        let entry = Entry(word.load(Ordering::Relaxed));
        if !entry.is_free()
            && let Some(count) = counts.get_mut(&entry.backend())
        {
            count.affinity += 1;
        }
    }
    let mut add = |direction: u16, backend: u16| {
        if direction == TO_SERVER
            && let Some(count) = counts.get_mut(&backend)
        {
            count.nat += 1;
        }
    };
    maps.conntrack4.for_each(|_, entry| add(entry.direction, entry.backend))?;
    maps.conntrack6.for_each(|_, entry| add(entry.direction, entry.backend))?;
    Ok(counts.into_values().collect())
}

/// A server by its address.
pub fn name(backend: &Backend) -> String {
    if backend.has(Backend::LOCAL) {
        return "responder".to_owned();
    }
    let addr = stats::address(backend);
    match backend.port.get() {
        0 => addr.to_string(),
        port => SocketAddr::new(addr, port).to_string(),
    }
}
