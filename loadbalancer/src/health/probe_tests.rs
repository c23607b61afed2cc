//! Probes against servers on loopback, each of which behaves in one way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::{
    AgentAdmin, AgentCheck, BodyMatch, CheckKind, CheckSpec, CommandCheck, DnsCheck, HttpCheck, Phase, ProbeError,
    TlsCheck, UdpCheck, UdpExpect, Verify, Via, Word, probe,
};

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

/// Certificates made for the test: an authority in a file, and servers' certificates of it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: NamedFile,
}

/// A file that is removed with the test.
struct NamedFile(PathBuf);

impl NamedFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadbalancer-test-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for NamedFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { file: NamedFile::new(name, &certificate.pem()), issuer: Issuer::new(params, key) }
    }

    /// A server that answers within TLS; `years` say when its certificate is valid.
    async fn server(&self, names: &[&str], years: RangeInclusive<i32>, answer: &'static [u8]) -> SocketAddr {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(*years.start(), 1, 1);
        params.not_after = date_time_ymd(*years.end(), 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        server(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // A client that does not like the certificate goes away.
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut request = [0; 1_000];
                    let length = stream.read(&mut request).await.unwrap();
                    assert!(request[..length].starts_with(b"GET / HTTP/1.1\r\n"));
                    stream.write_all(answer).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            }
        })
        .await
    }
}

fn https(name: Option<&str>, verify: Verify) -> CheckKind {
    let http = HttpCheck::new("GET", "/", None, &[200..=200]).unwrap();
    CheckKind::Https(http.with_body(BodyMatch::text("ok").unwrap()).unwrap(), TlsCheck::new(name, verify).unwrap())
}

