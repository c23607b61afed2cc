//! What is desired, as entries of the kernel's tables.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytemuck::Zeroable;
use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::net::{AnyAddr, Be16, protocol};
use loadbalancer_common::probe::Probe;
use loadbalancer_common::ring::RingRef;
use loadbalancer_common::service::{MAX_TIERS, Reply, Service, Vip, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::next_mask;

use super::super::ids::{BackendNumber, ServiceNumber};
use super::super::sizes::Sizes;
use super::change::Target;
use super::found::Found;
use super::numbers::Numbers;
use decide::plan::desired::{Desired, DesiredBackend, DesiredProbe, DesiredService};
use decide::ring::member::Member;
use model::ids::ServerId;

pub(super) fn settings(desired: &Desired, flags: u32, sizes: &Sizes) -> Settings {
    Settings {
        seed: desired.seed,
        affinity_mask: sizes.buckets() - 1,
        flags,
        timeouts: desired.timeouts,
        zero: 0,
        observed_mask: sizes.observed() - 1,
        prober: desired.prober.unwrap_or(0),
    }
}

/// Flags of [`Settings`].
pub(super) fn flags(desired: &Desired) -> u32 {
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

pub(super) fn service(before: &Service, desired: &DesiredService, tiers: [RingRef; MAX_TIERS]) -> Service {
    let last = tiers.iter().rposition(|ring| ring.members() != 0);
    Service {
        mode: desired.mode,
        flags: desired.flags,
        tier_count: last.map_or(0, |last| last as u8 + 1),
        nat_port_first: desired.nat_ports.0,
        nat_port_last: desired.nat_ports.1,
        sample_mask: next_mask(before.sample_mask, desired.sample_mask),
        identity: desired.id.0,
        tiers: tiers.map(|ring| ring.0),
        ..*before
    }
}

/// `before`: what has the number now.
pub(super) fn backend(
    before: &Backend,
    is_new: bool,
    service: ServiceNumber,
    desired: &DesiredBackend,
    paths: [u32; PATH_SLOTS],
) -> Backend {
    let family = if desired.addr.is_ipv6() { Backend::IPV6 } else { 0 };
    Backend {
        paths,
        flags: Backend::PRESENT | desired.flags | family,
        service: service.0,
        port: Be16::new(desired.port.unwrap_or(0)),
        pad: 0,
        weight: desired.load.max(1),
        hot_mark: if is_new { u32::MAX } else { before.hot_mark },
        high_water: desired.high_water,
        set_weight: desired.set_weight,
        identity: desired.id.0,
        addr: AnyAddr::from(desired.addr),
        source: desired.source.map_or(AnyAddr::zeroed(), AnyAddr::from),
    }
}

/// Adds a server to the rings that it is in.
pub(super) fn add_member(number: BackendNumber, desired: &DesiredBackend, tiers: &mut [Vec<Member>; MAX_TIERS]) {
    let mut add = |tier: u8, nominal, weight| {
        tiers[usize::from(tier) % MAX_TIERS].push(Member { backend: number.0, id: desired.id.0, nominal, weight });
    };
    if desired.ring > 0 || desired.nominal > 0 {
        add(desired.tier, desired.nominal, desired.ring);
    }
    if let Some((tier, weight)) = desired.help {
        // Nominally it is not there, so that it takes slots only for the time that it helps.
        add(tier, 0, weight);
    }
}

/// What a service's listeners are looked up by, with the entry for ICMP of each address.
pub(super) fn add_vips(service: &DesiredService, number: ServiceNumber, vips: &mut BTreeMap<Target, Vip>) {
    let vip = Vip { service: number.0, kind: Vip::SERVICE, pad: 0 };
    for listen in &service.listens {
        let (addr, port) = (listen.addr, listen.port.unwrap_or(0));
        vips.insert(Target { addr, port, protocol: listen.protocol.number() }, vip);
        // The first service of an address answers for it.
        vips.entry(Target { addr, port: 0, protocol: icmp(addr) }).or_insert(vip);
    }
}

/// Addresses by which replies of `nat` servers come. One that is a service as well stays one.
pub(super) fn add_nat_sources(desired: &Desired, vips: &mut BTreeMap<Target, Vip>) {
    for addr in desired.services.iter().flat_map(DesiredService::nat_sources) {
        for protocol in [protocol::TCP, protocol::UDP, icmp(addr)] {
            let source = Vip { service: 0, kind: Vip::NAT_SOURCE, pad: 0 };
            vips.entry(Target { addr, port: 0, protocol }).or_insert(source);
        }
    }
}

fn icmp(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
}

/// What replies of the servers of a `dnat` service look like.
pub(super) fn add_replies(
    service: &DesiredService,
    number: ServiceNumber,
    found: &Found,
    numbers: &Numbers,
    replies: &mut BTreeMap<Target, Reply>,
) {
    // The responder's bear the VIP already.
    for backend in service.backends.iter().filter(|backend| backend.flags & Backend::LOCAL == 0) {
        let server = ServerId { service: service.id, backend: backend.id };
        let Some(backend_number) = numbers.backend(server) else {
            continue;
        };
        for listen in service.listens.iter().filter(|listen| listen.addr.is_ipv4() == backend.addr.is_ipv4()) {
            let port = backend.port.or(listen.port).unwrap_or(0);
            let reply = Reply {
                vip: AnyAddr::from(listen.addr),
                port: Be16::new(listen.port.unwrap_or(0)),
                service: number.0,
                backend: backend_number.0,
                sample_mask: found.service(number).sample_mask,
            };
            replies.insert(Target { addr: backend.addr, port, protocol: listen.protocol.number() }, reply);
        }
    }
}

/// Our own probes, by source port; but those whose servers are not in the kernel.
pub(super) fn probes(desired: &Desired, found: &Found, numbers: &Numbers) -> BTreeMap<u16, Probe> {
    let with_port = |it: &DesiredProbe| Some((it.source.port(), probe(desired, it, found, numbers)?));
    desired.probes.iter().filter_map(with_port).collect()
}

fn probe(desired: &Desired, probe: &DesiredProbe, found: &Found, numbers: &Numbers) -> Option<Probe> {
    let service = probe.server.service;
    let mode = desired.services.iter().find(|candidate| candidate.id == service)?.mode;
    let service_number = numbers.service(service)?;
    let number = numbers.backend(probe.server)?;
    let backend = found.backend(number);
    let vip_port = Be16::new(probe.vip.port());
    let (replier, replier_port) = match mode {
        mode::NAT => (AnyAddr::zeroed(), Be16(0)),
        mode::DNAT if backend.port.get() == 0 => (backend.addr, vip_port),
        mode::DNAT => (backend.addr, backend.port),
        _ => (AnyAddr::from(probe.vip.ip()), vip_port),
    };
    Some(Probe {
        source: probe.source.ip().into(),
        vip: probe.vip.ip().into(),
        replier,
        vip_port,
        replier_port,
        service: service_number.0,
        backend: number.0,
        protocol: probe.protocol.number(),
        pad: [0; 7],
    })
}
