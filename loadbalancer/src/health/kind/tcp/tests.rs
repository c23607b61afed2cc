//! TCP checks of servers on loopback.

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::net::TcpStream;

use crate::health::CheckKind;
use crate::health::error::ProbeError;
use crate::health::loopback::{PATIENT, by, from, http, listen, probe, spec, taken_port};

#[tokio::test]
async fn a_port_without_listener_is_refused() {
    let (_socket, target) = taken_port();
    for kind in [CheckKind::Tcp, http()] {
        assert_eq!(probe(&spec(target, kind, PATIENT)).await, Err(ProbeError::Refused));
    }
}

#[tokio::test]
async fn a_tcp_check_is_not_seen_by_the_server() {
    const UNSEEN: usize = 20;
    // A machine may be so busy that the kernel does not hold back a handshake for long enough: some may be seen.
    const PROBES: usize = 1_000;
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let mut unseen = 0;
    for _ in 0..PROBES {
        assert!(probe(&spec(target, CheckKind::Tcp, PATIENT)).await.is_ok());
        // What the server accepts before this connection is the probe.
        let ours = TcpStream::connect(target).await.unwrap();
        if listener.accept().await.unwrap().1 == ours.local_addr().unwrap() {
            unseen += 1;
        } else {
            assert_eq!(listener.accept().await.unwrap().1, ours.local_addr().unwrap());
        }
        if unseen == UNSEEN {
            return;
        }
    }
    panic!("only {unseen} of {PROBES} were not seen");
}

#[tokio::test]
async fn ipv6_servers_are_checked_alike() {
    let (listener, target) = listen(Ipv6Addr::LOCALHOST).await;
    let tcp = by(from(Ipv6Addr::LOCALHOST.into()), spec(target, CheckKind::Tcp, PATIENT));
    assert!(probe(&tcp).await.is_ok());
    drop(listener);
    assert_eq!(probe(&tcp).await, Err(ProbeError::Refused));
}