#[tokio::test]
async fn certificates_are_verified_unless_told_otherwise() {
    let authority = Authority::new("ca");
    let other = Authority::new("other-ca");
    let ours = || Verify::File(authority.file.0.clone());
    let good = authority.server(&["www.example", "127.0.0.1"], 2000..=2200, GOOD).await;
    let expired = authority.server(&["www.example"], 2000..=2001, GOOD).await;
    let early = authority.server(&["www.example"], 2200..=2201, GOOD).await;
    let broken = authority.server(&["www.example"], 2000..=2200, b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let wrong = |reason: &str| Err(ProbeError::Certificate(reason.into()));
    for (case, target, name, verify, expected) in [
        ("by name", good, Some("www.example"), ours(), Ok(())),
        ("by address", good, None, ours(), Ok(())),
        ("another name", good, Some("mail.example"), ours(), wrong("is not for mail.example")),
        ("another address and expired, but not verified", expired, None, Verify::Nothing, Ok(())),
        ("another authority", good, None, Verify::File(other.file.0.clone()), wrong("is of an unknown authority")),
        ("expired", expired, Some("www.example"), ours(), wrong("has expired")),
        ("not valid yet", early, Some("www.example"), ours(), wrong("is not valid yet")),
        (
            "a bad answer",
            broken,
            Some("www.example"),
            ours(),
            Err(ProbeError::Status { status: 500, expected: "200".into() }),
        ),
    ] {
        let result = probe(&spec(target, https(name, verify), PATIENT)).await;
        assert_eq!(result.map(|_| ()), expected, "{case}");
    }
    let by_system = probe(&spec(good, https(None, Verify::System), PATIENT)).await;
    // A machine without any certificates says so.
    let told =
        |error: &ProbeError| error.is_local() || *error == ProbeError::Certificate("is of an unknown authority".into());
    assert!(by_system.as_ref().is_err_and(told), "{by_system:?}");
    let unreadable = probe(&spec(good, https(None, Verify::File("/no/such/file".into())), PATIENT)).await;
    assert!(unreadable.as_ref().is_err_and(ProbeError::is_local), "{unreadable:?}");
}

#[tokio::test]
async fn what_is_not_tls_is_told() {
    let plain = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut hello = [0; 5_000];
        while stream.read(&mut hello).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    assert_eq!(probe(&spec(plain, https(None, Verify::Nothing), PATIENT)).await, Err(ProbeError::NotTls));
    let silent = server(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Encrypt };
    assert_eq!(probe(&spec(silent, https(None, Verify::Nothing), IMPATIENT)).await, Err(waits));
    // A handshake message of 16 MiB is announced and never ends.
    let endless = server(|mut stream| async move {
        let mut record = vec![0x16, 3, 3, 0x40, 0];
        record.extend([2, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        while stream.write_all(&record).await.is_ok() {}
    })
    .await;
    let result = probe(&spec(endless, https(None, Verify::Nothing), PATIENT)).await;
    assert!(matches!(result, Err(ProbeError::NotTls | ProbeError::Tls(_))), "{result:?}");
}

/// A UDP server that answers each datagram with these.
async fn datagrams(ip: IpAddr, answers: Vec<Vec<u8>>) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut asked = [0; 2_000];
        loop {
            let (length, peer) = socket.recv_from(&mut asked).await.unwrap();
            for answer in &answers {
                // The id of a DNS query is repeated where the answer has none.
                let answer =
                    if answer.starts_with(b"ID") { [&asked[..2], &answer[2..]].concat() } else { answer.clone() };
                let answer = if answer == b"echo" { asked[..length].to_vec() } else { answer };
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    addr
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

#[tokio::test]
async fn dns_queries_are_answered_or_not() {
    let check = || CheckKind::Dns(DnsCheck::new("www.example", "A", "NOERROR").unwrap());
    let header = |code: u8, records: u8| [b"ID", &[0x81, code, 0, 0, 0, records, 0, 0, 0, 0][..]].concat();
    let record = [header(0, 1), vec![0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]].concat();
    let nonsense = || vec![b"nonsense".to_vec(); 40];
    let refused = ProbeError::DnsCode { code: "REFUSED".into(), expected: "NOERROR".into() };
    for (case, answers, expected) in [
        ("a record", vec![record.clone()], Ok(())),
        ("after nonsense", vec![b"nonsense".to_vec(), vec![], record], Ok(())),
        ("no record", vec![header(0, 0)], Err(ProbeError::NoRecord("A".into()))),
        ("refused", vec![header(5, 0)], Err(refused)),
        ("records announced, none there", vec![header(0, 255)], Err(ProbeError::NotDns)),
        ("nonsense only", nonsense(), Err(ProbeError::NotDns)),
    ] {
        let target = datagrams(Ipv4Addr::LOCALHOST.into(), answers).await;
        assert_eq!(probe(&spec(target, check(), PATIENT)).await.map(|_| ()), expected, "{case}");
    }
    let echo = datagrams(Ipv4Addr::LOCALHOST.into(), vec![b"echo".to_vec()]).await;
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Wait };
    assert_eq!(probe(&spec(echo, check(), IMPATIENT)).await, Err(waits), "the query itself is no answer");
}

fn command(script: &str) -> CheckKind {
    CheckKind::Command(CommandCheck::new(&["/bin/sh", "-c", script]).unwrap())
}

#[tokio::test]
async fn commands_are_judged_by_their_end() {
    let target = SocketAddr::from(([127, 0, 0, 1], 8080));
    let ends = |end: &str, reason: &str| Err(ProbeError::Command { end: end.into(), reason: reason.into() });
    for (script, expected) in [
        ("exit 0", Ok(())),
        ("echo fine", Ok(())),
        ("exit 3", ends("exit code 3", "")),
        ("echo; echo disk full; echo more; exit 1", ends("exit code 1", "disk full")),
        ("echo bad >&2; exit 1", ends("exit code 1", "bad")),
        ("kill -9 $$", ends("killed by signal 9", "")),
        (
            "echo $LB_SERVICE $LB_SERVER $LB_ADDRESS $LB_PORT $LB_MARK-$HOME-$LB_SOURCE; exit 1",
            ends("exit code 1", "web web1 127.0.0.1 8080 7--"),
        ),
        ("read line && exit 1; exit 0", Ok(())),
        ("head -c 10000000 /dev/zero; exit 2", ends("exit code 2", &" ".repeat(120))),
        // What it leaves behind holds the pipe open.
        ("sleep 3 & exit 0", Ok(())),
    ] {
        let asked =
            CheckSpec { via: Via { mark: Some(7), ..Via::default() }, ..spec(target, command(script), PATIENT) };
        assert_eq!(probe(&asked).await.map(|_| ()), expected, "{script}");
    }
    let none = CheckKind::Command(CommandCheck::new(&["/no/such/program"]).unwrap());
    let failed = probe(&spec(target, none, PATIENT)).await.expect_err("there is none");
    assert!(failed.is_local());
    assert_eq!(failed.to_string(), "gateway cannot run /no/such/program: No such file or directory (os error 2)");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_what_it_started() {
    // Each holds the pipe open for as long as it lives.
    let (ours, theirs) = std::io::pipe().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&theirs));
    let script = format!("exec 9>{path}; echo begun; sleep 100 & sleep 100");
    let target = SocketAddr::from(([127, 0, 0, 1], 8080));
    let patience = Duration::from_millis(500);
    let result = probe(&spec(target, command(&script), patience)).await;
    assert_eq!(result, Err(ProbeError::TimedOut { after: patience, phase: Phase::Run }));
    drop(theirs);
    // It ends when nobody has the other end any more.
    let mut ours = tokio::net::unix::pipe::Receiver::from_owned_fd(ours.into()).unwrap();
    let end = tokio::time::timeout(PATIENT, ours.read(&mut [0])).await.expect("all of them are gone");
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn agents_are_understood_or_told() {
    let line = |send: Option<&str>| CheckKind::Agent(AgentCheck::Line { send: send.map(str::to_owned) });
    let saying = |text: &'static [u8]| server(move |mut stream| async move { stream.write_all(text).await.unwrap() });
    let unknown = |unknown: &str| Err(ProbeError::NoWord { unknown: unknown.into() });
    for (text, expected) in [
        (&b"up 75%\n"[..], Ok("up 75%")),
        (b"down # disk full\r\nmore\n", Ok("down # disk full")),
        (b"drain\r", Ok("drain")),
        (b"\n", unknown("")),
        (b"hello \xff\n", unknown("hello \u{fffd}")),
        // What ends without a line may be half a word.
        (b"maxconn:10", Err(ProbeError::ClosedEarly)),
        (b"", Err(ProbeError::ClosedEarly)),
    ] {
        let result = probe(&spec(saying(text).await, line(None), PATIENT)).await;
        let word = result.map(|answer| *answer.word.expect("an agent gives a word"));
        assert_eq!(word, expected.map(Word::from_line), "{text:?}");
    }
    let endless = server(|mut stream| async move { while stream.write_all(&[b'u'; 1_000]).await.is_ok() {} }).await;
    assert_eq!(probe(&spec(endless, line(None), PATIENT)).await, Err(ProbeError::LineTooLong));
    let asking = server(|mut stream| async move {
        let mut question = [0; 8];
        stream.read_exact(&mut question).await.unwrap();
        stream.write_all(if &question == b"web/web1" { b"ready\n" } else { b"what\n" }).await.unwrap();
    })
    .await;
    let answer = probe(&spec(asking, line(Some("web/web1")), PATIENT)).await.unwrap();
    assert_eq!(answer.word.and_then(|word| word.admin), Some(AgentAdmin::Ready));
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Wait };
    assert_eq!(probe(&spec(asking, line(None), IMPATIENT)).await, Err(waits));
}

#[tokio::test]
async fn agents_may_speak_json() {
    let check = || CheckKind::Agent(AgentCheck::json("/load", None).unwrap());
    let answer =
        |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let huge = format!("{{\"cpu\": 0.5, \"text\": \"{}\"}}", "x".repeat(40_000));
    for (case, answer, expected) in [
        ("all well", answer("200 OK", r#"{"cpu": 0.5, "in_flight": 3}"#), Ok((Some(0.5), Some(3)))),
        ("no JSON", answer("200 OK", "up"), Err(ProbeError::NotJson)),
        ("nothing known", answer("200 OK", "{\"cpu\": 9}"), Err(ProbeError::NoWord { unknown: "cpu=9".into() })),
        ("too much", answer("200 OK", &huge), Err(ProbeError::NotJson)),
        (
            "an error",
            answer("404 Not Found", "{\"cpu\": 0.5}"),
            Err(ProbeError::Status { status: 404, expected: "200-299".into() }),
        ),
    ] {
        let result = probe(&spec(answering(answer).await, check(), PATIENT)).await;
        let word = result.map(|answer| answer.word.map(|word| (word.cpu, word.in_flight)).expect("a word"));
        assert_eq!(word, expected, "{case}");
    }
}

#[tokio::test]
async fn an_agent_that_speaks_first_is_not_kept_waiting() {
    // The kernel holds back the end of a handshake by 40 ms where it may, and the agent would not see the connection.
    let target = server(|mut stream| async move { stream.write_all(b"up\n").await.unwrap() }).await;
    let mut quickest = PATIENT;
    for _ in 0..20 {
        let check = CheckKind::Agent(AgentCheck::Line { send: None });
        quickest = quickest.min(probe(&spec(target, check, PATIENT)).await.unwrap().latency);
    }
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");
}

#[tokio::test]
async fn probes_come_from_the_port_that_is_set() {
    let (listener, target) = listen(Ipv4Addr::LOCALHOST).await;
    let (socket, reserved) = taken_port();
    drop(socket);
    let asked = CheckSpec { source_port: NonZeroU16::new(reserved.port()), ..spec(target, http(), PATIENT) };
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
        let asked = CheckSpec { via: via.clone(), ..spec(target, kind, PATIENT) };
        assert_eq!(probe(&asked).await, Err(ProbeError::NoInterface(name.into())));
    }
}

/// Whether this process may do what a probe needs, found out without the probe.
fn may(action: impl Fn(&Socket) -> std::io::Result<()>) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    action(&socket).is_ok()
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
            let asked = CheckSpec { via, ..spec((ip, 0).into(), CheckKind::Icmp, PATIENT) };
            let result = probe(&asked).await.map(|_| ());
            assert_eq!(result, if allowed { Ok(()) } else { Err(ProbeError::NotPermitted("send echo requests")) });
        }
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
        let asked = CheckSpec { via: via.clone(), ..spec(answering, kind(), PATIENT) };
        let expected = if allowed { Ok(()) } else { Err(refused) };
        assert_eq!(probe(&asked).await.map(|_| ()), expected, "{via:?}");
        if allowed {
            let socket = super::socket::open(&asked, Type::DGRAM, None).await.unwrap();
            let interface = socket.device().unwrap().map(|name| String::from_utf8(name).unwrap());
            let mark = Some(socket.mark().unwrap()).filter(|mark| *mark != 0);
            assert_eq!((interface, mark), (via.interface, via.mark));
        }
    }
}
