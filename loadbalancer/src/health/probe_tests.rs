//! Probes against servers on loopback, each of which behaves in one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{CheckKind, CheckSpec, HttpCheck, Phase, ProbeError, Via, probe};

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough to be kept on a busy machine, where the answer is expected to come.
const PATIENT: Duration = Duration::from_secs(20);
/// Where it is expected not to come.
const IMPATIENT: Duration = Duration::from_millis(150);

fn spec(target: SocketAddr, kind: CheckKind, timeout: Duration) -> CheckSpec {
    CheckSpec {
        kind,
        target,
        via: Via::default(),
        source_port: None,
        service: "web".into(),
        server: "web1".into(),
        interval: Duration::from_secs(1),
        timeout,
    }
}

fn from(source: IpAddr) -> Via {
    Via { source: Some(source), ..Via::default() }
}

fn http() -> CheckKind {
    CheckKind::Http(HttpCheck::new("GET", "/health?deep=1", Some("www.example"), &[200..=399]).unwrap())
}

async fn listen(ip: impl Into<IpAddr>) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip.into(), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A server that does the same with each connection.
async fn server<F: Future<Output = ()> + Send + 'static>(
    behave: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let (listener, addr) = listen(Ipv4Addr::LOCALHOST).await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(behave(stream));
        }
    });
    addr
}

/// Reads a request to its end and returns it.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

/// A server that answers each request with the same bytes and then closes.
async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    server(move |mut stream| {
        let answer = answer.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(&answer).await.unwrap();
        }
    })
    .await
}

/// A server that answers each request with the beginning of an answer, and then nothing for as long as the client waits.
async fn stalling_after(beginning: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(beginning).await.unwrap();
        std::future::pending().await
    })
    .await
}

