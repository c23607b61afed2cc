//! What differs between IPv4 and IPv6. The pipeline is compiled once per family.

use loadbalancer_common::checksum::{replace16, update};
use loadbalancer_common::net::{AnyAddr, Be16};

use crate::maps::Tables;
use crate::packet::cursor::Frame;
use crate::packet::parse::Packet;

/// Hop limit of what we send ourselves (RFC 1700).
pub const OWN_TTL: u8 = 64;

/// New addresses and ports of a packet.
#[derive(Clone, Copy)]
pub struct Rewrite<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
}

pub trait Family {
    type Addr: Tables;
    const V6: bool;
    /// Protocol number of ICMP.
    const ICMP: u8;
    const ETHERTYPE: Be16;
    /// Protocol number of this family inside a tunnel.
    const TUNNELLED: u8;
    /// Bytes of the IP header without options.
    const HEADER: usize;

    fn parse(frame: &Frame, l3: usize) -> Option<Packet<Self::Addr>>;
    /// Addresses, protocol and offset of the transport header of a packet that an ICMP error quotes; none of later fragments.
    fn quoted(frame: &Frame, l3: usize) -> Option<(Self::Addr, Self::Addr, u8, usize)>;

    fn addr(any: &AnyAddr) -> Self::Addr;
    fn any(addr: Self::Addr) -> AnyAddr;
    fn hash(seed: u64, src: Self::Addr, dst: Self::Addr, sport: Be16, dport: Be16, protocol: u8) -> u64;
    fn client_hash(seed: u64, src: Self::Addr, service: u16) -> u64;
    /// What replacing an address adds to a sum that covers it.
    fn replace(old: Self::Addr, new: Self::Addr) -> u64;
    /// What an address adds to a sum that covers it.
    fn sum(addr: Self::Addr) -> u64;

    /// One hop less to live.
    #[must_use]
    fn spend_ttl(frame: &mut Frame, l3: usize) -> bool;
    /// As many hops to live as what we send ourselves has.
    #[must_use]
    fn renew_ttl(frame: &mut Frame, l3: usize) -> bool;
    /// Gives an IP header new addresses.
    #[must_use]
    fn readdress(frame: &mut Frame, l3: usize, src: Self::Addr, dst: Self::Addr) -> bool;
    /// Writes an IP header of our own, from the packet's destination to its source. `length`: with the header.
    #[must_use]
    fn write_header(frame: &mut Frame, packet: &Packet<Self::Addr>, length: usize, protocol: u8) -> bool;
}

/// Gives a packet new addresses and ports and one hop less to live, with all checksums.
#[inline(always)]
#[must_use]
pub fn rewrite<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, new: &Rewrite<F::Addr>) -> bool {
    if !F::spend_ttl(frame, packet.l3 as usize) || !F::readdress(frame, packet.l3 as usize, new.src, new.dst) {
        return false;
    }
    let l4 = packet.l4 as usize;
    if !frame.store(l4, [new.sport, new.dport]) {
        return false;
    }
    let difference = F::replace(packet.src, new.src)
        + F::replace(packet.dst, new.dst)
        + replace16(packet.sport.0, new.sport.0)
        + replace16(packet.dport.0, new.dport.0);
    if packet.is_tcp() {
        let Some(checksum) = frame.view_mut::<u16>(l4 + 16) else {
            return false;
        };
        *checksum = update(*checksum, difference);
    } else {
        let Some(checksum) = frame.view_mut::<u16>(l4 + 6) else {
            return false;
        };
        // Zero means that there is none (RFC 768); a sum that comes out as zero is sent as its other form.
        if *checksum != 0 {
            let new = update(*checksum, difference);
            *checksum = if new == 0 { 0xffff } else { new };
        }
    }
    true
}
