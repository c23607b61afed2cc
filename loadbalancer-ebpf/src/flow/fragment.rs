//! Fragments: the first one carries the ports and decides; the later ones follow it.

use loadbalancer_common::conntrack::{Fragment, FragmentKey};
use loadbalancer_common::path::LastHop;

use crate::maps;
use crate::packet::family::Family;
use crate::packet::parse::Packet;

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
    // SAFETY: what refers to it is used no more.
    let Some(note) = (unsafe { maps::scratch::<Fragment<F::Addr>>() }) else {
        return;
    };
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
    maps::insert_fragment(&key(packet), fragment) as u32
}

/// Where the first fragment of a later one's packet went.
#[inline(always)]
pub fn first<F: Family>(packet: &Packet<F::Addr>) -> Option<&'static Fragment<F::Addr>> {
    maps::fragment(&key(packet))
}
