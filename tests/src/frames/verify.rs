//! Frames, checked to the last checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loadbalancer_common::checksum::{fold, sum_bytes};
use loadbalancer_common::net::{GUE_PORT, ethertype, protocol};

use super::frame::pseudo;

/// Checks every length and checksum of a frame, behind its VLAN tags.
///
/// # Errors
/// Says what is wrong, or that there is no IP packet.
pub fn verify_frame(frame: &[u8]) -> Result<(), String> {
    let mut at = 12;
    loop {
        match word(frame, at)? {
            ethertype::VLAN | ethertype::QINQ => at += 4,
            ethertype::IPV4 | ethertype::IPV6 => return verify(from(frame, at + 2)?),
            other => return Err(format!("Ethernet type {other:#06x}")),
        }
    }
}

/// Checks every length and checksum of an IP packet, those inside tunnels too.
///
/// # Errors
/// Says which is wrong.
pub fn verify(packet: &[u8]) -> Result<(), String> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => verify4(packet),
        Some(6) => verify6(packet),
        other => Err(format!("IP version {other:?}")),
    }
}

fn verify4(packet: &[u8]) -> Result<(), String> {
    let header = usize::from(byte(packet, 0)? & 15) * 4;
    let length = usize::from(word(packet, 2)?);
    if length != packet.len() {
        return Err(format!("IPv4 length {length}, {} bytes are there", packet.len()));
    }
    let (source, destination) = (array(packet, 12)?, array(packet, 16)?);
    if fold(sum_bytes(packet.get(..header).ok_or_else(truncated)?)) != 0xffff {
        return Err("IPv4 header checksum".to_owned());
    }
    let fragment = word(packet, 6)? & 0x3fff != 0;
    let addresses = [source, destination].map(|octets| Ipv4Addr::from(octets).into());
    verify_transport(addresses, byte(packet, 9)?, from(packet, header)?, fragment)
}

fn verify6(packet: &[u8]) -> Result<(), String> {
    let length = usize::from(word(packet, 4)?) + 40;
    if length != packet.len() {
        return Err(format!("IPv6 length {length}, {} bytes are there", packet.len()));
    }
    let addresses = [array(packet, 8)?, array(packet, 24)?].map(|octets| Ipv6Addr::from(octets).into());
    let (mut number, mut at, mut fragment) = (byte(packet, 6)?, 40, false);
    loop {
        let length = match number {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (usize::from(byte(packet, at + 1)?) + 1) * 8
            }
            protocol::AUTHENTICATION => (usize::from(byte(packet, at + 1)?) + 2) * 4,
            protocol::FRAGMENT => {
                fragment |= word(packet, at + 2)? & 0xfff9 != 0;
                8
            }
            _ => break,
        };
        number = byte(packet, at)?;
        at += length;
    }
    verify_transport(addresses, number, from(packet, at)?, fragment)
}

fn verify_transport(addresses: [IpAddr; 2], number: u8, segment: &[u8], fragment: bool) -> Result<(), String> {
    if fragment {
        return Ok(());
    }
    let [source, destination] = addresses;
    let with_pseudo = || fold(pseudo(source, destination, number, segment.len()) + sum_bytes(segment)) == 0xffff;
    match number {
        protocol::TCP if !with_pseudo() => Err("TCP checksum".to_owned()),
        protocol::ICMPV6 if !with_pseudo() => Err("ICMPv6 checksum".to_owned()),
        protocol::ICMP if fold(sum_bytes(segment)) != 0xffff => Err("ICMP checksum".to_owned()),
        protocol::UDP => {
            let length = usize::from(word(segment, 4)?);
            if length != segment.len() {
                return Err(format!("UDP length {length}, {} bytes are there", segment.len()));
            }
            if word(segment, 6)? != 0 && !with_pseudo() {
                return Err("UDP checksum".to_owned());
            }
            if word(segment, 2)? == GUE_PORT { verify(from(segment, 8)?) } else { Ok(()) }
        }
        protocol::IPV4 | protocol::IPV6 => verify(segment),
        _ => Ok(()),
    }
}

fn truncated() -> String {
    "it ends too early".to_owned()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(truncated)
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, String> {
    bytes.get(at).copied().ok_or_else(truncated)
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn from(bytes: &[u8], at: usize) -> Result<&[u8], String> {
    bytes.get(at..).ok_or_else(truncated)
}

#[cfg(test)]
mod tests {
    use loadbalancer_common::net::tcp_flag;

    use super::super::frame::Frame;
    use super::*;

    #[test]
    fn a_sound_frame_is_sound_and_none_of_its_beginnings_is() {
        for (source, destination) in [("198.51.100.7", "192.0.2.10"), ("2001:db8:1::7", "2001:db8::10")] {
            for tags in [&[][..], &[7, 8]] {
                let frame = Frame::tcp(source, 40_000, destination, 80, tcp_flag::ACK).with(|f| f.tags = tags.to_vec());
                let bytes = frame.bytes();
                assert_eq!(verify_frame(&bytes), Ok(()), "{frame:?}");
                for length in 0..bytes.len() {
                    assert!(verify_frame(&bytes[..length]).is_err(), "{length} bytes of {frame:?}");
                }
            }
        }
    }
}
