//! The HTTP part of a probe: one request over a connection that is there already.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{Phase, ProbeError};
use super::probe::TimeLimit;
use super::spec::HttpCheck;

// A probe takes at most 64 KiB of an answer: the head and each read of the body fit into the buffer, and no read follows
// once the body has reached its limit.
const BUFFER_LIMIT: usize = 16 * 1024;
const BODY_LIMIT: usize = 32 * 1024;

/// Ports that a Host header does not name.
pub(super) const PORT: u16 = 80;
pub(super) const TLS_PORT: u16 = 443;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("loadbalancer-check/", env!("CARGO_PKG_VERSION")));

/// Sends the request and judges the answer.
pub(super) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    check: &HttpCheck,
    target: SocketAddr,
    default_port: u16,
    limit: &TimeLimit,
) -> Result<(), ProbeError> {
    let keep = check.body.is_some();
    let body = exchange(stream, check, target, default_port, keep, limit).await?;
    match &check.body {
        Some(wanted) if !wanted.is_in(&body.bytes) => {
            Err(ProbeError::Body { wanted: wanted.to_string(), cut: body.cut })
        }
        _ => Ok(()),
    }
}

/// What came after the head of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    /// Empty if they were not to be kept.
    pub bytes: Vec<u8>,
    /// There may have been more.
    pub cut: bool,
}

/// Sends the request and judges the answer by its status. A good answer is read to its end or to the limit, because a
/// server that is cut off while it answers logs that as an error.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    check: &HttpCheck,
    target: SocketAddr,
    default_port: u16,
    keep: bool,
    limit: &TimeLimit,
) -> Result<Body, ProbeError> {
    let request = request(check, target, default_port)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_LIMIT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| from_hyper(&error))?;

    let judged = async {
        let answered = async { sender.send_request(request).await.map_err(|error| from_hyper(&error)) };
        let answer = limit.within(Phase::Wait, answered).await?;
        let status = answer.status().as_u16();
        if !check.expect.contains(status) {
            return Err(ProbeError::Status { status, expected: check.expect.to_string() });
        }
        limit.within(Phase::Read, read_body(answer.into_body(), keep)).await
    };
    let driven = async {
        // A shutdown would close the connection properly before its reset.
        match connection.without_shutdown().await {
            // How it ended is told to `judged` too, after what was received before.
            Ok(_) | Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        // So that the request is there when the connection first looks for one.
        biased;
        result = judged => result,
        result = driven => result,
    }
}

fn request(check: &HttpCheck, target: SocketAddr, default_port: u16) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let host = match &check.host {
        Some(host) => host.clone(),
        None => host_of(target, default_port)?,
    };
    Request::builder()
        .method(check.method.clone())
        .uri(check.path.clone())
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, HeaderValue::from_static("*/*"))
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::new())
        .map_err(|error| ProbeError::Other(error.to_string()))
}

/// Host header of an address (RFC 9110, section 7.2): without a zone, and without the default port.
fn host_of(target: SocketAddr, default_port: u16) -> Result<HeaderValue, ProbeError> {
    let text = match (target.ip(), target.port()) {
        (IpAddr::V4(ip), port) if port == default_port => ip.to_string(),
        (IpAddr::V6(ip), port) if port == default_port => format!("[{ip}]"),
        (ip, port) => SocketAddr::new(ip, port).to_string(),
    };
    HeaderValue::try_from(text).map_err(|error| ProbeError::Other(error.to_string()))
}

async fn read_body(mut body: Incoming, keep: bool) -> Result<Body, ProbeError> {
    let mut read = Body::default();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| from_hyper(&error))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if keep {
            read.bytes.extend_from_slice(&data[..data.len().min(BODY_LIMIT - received)]);
        }
        received += data.len();
        if received >= BODY_LIMIT {
            read.cut = true;
            break;
        }
    }
    Ok(read)
}

/// The first cause that says something: hyper wraps what the system said, and its own errors in one another.
fn from_hyper(error: &hyper::Error) -> ProbeError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return ProbeError::from_io(io);
        }
        if let Some(http) = current.downcast_ref::<hyper::Error>() {
            if http.is_parse_too_large() {
                return ProbeError::HeadTooLarge;
            }
            if http.is_parse() {
                return ProbeError::NotHttp;
            }
            if http.is_incomplete_message() {
                return ProbeError::ClosedEarly;
            }
        }
        cause = current.source();
    }
    match (error.is_canceled(), error.source()) {
        // The connection ended, or bytes came, before the request could be written. Servers of other protocols greet.
        (true, None) => ProbeError::ClosedEarly,
        (true, Some(_)) => ProbeError::NotHttp,
        (false, _) => ProbeError::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

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
            assert_eq!(ask(ours, &check, target, PORT, &limit).await.as_ref(), Err(expected));
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
}
