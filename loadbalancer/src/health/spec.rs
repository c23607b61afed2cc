//! What to ask a server, how often, and how many answers count.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use thiserror::Error;

/// The check of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub kind: CheckKind,
    pub target: SocketAddr,
    /// Address of the gateway to ask from; `None` leaves the choice to the routing table.
    pub source: Option<IpAddr>,
    /// From the start of one probe to the start of the next, at least [`CheckSpec::MIN_INTERVAL`] (shorter is raised).
    pub interval: Duration,
    /// For a whole probe, from opening the socket to the end of the answer. May exceed the interval: a probe that is
    /// still running when the next is due takes its place.
    pub timeout: Duration,
    pub thresholds: Thresholds,
}

impl CheckSpec {
    /// Ten times what tokio's timers can tell apart.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
}

/// How many results in a row change the health of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes that bring a server that is down up.
    pub rise: NonZeroU32,
    /// Failures that take a server that is up down.
    pub fall: NonZeroU32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The server accepts a connection.
    Tcp,
    /// The server answers a request with an expected status.
    Http(HttpCheck),
}

/// An HTTP/1.1 request and the statuses that are good answers to it. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) host: Option<HeaderValue>,
    pub(super) expect: StatusRanges,
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
        Ok(Self { method: parsed_method, path: parsed_path, host, expect: StatusRanges::new(expect)? })
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

/// Why an HTTP check cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("`{0}` is not a method of an HTTP check: use GET, HEAD or another one that takes a path")]
    Method(String),
    #[error("`{0}` is not the path of an HTTP check: write it as in a request, starting with / and percent-encoded")]
    Path(String),
    #[error("`{0}` is not a host for an HTTP check: give a name or address, with :port if needed")]
    Host(String),
    #[error("an HTTP check expects no status: give at least one, such as 200-399")]
    NoStatus,
    #[error("{0}-{1} is not a range of final HTTP statuses: give first and last, in order, within 200-599")]
    Status(u16, u16),
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
