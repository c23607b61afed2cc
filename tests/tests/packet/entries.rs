//! What the kernel's maps hold of a flow: read, aged and taken away by tests.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytemuck::Pod;
use loadbalancer::dataplane::maps::Map;
use loadbalancer_common::affinity::{Entry, tag};
use loadbalancer_common::clock::{self, TIME_MASK, ticks};
use loadbalancer_common::conntrack::{TO_CLIENT, TO_SERVER, Translation, Tuple};
use loadbalancer_common::hash;
use loadbalancer_common::net::Be16;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::mode;
use loadbalancer_tests::frames::world::{SEED, World};

use super::family::{Family, V6};
use super::flow::Flow;

/// Ticks since boot, by the coarse clock of the packet path.
pub(super) fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    ticks(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Runs a test that counts in ticks again if a tick has passed meanwhile. It takes much less than one.
pub(super) fn in_one_tick(test: impl Fn() -> Result<()>) -> Result<()> {
    for _ in 0..4 {
        let begun = now();
        let result = test();
        if now() == begun {
            return result;
        }
    }
    bail!("never got through within one tick of 4.3 s")
}

/// Hash of a flow of the client, as the packet path computes it.
pub(super) fn flow_hash(family: &Family, number: u8, port: u16) -> u64 {
    let ports = (Be16::new(port), Be16::new(80));
    match (family.client.parse().expect("an address"), family.vip.parse().expect("an address")) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => hash::flow4(SEED, client.into(), vip.into(), ports.0, ports.1, number),
        (IpAddr::V6(client), IpAddr::V6(vip)) => hash::flow6(SEED, client.into(), vip.into(), ports.0, ports.1, number),
        _ => unreachable!("a family's addresses are of one family"),
    }
}

/// Hash of a client of a service, as the packet path computes it.
pub(super) fn client_hash(client: IpAddr, service: u16) -> u64 {
    match client {
        IpAddr::V4(client) => hash::client4(SEED, client.into(), service),
        IpAddr::V6(client) => hash::client6(SEED, client.into(), service),
    }
}

/// State of a flow and ticks since its last packet, of either direction; none if it has no entry.
pub(super) fn newest(world: &World, flow: &Flow) -> Result<Option<(u8, u32)>> {
    if flow.mode.mode == mode::NAT {
        let [forward, reply] = [translation(world, flow, TO_SERVER)?, translation(world, flow, TO_CLIENT)?];
        let age = |part: Part| now().wrapping_sub(part.time);
        return Ok(forward.map(|part| (part.state as u8, reply.map_or(age(part), |reply| age(part).min(age(reply))))));
    }
    let entry = affinity(world, flow_hash(&flow.family, flow.protocol(), flow.first.sport));
    Ok(entry.map(|(_, entry)| (entry.state(), clock::age(now() as u16 & TIME_MASK, entry.time()).into())))
}

/// Puts a flow in a state, and makes it so many ticks old in both directions.
pub(super) fn set(world: &World, flow: &Flow, state: u8, age: u32) -> Result<()> {
    let then = now().wrapping_sub(age);
    if flow.mode.mode == mode::NAT {
        for (direction, state) in [(TO_SERVER, state), (TO_CLIENT, 0)] {
            change_translation(world, flow, direction, |part| (part.time, part.state) = (then, state.into()))?;
        }
        return Ok(());
    }
    change_affinity(world, flow_hash(&flow.family, flow.protocol(), flow.first.sport), |entry| {
        entry.with(state, then as u16 & TIME_MASK)
    })
}

/// Changes the affinity table's entry of a hash.
pub(super) fn change_affinity(world: &World, hash: u64, change: impl Fn(Entry) -> Entry) -> Result<()> {
    let (word, entry) = affinity(world, hash).context("the flow has an entry")?;
    word.store(change(entry).0, Ordering::Relaxed);
    Ok(())
}

/// The affinity table's entry of a hash, and where it is.
pub(super) fn affinity(world: &World, hash: u64) -> Option<(&AtomicU64, Entry)> {
    let words = world.kernel().maps.affinity.words().iter();
    words.map(|word| (word, Entry(word.load(Ordering::Relaxed)))).find(|(_, entry)| entry.tag() == tag(hash))
}

