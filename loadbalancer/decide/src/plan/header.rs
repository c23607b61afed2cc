//! Paths: next hop and encapsulation as one header, ready to copy (see [`loadbalancer_common::path`]).

use std::net::IpAddr;

use loadbalancer_common::checksum::sum_bytes;
use loadbalancer_common::net::{ethertype, protocol};
use loadbalancer_common::path::{HEADER_ROOM, Path, encap};
use loadbalancer_common::probe::MAC;

use model::route::NextHop;

/// Time to live of outer headers: the default of Linux.
const TTL: u8 = 64;
/// Of the pair of interfaces that probes through VIPs use, in bytes.
pub const PROBER_MTU: u16 = 1500;
/// Outer packets are not to be fragmented: the packet path answers what is too big (RFC 1191).
const DONT_FRAGMENT: u8 = 0x40;
/// The least that IPv4 hosts must take (RFC 791), in bytes. IPv6 needs more, but its packets are answered, not cut.
const SMALLEST_MTU: u16 = 576;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    None,
    /// IP in IP, of any families.
    Ipip,
    /// IP in UDP to this port.
    Gue {
        port: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error(
        "the route gives the source {source_address} to the server {target}, of another family; check `ip route get`"
    )]
    Families { source_address: IpAddr, target: IpAddr },
    #[error(
        "the way has room for packets of {0} bytes only, after encapsulation, and {SMALLEST_MTU} are the least; raise its MTU"
    )]
    TooNarrow(u16),
}

