//! HTTP checks, some of servers on loopback.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::health::CheckKind;
use crate::health::loopback::{
    GOOD, IMPATIENT, PATIENT, answering, http, listen, probe, read_request, server, spec, stalling_after,
};

#[tokio::test]
async fn what_came_before_the_request_is_judged_as_an_answer() {
    let check = HttpCheck::new("GET", "/", None, &[200..=200]).unwrap();
    let target = SocketAddr::from(([127, 0, 0, 1], 80));
    let cases: [(&[u8], ProbeError); 2] =
        [(b"220 mail.example ESMTP\r\n", ProbeError::NotHttp), (b"", ProbeError::ClosedEarly)];
    // Repeated, because the order in which futures are polled could be a random one.
    for (unasked, expected) in cases.iter().cycle().take(50) {
        let (ours, mut servers) = tokio::io::duplex(1_000);
        servers.write_all(unasked).await.unwrap();
        servers.shutdown().await.unwrap();
        let limit = TimeLimit::start(Duration::from_secs(20));
        assert_eq!(ask_over(ours, &check, target, PORT, &limit).await.as_ref(), Err(expected));
    }
}

#[tokio::test]
async fn no_more_than_64_kib_of_an_answer_are_read() {
    const PIPE: usize = 1_000;
    let (ours, mut servers) = tokio::io::duplex(PIPE);
    let sent = tokio::spawn(async move {
        servers.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut sent = 19;
        while servers.write_all(&[b'x'; PIPE]).await.is_ok() {
            sent += PIPE;
        }
        sent
    });
    let check = HttpCheck::new("GET", "/", None, &[200..=200]).unwrap();
    let limit = TimeLimit::start(Duration::from_secs(20));
    let target = SocketAddr::from(([127, 0, 0, 1], 80));
    let body = exchange(ours, &check, target, PORT, true, &limit).await.unwrap();
    assert_eq!((body.bytes.len(), body.cut), (BODY_LIMIT, true));
    let sent = sent.await.unwrap();
    assert!((BODY_LIMIT..=64 * 1024 + PIPE).contains(&sent), "{sent}");
}

#[test]
fn what_can_be_asked_is_accepted() {
    for (method, path, host) in [
        ("GET", "/", None),
        ("HEAD", "/health?deep=1", Some("www.example")),
        ("OPTIONS", "/%20", Some("[2001:db8::1]:8080")),
        ("X-PING", "/a", Some("10.0.0.1:81")),
    ] {
        assert!(HttpCheck::new(method, path, host, &[200..=399]).is_ok(), "{method} {path} {host:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_by_name() {
    let (method, path, host) = (SpecError::Method, SpecError::Path, SpecError::Host);
    for (check, error) in [
        (("GE T", "/", None), method("GE T".into())),
        (("", "/", None), method("".into())),
        (("CONNECT", "/", None), method("CONNECT".into())),
        (("GET", "", None), path("".into())),
        (("GET", "health", None), path("health".into())),
        (("GET", "/a b", None), path("/a b".into())),
        (("GET", "/a#b", None), path("/a#b".into())),
        (("GET", "/", Some("")), host("".into())),
        (("GET", "/", Some("a b")), host("a b".into())),
        (("GET", "/", Some("a\r\nX:y")), host("a\r\nX:y".into())),
    ] {
        assert_eq!(HttpCheck::new(check.0, check.1, check.2, &[200..=200]), Err(error));
    }
}

#[test]
fn statuses_that_never_come_are_refused() {
    let range = RangeInclusive::new;
    for (ranges, error) in [
        (vec![], SpecError::NoStatus),
        (vec![range(100, 200)], SpecError::Status(100, 200)),
        (vec![range(200, 204), range(500, 600)], SpecError::Status(500, 600)),
        (vec![range(200, 204), range(399, 300)], SpecError::Status(399, 300)),
    ] {
        assert_eq!(StatusRanges::new(&ranges), Err(error));
    }
}

#[test]
fn statuses_read_as_a_person_writes_them() {
    let ranges = StatusRanges::new(&[200..=200, 300..=399]).unwrap();
    assert_eq!(ranges.to_string(), "200, 300-399");
    let inside = [199, 200, 201, 299, 300, 399, 400].map(|status| ranges.contains(status));
    assert_eq!(inside, [false, true, false, false, true, true, false]);
}
#[test]
fn host_names_the_target_as_a_browser_would() {
    for (target, host) in [
        ("10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1:8080", "10.0.0.1:8080"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("[fe80::1%7]:8080", "[fe80::1]:8080"),
        ("10.0.0.1:443", "10.0.0.1:443"),
    ] {
        assert_eq!(host_of(target.parse().unwrap(), PORT).unwrap(), host);
    }
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
async fn bodies_are_judged_and_bounded() {
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let check =
        |body| CheckKind::Http(HttpCheck::new("GET", "/", None, &[200..=200]).unwrap().with_body(body).unwrap());
    let ready = || BodyMatch::text("ready").unwrap();
    let lacks = |wanted: &str, cut| Err(ProbeError::Body { wanted: wanted.into(), cut });
    let far = |distance: usize| answer(&format!("{}ready", "x".repeat(distance)));
    for (name, wanted, answer, expected) in [
        ("there", ready(), answer("is ready now"), Ok(())),
        ("not there", ready(), answer("is not"), lacks("\"ready\"", false)),
        ("empty", ready(), answer(""), lacks("\"ready\"", false)),
        ("a pattern", BodyMatch::pattern("(?i)READ[xy]").unwrap(), answer("ready"), Ok(())),
        ("no pattern", BodyMatch::pattern("READ[xy]").unwrap(), answer("ready"), lacks("/READ[xy]/", false)),
        ("just within what is looked at", ready(), far(32 * 1024 - 5), Ok(())),
        ("just beyond", ready(), far(32 * 1024 - 4), lacks("\"ready\"", true)),
        (
            "in two chunks",
            ready(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nre\r\n3\r\nady\r\n0\r\n\r\n".into(),
            Ok(()),
        ),
    ] {
        let target = answering(answer).await;
        assert_eq!(probe(&spec(target, check(wanted), PATIENT)).await.map(|_| ()), expected, "{name}");
    }
}