/// The client's last hop, as `nat` keeps it with the flow and `dnat` with the client.
pub(super) fn change_last_hop(world: &World, flow: &Flow, change: impl FnOnce(&mut LastHop)) -> Result<()> {
    if flow.mode.mode == mode::NAT {
        return change_translation(world, flow, TO_CLIENT, |part| change(&mut part.last_hop));
    }
    let maps = &world.kernel().maps;
    match flow.family.client.parse()? {
        IpAddr::V4(client) => change_value(&maps.last_hops4, &client.into(), change),
        IpAddr::V6(client) => change_value(&maps.last_hops6, &client.into(), change),
    }
}

fn change_value<K: Pod, V: Pod>(map: &Map<K, V>, key: &K, change: impl FnOnce(&mut V)) -> Result<()> {
    let mut value = map.get(key)?.context("the client's last hop is known")?;
    change(&mut value);
    Ok(map.set(key, &value)?)
}

/// What of a translation is the same in both families.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) time: u32,
    pub(super) state: u32,
    pub(super) backend: u16,
    pub(super) service: u16,
    /// As the server or the client sees it, by direction.
    pub(super) sport: u16,
    pub(super) last_hop: LastHop,
}

/// A flow's entry in one direction; none if there is none.
pub(super) fn translation(world: &World, flow: &Flow, direction: u16) -> Result<Option<Part>> {
    let maps = &world.kernel().maps;
    if flow.family.name == V6.name {
        Ok(find(&maps.conntrack6, flow, direction)?.map(|(_, value)| part(&value)))
    } else {
        Ok(find(&maps.conntrack4, flow, direction)?.map(|(_, value)| part(&value)))
    }
}

pub(super) fn change_translation(
    world: &World,
    flow: &Flow,
    direction: u16,
    change: impl FnOnce(&mut Part),
) -> Result<()> {
    let maps = &world.kernel().maps;
    if flow.family.name == V6.name {
        change_in(&maps.conntrack6, flow, direction, change)
    } else {
        change_in(&maps.conntrack4, flow, direction, change)
    }
}

/// Takes an entry away, as the kernel does when the map is full.
pub(super) fn evict(world: &World, flow: &Flow, direction: u16) -> Result<()> {
    let maps = &world.kernel().maps;
    let removed = if flow.family.name == V6.name {
        find(&maps.conntrack6, flow, direction)?.map(|(key, _)| maps.conntrack6.remove(&key)).transpose()?
    } else {
        find(&maps.conntrack4, flow, direction)?.map(|(key, _)| maps.conntrack4.remove(&key)).transpose()?
    };
    anyhow::ensure!(removed == Some(true), "there was no entry to take away");
    Ok(())
}

fn part<A: Copy>(value: &Translation<A>) -> Part {
    Part {
        time: value.time,
        state: value.state,
        backend: value.backend,
        service: value.service,
        sport: value.sport.get(),
        last_hop: value.last_hop,
    }
}

fn change_in<A: Copy>(
    map: &Map<Tuple<A>, Translation<A>>,
    flow: &Flow,
    direction: u16,
    change: impl FnOnce(&mut Part),
) -> Result<()>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let (key, mut value) = find(map, flow, direction)?.context("the flow has an entry")?;
    let mut changed = part(&value);
    change(&mut changed);
    (value.time, value.state, value.last_hop) = (changed.time, changed.state, changed.last_hop);
    Ok(map.set(&key, &value)?)
}

/// The entry by the client's port, which no other flow of the same test has, and for replies the one that `nat` gave.
fn find<A: Copy>(
    map: &Map<Tuple<A>, Translation<A>>,
    flow: &Flow,
    direction: u16,
) -> Result<Option<(Tuple<A>, Translation<A>)>>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let mut found = None;
    map.for_each(|key, value| {
        let is_flow = if direction == TO_SERVER {
            key.sport.get() == flow.first.sport
        } else {
            value.dport.get() == flow.first.sport && key.dport.get() == flow.source.1
        };
        if value.direction == direction && is_flow {
            found = Some((*key, *value));
        }
    })?;
    Ok(found)
}
