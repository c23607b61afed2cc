//! The ICMP and ICMPv6 probe: an echo request, and the reply to it (RFC 792, RFC 4443 section 4).

use std::hash::{BuildHasher, RandomState};

use loadbalancer_common::checksum;
use socket2::{Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::error::ProbeError;
use super::probe::TimeLimit;
use super::socket;
use super::spec::CheckSpec;
use super::udp;

/// Type, code, checksum, identifier and sequence number.
const HEADER: usize = 8;
/// What the payload is of, so that a reply to another probe is not taken for the one to this.
const TOKEN: usize = 8;
/// Sends an echo request and waits for the reply to it.
pub(super) async fn echo(spec: &CheckSpec, limit: &TimeLimit) -> Result<(), ProbeError> {
    // Tokio has no type for sockets of this kind, but they send and receive datagrams as those of UDP do.
    let socket = UdpSocket::from_std(open(spec).await?.into()).map_err(|error| ProbeError::from_io(&error))?;
    let random = RandomState::new().hash_one(spec.target);
    let echo = Echo { ipv6: spec.target.is_ipv6(), token: random.to_be_bytes() };
    let mut received = udp::exchange(&socket, &echo.request(), limit).await?;
    while !echo.is_answered_by(&received) {
        received = udp::receive(&socket, limit).await?;
    }
    Ok(())
}

/// A ping socket where the system allows it, because it gets the replies to its own requests only; else a raw one.
async fn open(spec: &CheckSpec) -> Result<Socket, ProbeError> {
    let protocol = if spec.target.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = match socket::open(spec, Type::DGRAM, Some(protocol)).await {
        Ok(socket) => socket,
        Err(_) => socket::open(spec, Type::RAW, Some(protocol)).await?,
    };
    socket::bind(&socket, spec, None)?;
    let mut target = spec.target;
    target.set_port(0);
    // A raw socket would else get a copy of every ICMP packet that comes to the gateway.
    socket.connect(&target.into()).map_err(|error| ProbeError::from_io(&error))?;
    Ok(socket)
}

struct Echo {
    ipv6: bool,
    token: [u8; TOKEN],
}

impl Echo {
    /// With the checksum of ICMPv4; that of ICMPv6 covers addresses, so the system makes it.
    fn request(&self) -> [u8; HEADER + TOKEN] {
        let mut packet = [0; HEADER + TOKEN];
        packet[0] = if self.ipv6 { 128 } else { 8 };
        // Ping sockets put an identifier of their own here.
        packet[4..6].copy_from_slice(&self.token[..2]);
        packet[6..8].copy_from_slice(&1u16.to_be_bytes());
        packet[HEADER..].copy_from_slice(&self.token);
        if !self.ipv6 {
            let sum = checksum::finish(checksum::sum_bytes(&packet));
            packet[2..4].copy_from_slice(&sum.to_ne_bytes());
        }
        packet
    }

    fn is_answered_by(&self, received: &[u8]) -> bool {
        let is_reply = |packet: &[u8]| {
            let kind = if self.ipv6 { 129 } else { 0 };
            packet.len() >= HEADER + TOKEN && packet[..2] == [kind, 0] && packet[HEADER..HEADER + TOKEN] == self.token
        };
        // A raw socket of IPv4 gives the IP header as well; none of ICMP begins as that does.
        match received.first() {
            Some(first) if !self.ipv6 && first >> 4 == 4 => {
                received.get(usize::from(first & 0x0f) * 4..).is_some_and(is_reply)
            }
            _ => is_reply(received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(echo: &Echo) -> Vec<u8> {
        let mut packet = echo.request().to_vec();
        packet[0] = if echo.ipv6 { 129 } else { 0 };
        packet
    }

    #[test]
    fn only_the_reply_to_the_request_answers_it() {
        for ipv6 in [false, true] {
            let echo = Echo { ipv6, token: *b"a token!" };
            let good = reply(&echo);
            let other = reply(&Echo { ipv6, token: *b"another!" });
            assert!(echo.is_answered_by(&good));
            assert!(!echo.is_answered_by(&other));
            assert!(!echo.is_answered_by(&echo.request()), "the request itself, as loopback shows it");
            assert!(!echo.is_answered_by(&good[..HEADER + TOKEN - 1]));
            let with_header = [&[0x46; 24][..], &good].concat();
            assert_eq!(echo.is_answered_by(&with_header), !ipv6);
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let packet = Echo { ipv6: false, token: *b"a token!" }.request();
        let words = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(ipv6: bool, packet in prop::collection::vec(any::<u8>(), 0..100)) {
            let echo = Echo { ipv6, token: *b"a token!" };
            prop_assert!(!echo.is_answered_by(&packet));
            let answered = echo.is_answered_by(&[&packet, &reply(&echo)[..]].concat());
            prop_assert!(answered || !packet.is_empty());
        }
    }
}
