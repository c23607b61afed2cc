//! Whether a packet is ours, and which way it goes.

use loadbalancer_common::net::Be16;
use loadbalancer_common::service::{Reply, Vip, VipKey};
use loadbalancer_common::settings::Settings;

use crate::maps;
use crate::packet::family::Family;
use crate::packet::parse::Packet;

pub enum Class {
    NotOurs,
    ToService(u16),
    /// To an address that `nat` uses as its source: perhaps a server's reply.
    ToNatSource,
    /// From a server of a `dnat` service: perhaps a reply.
    FromDnatServer(&'static Reply),
}

#[inline(always)]
pub fn classify<F: Family>(settings: &Settings, packet: &Packet<F::Addr>) -> Class {
    match vip::<F>(settings, packet.dst, packet.dport, packet.protocol) {
        Some(vip) if vip.kind == Vip::SERVICE => return Class::ToService(vip.service),
        Some(_) => return Class::ToNatSource,
        None => {}
    }
    if settings.flags & Settings::DNAT != 0
        && let Some(reply) = reply::<F>(packet.src, packet.sport, packet.protocol)
    {
        return Class::FromDnatServer(reply);
    }
    Class::NotOurs
}

/// What an address and port stand for: the exact port first, then any port.
#[inline(always)]
pub fn vip<F: Family>(settings: &Settings, addr: F::Addr, port: Be16, protocol: u8) -> Option<&'static Vip> {
    let mut key = VipKey { addr, port, protocol, pad: 0 };
    if let Some(vip) = maps::vip(&key) {
        return Some(vip);
    }
    if settings.flags & Settings::ANY_PORT == 0 {
        return None;
    }
    key.port = Be16(0);
    maps::vip(&key)
}

/// The VIP for which a `dnat` server answers, if it is one.
#[inline(always)]
pub fn reply<F: Family>(addr: F::Addr, port: Be16, protocol: u8) -> Option<&'static Reply> {
    let mut key = VipKey { addr, port, protocol, pad: 0 };
    if let Some(reply) = maps::reply(&key) {
        return Some(reply);
    }
    key.port = Be16(0);
    maps::reply(&key)
}
