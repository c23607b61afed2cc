//! UDP checks, some of servers on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::health::CheckKind;
use crate::health::loopback::{IMPATIENT, PATIENT, datagrams, probe, spec};

#[test]
fn hexadecimal_is_read_as_a_person_writes_it() {
    for (text, bytes) in [
        ("", Ok(vec![])),
        ("0d0A", Ok(vec![0x0d, 0x0a])),
        ("ff:00 7f\n01", Ok(vec![0xff, 0, 0x7f, 1])),
        ("0", Err(SpecError::Hex("0".into()))),
        ("0x01", Err(SpecError::Hex("0x01".into()))),
        ("é0", Err(SpecError::Hex("é0".into()))),
    ] {
        assert_eq!(from_hex(text), bytes, "{text}");
    }
}

#[test]
fn what_no_datagram_can_be_is_refused() {
    let any = || UdpExpect::Anything;
    assert_eq!(UdpCheck::new(vec![], any()), Err(SpecError::NothingToSend));
    assert_eq!(UdpCheck::new(vec![0; 1_401], any()), Err(SpecError::TooMuchToSend(1_401)));
    assert!(UdpCheck::new(vec![0; 1_400], any()).is_ok());
    for nothing in [UdpExpect::StartsWith(vec![]), UdpExpect::Contains(vec![])] {
        assert_eq!(UdpCheck::new(vec![1], nothing), Err(SpecError::NothingExpected));
    }
}

#[tokio::test]
async fn datagrams_are_answered_as_expected_or_not() {
    let check = |expect| CheckKind::Udp(UdpCheck::new(b"ping\0".to_vec(), expect).unwrap());
    let wrong = |what: &str| Err(ProbeError::Answer(what.into()));
    let huge = [vec![b'x'; 60_000], b"pong".to_vec()].concat();
    for (case, answer, expect, expected) in [
        ("anything", b"".to_vec(), UdpExpect::Anything, Ok(())),
        ("what was sent", b"echo".to_vec(), UdpExpect::StartsWith(b"ping\0".into()), Ok(())),
        ("a start", b"pong!".to_vec(), UdpExpect::StartsWith(b"pong".into()), Ok(())),
        ("no start", b"a pong".to_vec(), UdpExpect::StartsWith(b"pong\xff".into()), wrong(r#"start with "pong\xff""#)),
        ("a part", b"a pong".to_vec(), UdpExpect::Contains(b"pong".into()), Ok(())),
        ("no part", b"a".to_vec(), UdpExpect::Contains(b"pong".into()), wrong(r#"contain "pong""#)),
        ("too far behind", huge.clone(), UdpExpect::Contains(b"pong".into()), wrong(r#"contain "pong""#)),
        ("huge", huge, UdpExpect::StartsWith(b"xxx".into()), Ok(())),
    ] {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let target = datagrams(ip, vec![answer.clone()]).await;
            let result = probe(&spec(target, check(expect.clone()), PATIENT)).await;
            assert_eq!(result.map(|_| ()), expected, "{case} {ip}");
        }
    }
    let silent = datagrams(Ipv4Addr::LOCALHOST.into(), vec![]).await;
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Wait };
    assert_eq!(probe(&spec(silent, check(UdpExpect::Anything), IMPATIENT)).await, Err(waits));
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(probe(&spec(closed, check(UdpExpect::Anything), PATIENT)).await, Err(ProbeError::Refused));
}
