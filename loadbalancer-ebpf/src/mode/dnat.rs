//! `dnat`, from server to client: the VIP comes back as the source.

use loadbalancer_common::affinity::state;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::Reply;
use loadbalancer_common::settings::Settings;
use loadbalancer_common::signal::is_sampled;

use crate::clock;
use crate::egress::forward;
use crate::flow::affinity;
use crate::flow::fragment;
use crate::maps;
use crate::observe::{self, Key};
use crate::packet::cursor::Frame;
use crate::packet::family::{Family, Rewrite, rewrite};
use crate::packet::parse::{Packet, Part};
use crate::select::probe;
use crate::verdict::Verdict;

/// A packet from a server's address and port. Only with an entry of its flow it is a reply, or if it answers a
/// probe; else it is a packet of the server's own, for the kernel.
#[inline(always)]
pub fn to_client<F: Family>(
    frame: &mut Frame,
    settings: &Settings,
    packet: &Packet<F::Addr>,
    reply: &Reply,
) -> Verdict {
    let vip = F::addr(&reply.vip);
    let vip_port = if reply.port.0 == 0 { packet.sport } else { reply.port };
    let hash = F::hash(settings.seed, packet.dst, vip, packet.dport, vip_port, packet.protocol);
    let found = affinity::find(settings, hash);
    if !found.is_some() {
        return probe::pass_or_probe_reply::<F>(frame, packet);
    }
    let now = clock::now() as u16 & TIME_MASK;
    let next =
        if packet.is_tcp() { state::after_tcp(found.entry.state(), packet.tcp_flags, false) } else { state::UDP };
    affinity::touch(&found, next, now);
    let service = reply.service;
    let Some(hop) = maps::last_hop(&packet.dst) else {
        return Verdict::drop(service, Outcome::NoReturnPath);
    };
    if let Some(verdict) = forward::obstacle::<F>(frame, packet, service, hop.ifindex, hop.mtu) {
        return verdict;
    }
    if packet.part == Part::First {
        fragment::remember::<F>(packet, vip, packet.dst, service, reply.backend, 0, Some(hop));
    }
    let new = Rewrite { src: vip, dst: packet.dst, sport: vip_port, dport: packet.dport };
    if !rewrite::<F>(frame, packet, &new) {
        return Verdict::drop(service, Outcome::Internal);
    }
    maps::count_to_client(reply.backend, packet.length);
    if is_sampled(hash, reply.sample_mask) {
        observe::server(frame, packet, Key::of(hash, reply.sample_mask));
    }
    forward::to_client::<F>(frame, packet, service, hop, Outcome::ReplyForwarded)
}
