//! To the server, for every mode but `nat`: an affinity entry holds the flow.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::affinity::state;
use loadbalancer_common::backend::{Backend, NO_BACKEND};
use loadbalancer_common::clock::{TIME_MASK, age};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_common::settings::Settings;

use crate::admit::{self, Choice, Refusal};
use crate::affinity::{self, Found};
use crate::family::{Family, Rewrite, rewrite};
use crate::forward;
use crate::fragment;
use crate::maps;
use crate::parse::{Packet, Part};
use crate::refuse;
use crate::verdict::Verdict;

#[inline(always)]
pub fn to_server<F: Family>(
    ctx: &XdpContext,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
) -> Verdict {
    let hash = F::hash(settings.seed, packet.src, packet.dst, packet.sport, packet.dport, packet.protocol);
    let now = maps::now() as u16 & TIME_MASK;
    let found = affinity::find(settings, hash);
    let chosen = match found {
        Some(found) => known_flow(service, settings, packet, &found, now),
        None => NO_BACKEND,
    };
    let chosen = if chosen != NO_BACKEND {
        chosen
    } else {
        let client = if service.has(Service::CLIENT_AFFINITY) {
            F::client_hash(settings.seed, packet.src, service_id)
        } else {
            0
        };
        let kind = if !packet.is_tcp() {
            Kind::Udp
        } else if packet.is_syn() {
            Kind::Syn
        } else {
            Kind::Middle
        };
        let new = NewFlow { hash, client, service: service_id, now, kind, has_entry: found.is_some() };
        match Choice::from_word(new_flow(settings, service, &new)).get() {
            Ok(id) => {
                if service.mode == mode::DNAT {
                    remember_client::<F>(ctx, packet);
                }
                id
            }
            Err(outcome) => return refuse::packet::<F>(ctx, packet, service_id, service, outcome),
        }
    };
    let Some(backend) = maps::backend(chosen) else {
        return Verdict::drop(service_id, Outcome::Internal);
    };
    if service.mode == mode::DNAT
        && let Some(found) = found
        && found.entry.time() != now
    {
        remember_client::<F>(ctx, packet);
    }
    send::<F>(ctx, packet, service_id, service, backend, chosen, hash)
}

/// Backend of a flow with an entry, brought up to date; none if the packet must be treated as a new flow's first.
#[inline(always)]
fn known_flow<A>(service: &Service, settings: &Settings, packet: &Packet<A>, found: &Found, now: u16) -> u16 {
    let entry = found.entry;
    let Some(backend) = maps::backend(entry.backend()) else {
        return NO_BACKEND;
    };
    let next = if packet.is_tcp() {
        if packet.is_syn() && (state::is_over(entry.state()) || entry.is_expired(settings, now)) {
            return NO_BACKEND;
        }
        // A connection that never got an answer is free to go elsewhere.
        if packet.is_syn() && backend.has(Backend::DOWN) {
            return NO_BACKEND;
        }
        if !admit::keeps_flows(service, backend) {
            return NO_BACKEND;
        }
        state::after_tcp(entry.state(), packet.tcp_flags, true)
    } else {
        // A datagram has no connection to lose.
        if !backend.has(Backend::PRESENT) || backend.has(Backend::DOWN) {
            return NO_BACKEND;
        }
        state::UDP
    };
    affinity::touch(found, next, now);
    entry.backend()
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Syn,
    /// TCP, but not the first packet.
    Middle,
    Udp,
}

/// What choosing a server needs to know of a flow.
pub struct NewFlow {
    pub hash: u64,
    /// Hash of the client, for services with client affinity; else zero.
    pub client: u64,
    pub service: u16,
    pub now: u16,
    pub kind: Kind,
    /// There is an entry, of a flow that is over or that lost its server.
    pub has_entry: bool,
}

