//! Where replies to a frame go: back to the neighbour that sent it.

use loadbalancer_common::path::LastHop;
use network_types::eth::EthHdr;

use crate::maps;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::ingress;
use crate::packet::parse::{Packet, TAG_LEN};

/// Where a reply to this frame goes.
#[inline(always)]
pub fn last_hop(frame: &Frame, l3: u16) -> Option<LastHop> {
    let macs = frame.load::<[u16; 6]>(0)?;
    let mut hop = LastHop {
        ifindex: frame.ifindex(),
        macs: [macs[3], macs[4], macs[5], macs[0], macs[1], macs[2]],
        tags: [0; 2],
        mtu: frame.mtu(0),
        outer_tag: 0,
    };
    if l3 as usize >= EthHdr::LEN + TAG_LEN {
        [hop.outer_tag, hop.tags[0]] = frame.load::<[u16; 2]>(EthHdr::LEN - 2)?;
    }
    if l3 as usize >= EthHdr::LEN + 2 * TAG_LEN {
        hop.tags[1] = frame.load::<u16>(EthHdr::LEN + TAG_LEN)?;
    }
    Some(hop)
}

/// Notes where a client's packets come from, so that replies that pass through the gateway go there.
#[inline(never)]
pub fn note_client<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> u32 {
    let Some(hop) = last_hop(frame, packet.l3) else {
        return 0;
    };
    match maps::last_hop(&packet.src) {
        Some(known) if *known == hop => {}
        _ => maps::insert_last_hop(&packet.src, &hop),
    }
    0
}

/// The same for a frame that the controller gave back.
#[inline(never)]
pub fn note_released_client<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> u32 {
    let Some(mut hop) = last_hop(frame, packet.l3) else {
        return 0;
    };
    ingress::restore_ingress(frame, &mut hop);
    maps::insert_last_hop(&packet.src, &hop);
    0
}
