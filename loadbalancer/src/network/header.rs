//! Paths: next hop and encapsulation as one header, ready to copy (see [`loadbalancer_common::path`]).

use std::net::IpAddr;

use loadbalancer_common::checksum::sum_bytes;
use loadbalancer_common::net::{ethertype, protocol};
use loadbalancer_common::path::{HEADER_ROOM, Path, encap};

use super::hop::Hop;

/// Time to live of outer headers: the default of Linux.
const TTL: u8 = 64;
/// Outer packets are not to be fragmented: the packet path answers what is too big (RFC 1191).
const DONT_FRAGMENT: u8 = 0x40;
/// Smallest MTU of a link that carries IPv6 (RFC 8200), and with it of any packet that a path must take.
const SMALLEST_MTU: u16 = 1280;

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
    #[error("the way has room for packets of {0} bytes only, after encapsulation; 576 are the least")]
    TooNarrow(u16),
}

/// The path over a next hop to a server.
pub fn path(hop: &Hop, encapsulation: Encapsulation, target: IpAddr) -> Result<Path, HeaderError> {
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
    // The least that IPv4 hosts must take (RFC 791); IPv6 needs more, but its packets are answered, not cut.
    if mtu < SMALLEST_MTU.min(576) {
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
        pad: [0; 3],
        outer_sum,
        header: room,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::hop::Tag;

    fn hop(source: &str, tags: Vec<Tag>) -> Hop {
        Hop {
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

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

    #[test]
    fn plain_headers_have_the_servers_family_and_all_tags() {
        let (path, header) = built("10.0.0.1", Encapsulation::None, "10.0.0.9", Vec::new());
        assert_eq!(header, [&MACS[..], &[8, 0]].concat());
        assert_eq!((path.mtu, path.l2_len, path.encap, path.outer_sum), (1500, 14, encap::NONE, 0));
        let tags = vec![Tag { ethertype: 0x88a8, vlan: 5 }, Tag { ethertype: 0x8100, vlan: 0x123 }];
        let (path, header) = built("fd00::1", Encapsulation::None, "fd00::9", tags);
        assert_eq!(header, [&MACS[..], &[0x88, 0xa8, 0, 5, 0x81, 0, 1, 0x23, 0x86, 0xdd]].concat());
        assert_eq!(path.l2_len, 22);
    }

    #[test]
    fn outer_headers_are_complete_but_for_what_depends_on_the_packet() {
        let (path, header) = built("10.0.0.1", Encapsulation::Ipip, "10.0.0.9", Vec::new());
        let outer = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 9];
        assert_eq!(header[14..], outer);
        assert_eq!((path.mtu, path.encap), (1480, encap::IPV4));
        assert_eq!(path.outer_sum, sum_bytes(&outer) as u32);

        let (path, header) = built("10.0.0.1", Encapsulation::Gue { port: 6080 }, "10.0.0.9", Vec::new());
        assert_eq!(header[14 + 9], 17);
        assert_eq!(header[34..], [0, 0, 0x17, 0xc0, 0, 0, 0, 0]);
        assert_eq!((path.mtu, path.encap), (1472, encap::GUE_IPV4));

        let (path, header) = built("fd00::1", Encapsulation::Ipip, "fd00::9", Vec::new());
        let mut outer = vec![0x60, 0, 0, 0, 0, 0, 0, 64, 0xfd];
        outer.extend([0; 14]);
        outer.extend([1, 0xfd]);
        outer.extend([0; 14]);
        outer.push(9);
        assert_eq!(header[14..], outer);
        assert_eq!((path.mtu, path.encap, path.outer_sum), (1460, encap::IPV6, 0));

        let (path, header) = built("fd00::1", Encapsulation::Gue { port: 7 }, "fd00::9", Vec::new());
        assert_eq!((header[14 + 6], header.len()), (17, 14 + 40 + 8));
        assert_eq!((path.mtu, path.encap), (1452, encap::GUE_IPV6));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let target = "fd00::9".parse().unwrap();
        let mixed = path(&hop("10.0.0.1", Vec::new()), Encapsulation::Ipip, target);
        assert!(matches!(mixed, Err(HeaderError::Families { .. })));
        let narrow = Hop { mtu: 590, ..hop("fd00::1", Vec::new()) };
        assert_eq!(path(&narrow, Encapsulation::Ipip, target), Err(HeaderError::TooNarrow(550)));
    }
}
