//! IPv4.

use bytemuck::{Pod, Zeroable};
use loadbalancer_common::checksum::{finish, replace16, replace32, update};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Addr4, AnyAddr, Be16, ethertype, protocol};
use network_types::ip::Ipv4Hdr;

use crate::packet::cursor::Frame;
use crate::packet::family::{Family, OWN_TTL};
use crate::packet::parse::{Packet, Part, holds, transport};

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const DONT_FRAGMENT: u16 = 0x4000;

/// IPv4 header as fields of their natural width.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ip4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub length: Be16,
    pub id: u16,
    pub fragment: Be16,
    /// Time to live and protocol, as they lie in memory: the word that a checksum update needs.
    pub ttl_protocol: [u8; 2],
    pub checksum: u16,
    pub src: Addr4,
    pub dst: Addr4,
}

const _: () = assert!(size_of::<Ip4>() == Ipv4Hdr::LEN);

impl Ip4 {
    #[inline(always)]
    fn set_ttl(&mut self, ttl: u8) {
        let old = u16::from_ne_bytes(self.ttl_protocol);
        self.ttl_protocol[0] = ttl;
        self.checksum = update(self.checksum, replace16(old, u16::from_ne_bytes(self.ttl_protocol)));
    }
}

pub struct V4;

impl Family for V4 {
    type Addr = Addr4;
    const V6: bool = false;
    const ICMP: u8 = protocol::ICMP;
    const ETHERTYPE: Be16 = Be16::new(ethertype::IPV4);
    const TUNNELLED: u8 = protocol::IPV4;
    const HEADER: usize = Ipv4Hdr::LEN;

    #[inline(always)]
    fn parse(frame: &Frame, l3: usize) -> Option<Packet<Addr4>> {
        let ip = frame.view::<Ip4>(l3)?;
        let header_length = (ip.version_ihl & 15) as usize * 4;
        let length = ip.length.get();
        if ip.version_ihl >> 4 != 4
            || header_length < Ipv4Hdr::LEN
            || (length as usize) < header_length
            || !holds(frame, l3, length as usize)
        {
            return None;
        }
        let fragment = ip.fragment.get();
        let part = if fragment & FRAGMENT_OFFSET != 0 {
            Part::Later
        } else if fragment & MORE_FRAGMENTS != 0 {
            Part::First
        } else {
            Part::Whole
        };
        let mut packet = Packet {
            src: ip.src,
            dst: ip.dst,
            sport: Be16(0),
            dport: Be16(0),
            protocol: ip.ttl_protocol[1],
            tcp_flags: 0,
            ttl: ip.ttl_protocol[0],
            tos: ip.tos,
            l3: l3 as u16,
            l4: (l3 + header_length) as u16,
            length,
            part,
            fragment_id: ip.id as u32,
        };
        if part != Part::Later {
            transport(frame, &mut packet)?;
        }
        Some(packet)
    }

    #[inline(always)]
    fn quoted(frame: &Frame, l3: usize) -> Option<(Addr4, Addr4, u8, usize)> {
        let ip = frame.view::<Ip4>(l3)?;
        if ip.fragment.get() & FRAGMENT_OFFSET != 0 || ip.version_ihl < 0x45 {
            return None;
        }
        Some((ip.src, ip.dst, ip.ttl_protocol[1], l3 + (ip.version_ihl & 15) as usize * 4))
    }

    #[inline(always)]
    fn addr(any: &AnyAddr) -> Addr4 {
        any.v4()
    }

    #[inline(always)]
    fn any(addr: Addr4) -> AnyAddr {
        AnyAddr([addr.0, 0, 0, 0])
    }

    #[inline(always)]
    fn hash(seed: u64, src: Addr4, dst: Addr4, sport: Be16, dport: Be16, protocol: u8) -> u64 {
        hash::flow4(seed, src, dst, sport, dport, protocol)
    }

    #[inline(always)]
    fn client_hash(seed: u64, src: Addr4, service: u16) -> u64 {
        hash::client4(seed, src, service)
    }

    #[inline(always)]
    fn replace(old: Addr4, new: Addr4) -> u64 {
        replace32(old.0, new.0)
    }

    #[inline(always)]
    fn sum(addr: Addr4) -> u64 {
        addr.0 as u64
    }

    #[inline(always)]
    fn spend_ttl(frame: &mut Frame, l3: usize) -> bool {
        let Some(ip) = frame.view_mut::<Ip4>(l3) else {
            return false;
        };
        ip.set_ttl(ip.ttl_protocol[0] - 1);
        true
    }

    #[inline(always)]
    fn renew_ttl(frame: &mut Frame, l3: usize) -> bool {
        let Some(ip) = frame.view_mut::<Ip4>(l3) else {
            return false;
        };
        ip.set_ttl(OWN_TTL);
        true
    }

    #[inline(always)]
    fn readdress(frame: &mut Frame, l3: usize, src: Addr4, dst: Addr4) -> bool {
        let Some(ip) = frame.view_mut::<Ip4>(l3) else {
            return false;
        };
        ip.checksum = update(ip.checksum, Self::replace(ip.src, src) + Self::replace(ip.dst, dst));
        ip.src = src;
        ip.dst = dst;
        true
    }

    #[inline(never)]
    fn write_header(frame: &mut Frame, packet: &Packet<Addr4>, length: usize, protocol: u8) -> bool {
        let Some(ip) = frame.view_mut::<Ip4>(packet.l3 as usize) else {
            return false;
        };
        let sum = u16::from_ne_bytes([0x45, 0]) as u64
            + Be16::new(length as u16).0 as u64
            + Be16::new(DONT_FRAGMENT).0 as u64
            + u16::from_ne_bytes([OWN_TTL, protocol]) as u64
            + Self::sum(packet.src)
            + Self::sum(packet.dst);
        ip.version_ihl = 0x45;
        ip.tos = 0;
        ip.length = Be16::new(length as u16);
        ip.id = 0;
        ip.fragment = Be16::new(DONT_FRAGMENT);
        ip.ttl_protocol = [OWN_TTL, protocol];
        ip.checksum = finish(sum);
        ip.src = packet.dst;
        ip.dst = packet.src;
        true
    }
}
