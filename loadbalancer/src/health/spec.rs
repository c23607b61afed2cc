//! What to ask a server, how often, and how many answers count.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use thiserror::Error;

use super::agent::AgentCheck;
use super::body::BodyMatch;
use super::command::CommandCheck;
use super::dns::DnsCheck;
use super::tls::TlsCheck;
use super::udp::UdpCheck;
use crate::network::prober::Prober;

/// What is asked of one server, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub kind: CheckKind,
    /// The port is zero for kinds that need none.
    pub target: SocketAddr,
    pub via: Via,
    /// Local TCP or UDP port to ask from; `None` leaves the choice to the system. See [`super::SourcePorts`].
    pub source_port: Option<NonZeroU16>,
    /// Names of service and server, for commands.
    pub service: String,
    pub server: String,
    /// From the start of one probe to the start of the next, at least [`CheckSpec::MIN_INTERVAL`] (shorter is raised).
    pub interval: Duration,
    /// For a whole probe, from opening the socket to the end of the answer. May exceed the interval: a probe that is
    /// still running when the next is due takes its place.
    pub timeout: Duration,
}

/// The way that a probe takes. What is not set is left to the routing table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// Address of the gateway to ask from.
    pub source: Option<IpAddr>,
    /// Name of the interface that packets must leave and come by (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
    /// Firewall mark that policy routing tells the way by (`SO_MARK`).
    pub mark: Option<u32>,
    /// The namespace to ask from, through the packet path: the target is a VIP then.
    pub prober: Option<Prober>,
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
    /// The server answers a request as expected.
    Http(HttpCheck),
    /// The same within TLS.
    Https(HttpCheck, TlsCheck),
    /// The server answers a datagram.
    Udp(UdpCheck),
    /// The server answers an ICMP or ICMPv6 echo request.
    Icmp,
    /// The server answers a DNS query over UDP.
    Dns(DnsCheck),
    /// A program of the gateway's ends with exit code 0.
    Command(CommandCheck),
    /// The server's agent says how it is.
    Agent(AgentCheck),
}

/// What port a kind of check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    Tcp,
    Udp,
    /// The host as such, or whatever a command does with the port.
    Any,
}

impl CheckKind {
    pub const fn asks(&self) -> Asks {
        match self {
            Self::Tcp | Self::Http(_) | Self::Https(..) | Self::Agent(_) => Asks::Tcp,
            Self::Udp(_) | Self::Dns(_) => Asks::Udp,
            Self::Icmp | Self::Command(_) => Asks::Any,
        }
    }
}

/// An HTTP/1.1 request and the statuses that are good answers to it. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) host: Option<HeaderValue>,
    pub(super) expect: StatusRanges,
    pub(super) body: Option<BodyMatch>,
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

/// Why a check cannot be made: what is wrong, and after a colon how to mend it.
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
    #[error("every body contains an empty text: give some text of a good answer")]
    EmptyBody,
    #[error("a HEAD request gets no body: remove `body` and `body_regex`, or use GET")]
    NoBody,
    #[error("the pattern cannot be read ({0}): write it in the syntax of the Rust crate `regex`")]
    Pattern(String),
    #[error("the pattern is too large when compiled: use smaller repetitions")]
    PatternTooLarge,
    #[error("`{0}` is not a name in a certificate: give a host name or an address, without port")]
    ServerName(String),
    #[error("`{0}` is not hexadecimal: write two digits a byte, such as \"0d 0a\"")]
    Hex(String),
    #[error("nothing is to be sent: give a datagram of 1 to 1400 bytes")]
    NothingToSend,
    #[error("{0} bytes are too many for a datagram: give 1 to 1400")]
    TooMuchToSend(usize),
    #[error("every answer contains nothing: give some bytes of a good answer, or leave it out")]
    NothingExpected,
    #[error("`{0}` is not a name to ask a DNS server for: use labels of 1 to 63 bytes with dots between them")]
    Query(String),
    #[error("`{0}` is not a type of DNS record to ask for: use A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT or ANY")]
    RecordType(String),
    #[error("`{0}` is not a DNS response code: use NOERROR, NXDOMAIN, REFUSED, SERVFAIL, FORMERR, NOTIMP or NOTAUTH")]
    ResponseCode(String),
    #[error("there is no command: give the program and its arguments, such as [\"/usr/local/bin/check\", \"-q\"]")]
    NoCommand,
    #[error("`{0}` is not a program: give its absolute path")]
    Command(String),
    #[error("an argument has a zero byte: remove it")]
    ZeroByte,
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