#[inline(never)]
fn new_flow(settings: &Settings, service: &Service, flow: &NewFlow) -> u32 {
    // A middle packet whose server is gone cannot go on anywhere.
    if flow.has_entry && flow.kind == Kind::Middle {
        return Choice::refused(Refusal::ServerGone).word();
    }
    let choice = choose(settings, service, flow);
    let Ok(id) = Choice::from_word(choice).get() else {
        return choice;
    };
    let first_state = if flow.kind == Kind::Udp { state::UDP } else { state::TCP_SYN };
    let replaced = flow.has_entry
        && match affinity::find(settings, flow.hash) {
            Some(found) => affinity::replace(
                &found,
                loadbalancer_common::affinity::Entry::new(found.entry.tag(), id, first_state, flow.now),
            ),
            None => false,
        };
    if !replaced && !affinity::insert(settings, flow.hash, id, first_state, flow.now) {
        // Without an entry nothing would ever end the flow.
        maps::release(id);
    }
    maps::count_flow(id);
    choice
}

/// A server, counted as having one more flow.
#[inline(always)]
fn choose(settings: &Settings, service: &Service, flow: &NewFlow) -> u32 {
    if flow.kind == Kind::Middle {
        // Another gateway, or an entry that was given up: the ring is what all agree on.
        let hash = if flow.client != 0 { flow.client } else { flow.hash };
        return match admit::ring_slot(service, hash) {
            Some(id) => {
                maps::reserve(id, u32::MAX);
                Choice::backend(id).word()
            }
            None => Choice::refused(Refusal::NoServer).word(),
        };
    }
    if flow.client == 0 {
        return admit::new_flow(flow.service, flow.hash, NO_BACKEND as u32);
    }
    for_client(settings, flow.service, flow.client, flow.now)
}

/// A server for a flow of a client that is to stay on one server.
#[inline(always)]
pub fn for_client(settings: &Settings, service: u16, client: u64, now: u16) -> u32 {
    let known = match affinity::find(settings, client) {
        Some(found) if age(now, found.entry.time()) <= settings.timeouts[state::CLIENT as usize] => Some(found),
        _ => None,
    };
    let preferred = match known {
        Some(found) => found.entry.backend(),
        None => NO_BACKEND,
    };
    let choice = admit::new_flow(service, client, preferred as u32);
    if let Ok(id) = Choice::from_word(choice).get() {
        match known {
            Some(found) if found.entry.backend() == id => affinity::touch(&found, state::CLIENT, now),
            Some(found) => {
                let new = loadbalancer_common::affinity::Entry::new(found.entry.tag(), id, state::CLIENT, now);
                if !affinity::replace(&found, new) {
                    // Another CPU has just done the same.
                }
            }
            None => {
                if !affinity::insert(settings, client, id, state::CLIENT, now) {
                    // The next flow tries again.
                }
            }
        }
    }
    choice
}

/// Notes where a client's packets come from, so that replies that pass through the gateway go there.
#[inline(never)]
fn remember_client<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> u32 {
    let Some(hop) = crate::parse::last_hop(ctx, packet.l3) else {
        return 0;
    };
    match F::last_hop(&packet.src) {
        Some(known) if *known == hop => {}
        _ => F::insert_last_hop(&packet.src, &hop),
    }
    0
}

/// Sends a packet to its server.
#[inline(always)]
pub fn send<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    backend: &Backend,
    backend_id: u16,
    hash: u64,
) -> Verdict {
    let path_id = forward::path_of(backend, hash);
    let Some(path) = maps::path(path_id) else {
        return Verdict::drop(service_id, Outcome::NoPath);
    };
    if let Some(verdict) = forward::obstacle::<F>(ctx, packet, service_id, path.ifindex, path.mtu) {
        return verdict;
    }
    let fits = if service.mode == mode::DNAT {
        let new = Rewrite {
            src: packet.src,
            dst: F::addr(&backend.addr),
            sport: packet.sport,
            dport: if backend.port.0 == 0 { packet.dport } else { backend.port },
        };
        rewrite::<F>(ctx, packet, &new)
    } else {
        F::spend_ttl(ctx, packet.l3 as usize)
    };
    if !fits {
        return Verdict::drop(service_id, Outcome::Internal);
    }
    if packet.part == Part::First {
        let dst = if service.mode == mode::DNAT { F::addr(&backend.addr) } else { packet.dst };
        fragment::remember::<F>(packet, packet.src, dst, service_id, backend_id, path_id, None);
    }
    maps::count_to_server(backend_id, packet.length);
    forward::by_path::<F>(ctx, packet, service_id, path, hash, Outcome::Forwarded)
}
