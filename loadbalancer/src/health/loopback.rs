//! Servers on loopback for the tests, each of which behaves in one way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::{Answer, CheckKind, CheckSpec, HttpCheck, ProbeError, Sockets, Target, Via};

pub(super) const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough to be kept on a busy machine, where the answer is expected to come.
pub(super) const PATIENT: Duration = Duration::from_secs(20);
/// Where it is expected not to come. What comes before it must have, on a busy machine as well.
pub(super) const IMPATIENT: Duration = Duration::from_millis(500);

pub(super) async fn probe(spec: &CheckSpec) -> Result<Answer, ProbeError> {
    super::probe(spec, &Sockets::default()).await
}

pub(super) fn spec(address: SocketAddr, kind: CheckKind, timeout: Duration) -> CheckSpec {
    CheckSpec {
        kind,
        target: Target {
            address,
            via: Via::default(),
            source_port: None,
            service: "web".into(),
            server: "web1".into(),
        },
        interval: Duration::from_secs(1),
        timeout,
    }
}

/// The same by another way.
pub(super) fn by(via: Via, spec: CheckSpec) -> CheckSpec {
    CheckSpec { target: Target { via, ..spec.target }, ..spec }
}

pub(super) fn from(source: IpAddr) -> Via {
    Via { source: Some(source), ..Via::default() }
}

pub(super) fn http() -> CheckKind {
    CheckKind::Http(HttpCheck::new("GET", "/health?deep=1", Some("www.example"), &[200..=399]).unwrap())
}

pub(super) async fn listen(ip: impl Into<IpAddr>) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip.into(), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A server that does the same with each connection.
pub(super) async fn server<F: Future<Output = ()> + Send + 'static>(
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
pub(super) async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(request).unwrap()
}

/// A server that answers each request with the same bytes and then closes.
pub(super) async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
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
pub(super) async fn stalling_after(beginning: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(beginning).await.unwrap();
        std::future::pending().await
    })
    .await
}

/// An address at which nothing listens, with the socket that has taken it so that nothing else can.
pub(super) fn taken_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// A UDP server that answers each datagram with these.
pub(super) async fn datagrams(ip: IpAddr, answers: Vec<Vec<u8>>) -> SocketAddr {
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

/// Whether this process may do what a probe needs, found out without the probe.
pub(super) fn may(action: impl Fn(&Socket) -> std::io::Result<()>) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    action(&socket).is_ok()
}
