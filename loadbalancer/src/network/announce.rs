//! Telling a segment that an address is here: gratuitous ARP and unsolicited neighbour advertisements.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loadbalancer_common::checksum::{finish, sum_bytes};
use loadbalancer_common::net::{ethertype, protocol};
use socket2::Type;

use super::netlink::NetworkError;
use super::packet_socket;

const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes of the segment, as Ethernet and as IPv6 address (RFC 2464, section 7; RFC 4291, section 2.7.1).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Announcements may be lost, so there are several (ANNOUNCE_NUM of RFC 5227, MAX_NEIGHBOR_ADVERTISEMENT of RFC 4861).
const TIMES: usize = 3;

/// Announces an address on an interface.
///
/// # Errors
/// Nothing can be sent there.
pub fn announce(ifindex: u32, mac: [u8; 6], vip: IpAddr) -> Result<(), NetworkError> {
    let frame = match vip {
        IpAddr::V4(vip) => gratuitous_arp(mac, vip),
        IpAddr::V6(vip) => unsolicited_advertisement(mac, vip),
    };
    for _ in 0..TIMES {
        send(ifindex, &frame).map_err(|source| NetworkError::Announce { vip, source })?;
    }
    Ok(())
}

/// An ARP request for the own address (RFC 5227, section 2.3).
fn gratuitous_arp(mac: [u8; 6], vip: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend(ethertype::ARP.to_be_bytes());
    // Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(vip.octets());
    frame.extend([0; 6]);
    frame.extend(vip.octets());
    frame
}

/// A neighbour advertisement that nobody asked for, which overrides what others know (RFC 4861, sections 4.4 and 7.2.6).
fn unsolicited_advertisement(mac: [u8; 6], vip: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(vip.octets());
    // Target link-layer address option, one unit of eight bytes long.
    message.extend([2, 1]);
    message.extend(mac);
    let mut pseudo = Vec::new();
    pseudo.extend(vip.octets());
    pseudo.extend(ALL_NODES.octets());
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol::ICMPV6]);
    pseudo.extend(&message);
    let checksum = finish(sum_bytes(&pseudo));
    message[2..4].copy_from_slice(&checksum.to_ne_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend(ethertype::IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // Neighbour discovery is valid with a hop limit of 255 only.
    frame.extend([protocol::ICMPV6, 255]);
    frame.extend(vip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    packet_socket::socket(ifindex, Type::RAW, 0)?.send(frame)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_announcement_asks_for_its_own_address() {
        let frame = gratuitous_arp([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42], "sender and target address are the same");
        assert_eq!(frame[32..38], [0; 6]);
    }

    #[test]
    fn an_advertisement_has_a_valid_checksum() {
        let frame = unsolicited_advertisement([2, 0, 0, 0, 0, 1], Ipv6Addr::LOCALHOST);
        assert_eq!(frame.len(), 86);
        let message = &frame[54..];
        let mut pseudo = frame[22..54].to_vec();
        pseudo.extend([0, 0, 0, message.len() as u8, 0, 0, 0, 58]);
        pseudo.extend(message);
        assert_eq!(finish(sum_bytes(&pseudo)), 0);
    }
}