/// The path through the outer end of the prober's pair, to what listens in its namespace.
pub fn inwards(outer: u32) -> Path {
    let mut header = [0; HEADER_ROOM];
    header[..6].copy_from_slice(&MAC);
    // Anything that is no group address will do for a source: nobody answers to it.
    header[6..12].copy_from_slice(&MAC);
    header[6 + 5] ^= 1;
    header[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
    let l2_len = 14;
    let (encap, channel, pad, outer_sum) = (encap::NONE, 0, [0; 2], 0);
    Path { ifindex: outer, mtu: PROBER_MTU, header_len: l2_len, l2_len, encap, channel, pad, outer_sum, header }
}

/// The path over a next hop to a server.
///
/// # Errors
/// The tunnel would have ends of two families, or the way has too little room.
pub fn path(hop: &NextHop, encapsulation: Encapsulation, target: IpAddr) -> Result<Path, HeaderError> {
    let mut header = Vec::with_capacity(HEADER_ROOM);
    header.extend(hop.destination_mac);
    header.extend(hop.source_mac);
    for tag in &hop.tags {
        header.extend(tag.ethertype.to_be_bytes());
        header.extend(tag.vlan.to_be_bytes());
    }
    header.extend(if target.is_ipv6() { ethertype::IPV6 } else { ethertype::IPV4 }.to_be_bytes());
    let l2_len = header.len();
    let (kind, udp_port) = match (encapsulation, target.is_ipv6()) {
        (Encapsulation::None, _) => (encap::NONE, None),
        (Encapsulation::Ipip, false) => (encap::IPV4, None),
        (Encapsulation::Ipip, true) => (encap::IPV6, None),
        (Encapsulation::Gue { port }, false) => (encap::GUE_IPV4, Some(port)),
        (Encapsulation::Gue { port }, true) => (encap::GUE_IPV6, Some(port)),
    };
    if encapsulation != Encapsulation::None {
        // The inner protocol depends on the packet, unless UDP stands between.
        let carried = udp_port.map_or(0, |_| protocol::UDP);
        match (hop.source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                header.extend([0x45, 0, 0, 0, 0, 0, DONT_FRAGMENT, 0, TTL, carried, 0, 0]);
                header.extend(source.octets());
                header.extend(target.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                header.extend([0x60, 0, 0, 0, 0, 0, carried, TTL]);
                header.extend(source.octets());
                header.extend(target.octets());
            }
            (source_address, target) => return Err(HeaderError::Families { source_address, target }),
        }
    }
    let outer_sum = if target.is_ipv4() { sum_bytes(&header[l2_len..]) as u32 } else { 0 };
    if let Some(port) = udp_port {
        header.extend([0, 0]);
        header.extend(port.to_be_bytes());
        header.extend([0; 4]);
    }
    let mtu = hop.mtu.saturating_sub(u16::from(encap::overhead(kind)));
    if mtu < SMALLEST_MTU {
        return Err(HeaderError::TooNarrow(mtu));
    }
    let mut room = [0; HEADER_ROOM];
    room[..header.len()].copy_from_slice(&header);
    Ok(Path {
        ifindex: hop.ifindex,
        mtu,
        header_len: header.len() as u8,
        l2_len: l2_len as u8,
        encap: kind,
        channel: 0,
        pad: [0; 2],
        outer_sum,
        header: room,
    })
}

#[cfg(test)]
mod tests {
    use loadbalancer_common::checksum::fold;

    use super::*;
    use model::route::Tag;

    fn hop(source: &str, tags: Vec<Tag>) -> NextHop {
        NextHop {
            ifindex: 7,
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            tags,
            source: source.parse().unwrap(),
            mtu: 1500,
            router: None,
        }
    }

    fn built(source: &str, encapsulation: Encapsulation, target: &str, tags: Vec<Tag>) -> (Path, Vec<u8>) {
        let path = path(&hop(source, tags), encapsulation, target.parse().unwrap()).unwrap();
        let header = path.header[..usize::from(path.header_len)].to_vec();
        assert!(path.header[header.len()..].iter().all(|byte| *byte == 0));
        (path, header)
    }

    /// From 02:..:01 to 02:..:02.
    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    const NO_TAG: &[u8] = &[];
    const ONE_TAG: &[u8] = &[0x81, 0, 0, 5];
    const TWO_TAGS: &[u8] = &[0x88, 0xa8, 0, 5, 0x81, 0, 1, 0x23];
    const GUE: Encapsulation = Encapsulation::Gue { port: 6080 };

    fn tags(bytes: &[u8]) -> Vec<Tag> {
        let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        bytes.chunks(4).map(|tag| Tag { ethertype: word(tag), vlan: word(&tag[2..]) }).collect()
    }

    #[test]
    fn headers_are_right_to_the_byte_in_both_families_with_all_tags_and_encapsulations() {
        let ipip4 = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9];
        let gue4 = [
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9, //
            0, 0, 0x17, 0xc0, 0, 0, 0, 0,
        ];
        let ipip6 = [
            0x60, 0, 0, 0, 0, 0, 0, 64, //
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
        ];
        let gue6 = [
            0x60, 0, 0, 0, 0, 0, 17, 64, //
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, //
            0, 0, 0x17, 0xc0, 0, 0, 0, 0,
        ];
        // The sums: 4500 + 4000 + 4000 + 0a00 + 0001 + 0a00 + 0009, and 0011 with UDP.
        let cases = [
            (Encapsulation::None, false, &[][..], encap::NONE, 1500, [0, 0]),
            (Encapsulation::None, true, &[][..], encap::NONE, 1500, [0, 0]),
            (Encapsulation::Ipip, false, &ipip4[..], encap::IPV4, 1480, [0xd9, 0x0a]),
            (Encapsulation::Ipip, true, &ipip6[..], encap::IPV6, 1460, [0, 0]),
            (GUE, false, &gue4[..], encap::GUE_IPV4, 1472, [0xd9, 0x1b]),
            (GUE, true, &gue6[..], encap::GUE_IPV6, 1452, [0, 0]),
        ];
        for (encapsulation, is_v6, outer, kind, mtu, outer_sum) in cases {
            let (source, target) = if is_v6 { ("fd00::1", "fd00::9") } else { ("10.0.0.1", "10.0.0.9") };
            let ethertype: &[u8] = if is_v6 { &[0x86, 0xdd] } else { &[8, 0] };
            for vlans in [NO_TAG, ONE_TAG, TWO_TAGS] {
                let (path, header) = built(source, encapsulation, target, tags(vlans));
                let case = format!("{encapsulation:?} to {target}, tags {vlans:?}");
                assert_eq!(header, [&MACS[..], vlans, ethertype, outer].concat(), "{case}");
                assert_eq!(usize::from(path.l2_len), 14 + vlans.len(), "{case}");
                assert_eq!((path.ifindex, path.mtu, path.encap), (7, mtu, kind), "{case}");
                assert_eq!(fold(path.outer_sum.into()).to_ne_bytes(), outer_sum, "{case}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let target = "fd00::9".parse().unwrap();
        let mixed = path(&hop("10.0.0.1", Vec::new()), Encapsulation::Ipip, target);
        assert!(matches!(mixed, Err(HeaderError::Families { .. })));
        let narrow = NextHop { mtu: 590, ..hop("fd00::1", Vec::new()) };
        assert_eq!(path(&narrow, Encapsulation::Ipip, target), Err(HeaderError::TooNarrow(550)));
    }
}
