//! Fragments: the first one carries the ports and decides; the later ones follow it.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::conntrack::{Fragment, FragmentKey};
use loadbalancer_common::net::Be16;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::{Vip, VipKey};

use crate::family::Family;
use crate::forward;
use crate::maps;
use crate::parse::Packet;
use crate::verdict::Verdict;

#[inline(always)]
fn key<A: Copy>(packet: &Packet<A>) -> FragmentKey<A> {
    FragmentKey { src: packet.src, dst: packet.dst, id: packet.fragment_id, protocol: packet.protocol, pad: [0; 3] }
}

/// Notes where the first fragment goes. `hop` is given for packets to a client.
#[inline(always)]
pub fn remember<F: Family>(
    packet: &Packet<F::Addr>,
    src: F::Addr,
    dst: F::Addr,
    service: u16,
    backend: u16,
    path: u32,
    hop: Option<&LastHop>,
) {
    // Not on the stack, of which there is little. Opening a flow, which uses the same memory, is over by now.
    let Some(note) = maps::scratch::<Fragment<F::Addr>>() else {
        return;
    };
    // SAFETY: this CPU's own memory, of which there is no other reference now.
    let note = unsafe { &mut *note };
    (note.src, note.dst) = (src, dst);
    (note.service, note.backend, note.path) = (service, backend, path);
    if let Some(hop) = hop {
        note.last_hop = *hop;
    }
    insert::<F>(packet, note);
}

#[inline(never)]
fn insert<F: Family>(packet: &Packet<F::Addr>, fragment: &Fragment<F::Addr>) -> u32 {
    // If it fails, the later fragments will be counted as unknown.
    F::insert_fragment(&key(packet), fragment) as u32
}

/// A fragment without ports.
#[inline(never)]
pub fn later<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> Verdict {
    let Some(first) = F::fragment(&key(packet)) else {
        let address = VipKey { addr: packet.dst, port: Be16(0), protocol: F::ICMP, pad: 0 };
        return match F::vip(&address) {
            Some(vip) if vip.kind == Vip::SERVICE => Verdict::drop(vip.service, Outcome::FragmentUnknown),
            _ => Verdict::pass(Outcome::NotOurs),
        };
    };
    let service = first.service;
    let path = maps::path(first.path);
    let (ifindex, mtu) = match path {
        Some(path) if first.path != 0 => (path.ifindex, path.mtu),
        _ => (first.last_hop.ifindex, first.last_hop.mtu),
    };
    if let Some(verdict) = forward::unanswered_obstacle(packet, service, ifindex, mtu) {
        return verdict;
    }
    if !F::spend_ttl(ctx, packet.l3 as usize) || !F::readdress(ctx, packet.l3 as usize, first.src, first.dst) {
        return Verdict::drop(service, Outcome::Internal);
    }
    match path {
        Some(_) if first.path != 0 => {
            maps::count_to_server(first.backend, packet.length);
            forward::by_path::<F>(ctx, packet, service, first.path, 0, Outcome::FragmentForwarded)
        }
        _ => {
            maps::count_to_client(first.backend, packet.length);
            forward::to_client::<F>(ctx, packet, service, &first.last_hop, Outcome::FragmentForwarded)
        }
    }
}