/// An address at which nothing listens, with the socket that has taken it so that nothing else can.
fn taken_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[tokio::test]
async fn answers_are_judged_by_status() {
    let head = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    let wrong = |status| Err(ProbeError::Status { status, expected: "200-399".into() });
    let cases = [
        ("ok", GOOD.to_vec(), Ok(())),
        ("redirect, not followed", b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n".to_vec(), Ok(())),
        ("no content", head("204 No Content").into(), Ok(())),
        ("hints first", [b"HTTP/1.1 103 Early Hints\r\n\r\n", GOOD].concat(), Ok(())),
        ("length unknown", b"HTTP/1.0 200 OK\r\n\r\nuntil the end".to_vec(), Ok(())),
        ("in chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(), Ok(())),
        ("unavailable", head("503 Service Unavailable").into(), wrong(503)),
        ("not found", head("404 Not Found").into(), wrong(404)),
        ("switches", head("101 Switching Protocols").into(), wrong(101)),
        ("garbage", b"\x16\x03\x01\x02\x00 not at all\r\n\r\n".to_vec(), Err(ProbeError::NotHttp)),
        ("another protocol", b"* OK IMAP4rev1 ready\r\n".to_vec(), Err(ProbeError::NotHttp)),
        ("nothing", Vec::new(), Err(ProbeError::ClosedEarly)),
        ("half a head", b"HTTP/1.1 200 OK\r\nServ".to_vec(), Err(ProbeError::ClosedEarly)),
        ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec(), Err(ProbeError::ClosedEarly)),
        (
            "half a chunk",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf".to_vec(),
            Err(ProbeError::ClosedEarly),
        ),
    ];
    for (name, answer, expected) in cases {
        let target = answering(answer).await;
        let result = probe(&spec(target, http(), PATIENT)).await;
        assert_eq!(result.map(|_| ()), expected, "{name}");
    }
}

#[tokio::test]
async fn the_request_is_what_the_check_says() {
    for (method, host) in [("GET", Some("www.example")), ("HEAD", None)] {
        let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
        let check = HttpCheck::new(method, "/health?deep=1", host, &[200..=200]).unwrap();
        let probed = tokio::spawn(async move { probe(&spec(target, CheckKind::Http(check), PATIENT)).await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await.to_ascii_lowercase();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await.unwrap();
        if method == "GET" {
            stream.write_all(b"hello").await.unwrap();
        }
        assert!(probed.await.unwrap().is_ok());

        let start = format!("{} /health?deep=1 http/1.1\r\n", method.to_ascii_lowercase());
        assert!(request.starts_with(&start), "{request}");
        let host = host.map_or_else(|| target.to_string(), str::to_owned);
        for line in [&format!("host: {host}"), "connection: close"] {
            assert!(request.lines().any(|l| l == line), "{line} in {request}");
        }
    }
}

#[tokio::test]
async fn a_port_without_listener_is_refused() {
    let (_socket, target) = taken_port();
    for kind in [CheckKind::Tcp, http()] {
        assert_eq!(probe(&spec(target, kind, PATIENT)).await, Err(ProbeError::Refused));
    }
}

#[tokio::test]
async fn the_time_out_covers_every_phase() {
    let waits = |phase| Err(ProbeError::TimedOut { after: IMPATIENT, phase });

    // One connection fills the backlog; the kernel then ignores further ones.
    let full = TcpSocket::new_v4().unwrap();
    full.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let full = full.listen(0).unwrap();
    let full_addr = full.local_addr().unwrap();
    let _filler = TcpStream::connect(full_addr).await.unwrap();

    // A header that never ends, a byte at a time.
    let dripping = server(|mut stream| async move {
        let mut pace = tokio::time::interval(IMPATIENT / 10);
        let mut next = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Endless: ").await;
        while next.is_ok() {
            pace.tick().await;
            next = stream.write_all(b"a").await;
        }
    })
    .await;

    for (name, target, kind, expected) in [
        ("full backlog", full_addr, CheckKind::Tcp, waits(Phase::Connect)),
        ("full backlog", full_addr, http(), waits(Phase::Connect)),
        ("silent", stalling_after(b"").await, http(), waits(Phase::Wait)),
        ("stalls in the head", stalling_after(b"HTTP/1.1 200 OK\r\n").await, http(), waits(Phase::Wait)),
        ("stalls in the body", stalling_after(&GOOD[..GOOD.len() - 1]).await, http(), waits(Phase::Read)),
        ("drips", dripping, http(), waits(Phase::Wait)),
    ] {
        let started = Instant::now();
        assert_eq!(probe(&spec(target, kind, IMPATIENT)).await.map(|_| ()), expected, "{name}");
        assert!(started.elapsed() >= IMPATIENT && started.elapsed() < PATIENT, "{name}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_slow_answer_within_the_time_out_is_good_and_its_time_is_told() {
    let delay = Duration::from_millis(30);
    let target = server(move |mut stream| async move {
        read_request(&mut stream).await;
        tokio::time::sleep(delay).await;
        stream.write_all(GOOD).await.unwrap();
    })
    .await;
    let latency = probe(&spec(target, http(), PATIENT)).await.unwrap().latency;
    assert!(latency >= delay && latency < PATIENT, "{latency:?}");
}

#[tokio::test]
async fn a_huge_answer_is_cut_off_and_a_huge_head_refused() {
    let endless = |head: &'static [u8], rest: &'static [u8]| {
        server(move |mut stream| async move {
            read_request(&mut stream).await;
            let mut written = stream.write_all(head).await;
            while written.is_ok() {
                written = stream.write_all(rest).await;
            }
        })
    };
    let body = endless(b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 10_000]).await;
    assert!(probe(&spec(body, http(), PATIENT)).await.is_ok());
    let header = endless(b"HTTP/1.1 200 OK\r\nX-Endless: ", &[b'x'; 10_000]).await;
    assert_eq!(probe(&spec(header, http(), PATIENT)).await, Err(ProbeError::HeadTooLarge));
    let headers = endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n").await;
    assert_eq!(probe(&spec(headers, http(), PATIENT)).await, Err(ProbeError::HeadTooLarge));
}

#[tokio::test]
async fn servers_that_do_not_wait_for_the_request_are_told_apart() {
    // Repeated, because what the probe sees first depends on who is faster.
    const TIMES: usize = 50;
    let banner = server(|mut stream| async move {
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        read_request(&mut stream).await;
    })
    .await;
    let closing = server(|stream| async move { drop(stream) }).await;
    let resetting = server(|stream| async move { stream.set_zero_linger().unwrap() }).await;
    for _ in 0..TIMES {
        assert_eq!(probe(&spec(banner, http(), PATIENT)).await, Err(ProbeError::NotHttp));
        // The request may be what makes the server's kernel answer the close with a reset.
        let closed = probe(&spec(closing, http(), PATIENT)).await;
        assert!(matches!(closed, Err(ProbeError::ClosedEarly | ProbeError::Reset)), "{closed:?}");
        assert_eq!(probe(&spec(resetting, http(), PATIENT)).await, Err(ProbeError::Reset));
    }
}

#[tokio::test]
async fn a_tcp_check_is_not_seen_by_the_server() {
    const PROBES: usize = 20;
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    for _ in 0..PROBES {
        assert!(probe(&spec(target, CheckKind::Tcp, PATIENT)).await.is_ok());
    }
    // What the server accepts before this connection are probes.
    let ours = TcpStream::connect(target).await.unwrap();
    let mut probes_seen = 0;
    while listener.accept().await.unwrap().1 != ours.local_addr().unwrap() {
        probes_seen += 1;
    }
    // On a machine so busy that the kernel does not hold back the handshake long enough, some may be seen.
    assert!(probes_seen < PROBES / 2, "{probes_seen} of {PROBES}");
}

#[tokio::test]
async fn an_http_check_ends_in_a_reset_after_the_whole_answer() {
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let probed = tokio::spawn(async move { probe(&spec(target, http(), PATIENT)).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    read_request(&mut stream).await;
    stream.write_all(GOOD).await.unwrap();
    assert!(probed.await.unwrap().is_ok());
    let end = stream.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn probes_come_from_the_source_that_is_set() {
    let source = IpAddr::from([127, 5, 6, 7]);
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let asked = CheckSpec { via: from(source), ..spec(target, http(), PATIENT) };
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
    let asked = CheckSpec { via: from(source), ..spec(target, CheckKind::Tcp, PATIENT) };
    assert_eq!(probe(&asked).await, Err(ProbeError::NoSource(source)));
}

#[tokio::test]
async fn ipv6_servers_are_checked_alike() {
    let (listener, target) = listen(Ipv6Addr::LOCALHOST).await;
    let tcp = CheckSpec { via: from(Ipv6Addr::LOCALHOST.into()), ..spec(target, CheckKind::Tcp, PATIENT) };
    assert!(probe(&tcp).await.is_ok());
    drop(listener);
    assert_eq!(probe(&tcp).await, Err(ProbeError::Refused));
}
