//! The ways that probes take, to servers on loopback.

use crate::health::loopback::{
    GOOD, PATIENT, by, datagrams, from, http, listen, may, probe, read_request, spec, taken_port,
};
use crate::health::{CheckKind, UdpCheck, UdpExpect, Via};
use tokio::io::AsyncWriteExt;

use super::*;

#[tokio::test]
async fn probes_come_from_the_source_that_is_set() {
    let source = IpAddr::from([127, 5, 6, 7]);
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let asked = by(from(source), spec(target, http(), PATIENT));
    let probed = tokio::spawn(async move { probe(&asked).await });
    let (mut stream, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), source);
    read_request(&mut stream).await;
    stream.write_all(GOOD).await.unwrap();
    assert!(probed.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_source_that_the_gateway_does_not_have_is_named() {
    // Of the range for documentation (RFC 5737); nothing is sent.
    let source = IpAddr::from([192, 0, 2, 1]);
    let (_socket, target) = taken_port();
    let asked = by(from(source), spec(target, CheckKind::Tcp, PATIENT));
    assert_eq!(probe(&asked).await, Err(ProbeError::NoSource(source)));
}

#[tokio::test]
async fn probes_come_from_the_port_that_is_set() {
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let (socket, reserved) = taken_port();
    drop(socket);
    let mut asked = spec(target, http(), PATIENT);
    asked.target.source_port = NonZeroU16::new(reserved.port());
    // Again and again, although the connection before has hardly ended.
    for _ in 0..20 {
        let asked = asked.clone();
        let probed = tokio::spawn(async move { probe(&asked).await });
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.port(), reserved.port());
        read_request(&mut stream).await;
        stream.write_all(GOOD).await.unwrap();
        assert!(probed.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn an_interface_that_the_gateway_does_not_have_is_named() {
    let (_socket, target) = taken_port();
    let name = "no-such-if";
    let via = Via { interface: Some(name.into()), ..Via::default() };
    for kind in [CheckKind::Tcp, CheckKind::Udp(UdpCheck::new(vec![1], UdpExpect::Anything).unwrap())] {
        let asked = by(via.clone(), spec(target, kind, PATIENT));
        assert_eq!(probe(&asked).await, Err(ProbeError::NoInterface(name.into())));
    }
}

#[tokio::test]
async fn probes_take_the_way_that_is_set_where_they_may() {
    let answering = datagrams(Ipv4Addr::LOCALHOST.into(), vec![b"echo".to_vec()]).await;
    let kind = || CheckKind::Udp(UdpCheck::new(b"x".to_vec(), UdpExpect::Anything).unwrap());
    for (via, allowed, refused) in [
        (
            Via { interface: Some("lo".into()), ..Via::default() },
            may(|socket| socket.bind_device(Some(b"lo"))),
            ProbeError::NotPermitted("ask through an interface"),
        ),
        (
            Via { mark: Some(7), ..Via::default() },
            may(|socket| socket.set_mark(7)),
            ProbeError::NotPermitted("mark packets"),
        ),
    ] {
        let asked = by(via.clone(), spec(answering, kind(), PATIENT));
        let expected = if allowed { Ok(()) } else { Err(refused) };
        assert_eq!(probe(&asked).await.map(|_| ()), expected, "{via:?}");
        if allowed {
            let socket = Sockets::default().open(&asked.target, Type::DGRAM, None).await.unwrap();
            let interface = socket.device().unwrap().map(|name| String::from_utf8(name).unwrap());
            let mark = Some(socket.mark().unwrap()).filter(|mark| *mark != 0);
            assert_eq!((interface, mark), (via.interface, via.mark));
        }
    }
}
