//! Echo requests, some of them to loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use socket2::Domain;

use super::*;
use crate::health::loopback::{PATIENT, by, from, may, probe, spec};
use crate::health::{CheckKind, Via};

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

#[tokio::test]
async fn echo_requests_are_answered_where_they_may_be_sent() {
    for (ip, domain, protocol) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), Domain::IPV4, Protocol::ICMPV4),
        (Ipv6Addr::LOCALHOST.into(), Domain::IPV6, Protocol::ICMPV6),
    ] {
        let allowed = may(|_| Socket::new(domain, Type::RAW, Some(protocol)).map(drop))
            || may(|_| Socket::new(domain, Type::DGRAM, Some(protocol)).map(drop));
        for via in [Via::default(), from(ip)] {
            let asked = by(via, spec((ip, 0).into(), CheckKind::Icmp, PATIENT));
            let result = probe(&asked).await.map(|_| ());
            assert_eq!(result, if allowed { Ok(()) } else { Err(ProbeError::NotPermitted("send echo requests")) });
        }
    }
}
