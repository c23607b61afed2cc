//! The HTTP check: one request, and the answer to it.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::{fmt, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::BodyMatch;
use crate::health::error::{Phase, ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::socket::{Handshake, Sockets};
use crate::health::target::Target;

// A probe takes at most 64 KiB of an answer: the head and each read of the body fit into the buffer, and no read follows
// once the body has reached its limit.
const BUFFER_LIMIT: usize = 16 * 1024;
const BODY_LIMIT: usize = 32 * 1024;

/// Port that a Host header does not name; over TLS another.
const PORT: u16 = 80;
pub(in crate::health) const TLS_PORT: u16 = 443;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("loadbalancer-check/", env!("CARGO_PKG_VERSION")));

/// An HTTP/1.1 request and the statuses that are good answers to it. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    method: Method,
    path: PathAndQuery,
    host: Option<HeaderValue>,
    expect: StatusRanges,
    body: Option<BodyMatch>,
}

impl HttpCheck {
    /// `host` is the value of the Host header; `None` stands for the target's address and port.
    ///
    /// # Errors
    /// The first argument that cannot be sent or can never match.
    pub fn new(
        method: &str,
        path: &str,
        host: Option<&str>,
        expect: &[RangeInclusive<u16>],
    ) -> Result<Self, SpecError> {
        let bad_method = || SpecError::Method(method.to_owned());
        let parsed_method = Method::from_bytes(method.as_bytes()).map_err(|_| bad_method())?;
        if parsed_method == Method::CONNECT {
            return Err(bad_method());
        }
        let bad_path = || SpecError::Path(path.to_owned());
        if !path.starts_with('/') || path.contains('#') {
            return Err(bad_path());
        }
        let parsed_path = path.parse().map_err(|_| bad_path())?;
        let host = match host {
            None => None,
            Some(text) if text.is_empty() || text.contains(char::is_whitespace) => {
                return Err(SpecError::Host(text.to_owned()));
            }
            Some(text) => Some(HeaderValue::from_str(text).map_err(|_| SpecError::Host(text.to_owned()))?),
        };
        Ok(Self { method: parsed_method, path: parsed_path, host, expect: StatusRanges::new(expect)?, body: None })
    }

    /// Asks for a body as well.
    ///
    /// # Errors
    /// The method is HEAD, to which answers have no body.
    pub fn with_body(self, body: BodyMatch) -> Result<Self, SpecError> {
        if self.method == Method::HEAD { Err(SpecError::NoBody) } else { Ok(Self { body: Some(body), ..self }) }
    }
}

/// A set of HTTP statuses, in the order in which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    /// # Errors
    /// No range, or one that is empty or leaves 200-599: a final answer has no other status (RFC 9110, section 15).
    pub fn new(ranges: &[RangeInclusive<u16>]) -> Result<Self, SpecError> {
        if ranges.is_empty() {
            return Err(SpecError::NoStatus);
        }
        match ranges.iter().find(|range| range.is_empty() || *range.start() < 200 || *range.end() > 599) {
            Some(range) => Err(SpecError::Status(*range.start(), *range.end())),
            None => Ok(Self(ranges.to_vec())),
        }
    }

    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// Connects, sends the request and judges the answer.
pub(in crate::health) async fn ask(
    target: &Target,
    check: &HttpCheck,
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<(), ProbeError> {
    let stream = sockets.connect(target, Handshake::HeldBack, limit).await?;
    ask_over(stream, check, target.address, PORT, limit).await
}

/// Connects, and gives the body of a good answer.
pub(in crate::health) async fn fetch(
    target: &Target,
    check: &HttpCheck,
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<Body, ProbeError> {
    let stream = sockets.connect(target, Handshake::HeldBack, limit).await?;
    exchange(stream, check, target.address, PORT, true, limit).await
}

/// Sends the request over a connection and judges the answer. A Host header does not name the default port.
pub(in crate::health) async fn ask_over(
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
pub(in crate::health) struct Body {
    /// Empty if they were not to be kept.
    pub bytes: Vec<u8>,
    /// There may have been more.
    pub cut: bool,
}

/// Sends the request and judges the answer by its status. A good answer is read to its end or to the limit, because a
/// server that is cut off while it answers logs that as an error.
async fn exchange(
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
mod tests;
