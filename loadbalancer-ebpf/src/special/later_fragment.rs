//! Fragments without ports: they follow the first one.

use loadbalancer_common::net::Be16;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Vip, VipKey};

use crate::egress::forward;
use crate::flow::fragment;
use crate::maps;
use crate::packet::cursor::Frame;
use crate::packet::family::Family;
use crate::packet::parse::Packet;
use crate::verdict::Verdict;

/// A fragment without ports.
#[inline(never)]
pub fn handle<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> Verdict {
    let Some(first) = fragment::first::<F>(packet) else {
        let address = VipKey { addr: packet.dst, port: Be16(0), protocol: F::ICMP, pad: 0 };
        return match maps::vip(&address) {
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
    if !F::spend_ttl(frame, packet.l3 as usize) || !F::readdress(frame, packet.l3 as usize, first.src, first.dst) {
        return Verdict::drop(service, Outcome::Internal);
    }
    match path {
        Some(_) if first.path != 0 => {
            maps::count_to_server(first.backend, packet.length);
            forward::by_path::<F>(frame, packet, service, first.path, 0, Outcome::FragmentForwarded)
        }
        _ => {
            maps::count_to_client(first.backend, packet.length);
            forward::to_client::<F>(frame, packet, service, &first.last_hop, Outcome::FragmentForwarded)
        }
    }
}
