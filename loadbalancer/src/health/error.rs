//! Why a probe failed, in texts short enough for a column of a table; and why one cannot be made.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use thiserror::Error;

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProbeError {
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    #[error("no route to host")]
    NoRoute,
    #[error("network unreachable")]
    NetworkUnreachable,
    #[error("timed out after {after:?} {phase}")]
    TimedOut { after: Duration, phase: Phase },
    #[error("closed before the answer was complete")]
    ClosedEarly,
    #[error("answer is not HTTP")]
    NotHttp,
    #[error("head of the answer is too large")]
    HeadTooLarge,
    #[error("status {status}, expected {expected}")]
    Status { status: u16, expected: String },
    /// `cut`: the body was longer than what is looked at.
    #[error("{}body has no {wanted}", if *cut { "first 32 KiB of the " } else { "" })]
    Body { wanted: String, cut: bool },
    #[error("answer is not TLS")]
    NotTls,
    #[error("certificate {0}")]
    Certificate(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("answer does not {0}")]
    Answer(String),
    #[error("answer is not DNS")]
    NotDns,
    #[error("DNS code {code}, expected {expected}")]
    DnsCode { code: String, expected: String },
    #[error("DNS answer has no {0} record")]
    NoRecord(String),
    /// `reason` is the first line that the command wrote, or empty.
    #[error("{end}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Command { end: String, reason: String },
    #[error("line of the agent is too long")]
    LineTooLong,
    #[error("agent's answer is not JSON")]
    NotJson,
    #[error("agent says nothing{}{unknown}", if unknown.is_empty() { "" } else { " that is known: " })]
    EmptyReport { unknown: String },
    #[error("gateway cannot run {program}: {error}")]
    CannotRun { program: String, error: String },
    /// The certificates to verify against.
    #[error("gateway cannot use {what}: {error}")]
    NoRoots { what: String, error: String },
    /// The address to ask from is not one of the gateway's.
    #[error("gateway has no address {0}")]
    NoSource(IpAddr),
    /// The interface to ask through is not one of the gateway's.
    #[error("gateway has no interface {0}")]
    NoInterface(String),
    /// There is no namespace to open sockets in from which packets meet the packet path.
    #[error("gateway has no way to ask through the packet path")]
    NoPacketPath,
    /// The gateway may not do what a probe needs; the operand says what.
    #[error("gateway may not {0}: it needs CAP_NET_ADMIN and CAP_NET_RAW")]
    NotPermitted(&'static str),
    /// The gateway lacks what a probe needs; the operand says what.
    #[error("gateway is out of {0}")]
    OutOf(&'static str),
    /// What went wrong when the server was asked through the packet path.
    #[error("through {vip}: {error}")]
    Through { vip: SocketAddr, error: Box<ProbeError> },
    /// What the system said, where nothing above fits.
    #[error("{0}")]
    Other(String),
}

/// What a probe was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connect,
    Encrypt,
    Wait,
    Read,
    Run,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Connect => "in connect",
            Phase::Encrypt => "in the TLS handshake",
            Phase::Wait => "waiting for an answer",
            Phase::Read => "reading the answer",
            Phase::Run => "running the command",
        })
    }
}

impl ProbeError {
    /// What went wrong, whichever way the server was asked.
    pub fn cause(&self) -> &Self {
        if let Self::Through { error, .. } = self { error.cause() } else { self }
    }

    /// Whether the cause lies in the gateway. Such a failure says nothing about the server, so it does not count
    /// against it: a gateway that runs out of file descriptors must not declare all of its servers dead.
    pub fn is_local(&self) -> bool {
        matches!(
            self.cause(),
            Self::NoSource(_)
                | Self::NoInterface(_)
                | Self::NoPacketPath
                | Self::NotPermitted(_)
                | Self::OutOf(_)
                | Self::CannotRun { .. }
                | Self::NoRoots { .. }
        )
    }

    /// What a failed system call on the probe's socket means.
    pub(super) fn from_io(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => return Self::OutOf("file descriptors"),
            Some(libc::ENOBUFS | libc::ENOMEM) => return Self::OutOf("memory"),
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::Reset
            }
            io::ErrorKind::HostUnreachable => Self::NoRoute,
            io::ErrorKind::NetworkUnreachable => Self::NetworkUnreachable,
            // What connect() says when every port of the ephemeral range is taken towards this target (connect(2)).
            io::ErrorKind::AddrNotAvailable => Self::OutOf("local ports"),
            io::ErrorKind::UnexpectedEof => Self::ClosedEarly,
            _ => Self::Other(error.to_string()),
        }
    }

    /// What a socket that could not be made means.
    pub(super) fn from_open(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted("send echo requests"),
            _ => Self::from_io(error),
        }
    }

    /// What a failed bind to the source address and port means.
    pub(super) fn from_bind(source: SocketAddr, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrNotAvailable => Self::NoSource(source.ip()),
            io::ErrorKind::AddrInUse => Self::OutOf("local ports"),
            _ => Self::from_io(error),
        }
    }

    /// What a failed bind to an interface means.
    pub(super) fn from_bind_device(interface: &str, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENODEV) => Self::NoInterface(interface.to_owned()),
            Some(libc::EPERM) => Self::NotPermitted("ask through an interface"),
            _ => Self::from_io(error),
        }
    }

    /// What a mark that could not be set means.
    pub(super) fn from_mark(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted("mark packets"),
            _ => Self::from_io(error),
        }
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
    fn system_errors_read_well_and_blame_the_right_side() {
        for (errno, text, local) in [
            (libc::ECONNREFUSED, "connection refused", false),
            (libc::ECONNRESET, "connection reset", false),
            (libc::EPIPE, "connection reset", false),
            (libc::EHOSTUNREACH, "no route to host", false),
            (libc::ENETUNREACH, "network unreachable", false),
            (libc::EMFILE, "gateway is out of file descriptors", true),
            (libc::ENFILE, "gateway is out of file descriptors", true),
            (libc::ENOBUFS, "gateway is out of memory", true),
            (libc::EADDRNOTAVAIL, "gateway is out of local ports", true),
            (libc::EACCES, "Permission denied (os error 13)", false),
            (libc::EPERM, "Operation not permitted (os error 1)", false),
        ] {
            let error = ProbeError::from_io(&io::Error::from_raw_os_error(errno));
            assert_eq!((error.to_string().as_str(), error.is_local()), (text, local));
        }
    }

    #[test]
    fn what_went_through_a_vip_says_so_and_blames_the_same_side() {
        for (error, text, local) in [
            (ProbeError::Refused, "through 192.0.2.1:80: connection refused", false),
            (ProbeError::OutOf("memory"), "through 192.0.2.1:80: gateway is out of memory", true),
        ] {
            let error = ProbeError::Through { vip: ([192, 0, 2, 1], 80).into(), error: Box::new(error) };
            assert_eq!((error.to_string().as_str(), error.is_local()), (text, local));
        }
    }

    #[test]
    fn the_way_that_a_server_was_asked_does_not_hide_what_went_wrong() {
        let late = ProbeError::TimedOut { after: Duration::from_secs(1), phase: Phase::Wait };
        let local = ProbeError::OutOf("memory");
        for (error, is_local) in [(late, false), (local, true)] {
            let vip = SocketAddr::from(([192, 0, 2, 1], 80));
            let through = ProbeError::Through { vip, error: Box::new(error.clone()) };
            assert_eq!((through.cause(), through.is_local()), (&error, is_local));
        }
    }

    #[test]
    fn time_outs_say_how_long_and_in_what() {
        for (after, phase, text) in [
            (Duration::from_secs(1), Phase::Connect, "timed out after 1s in connect"),
            (Duration::from_millis(1500), Phase::Wait, "timed out after 1.5s waiting for an answer"),
            (Duration::from_millis(200), Phase::Read, "timed out after 200ms reading the answer"),
        ] {
            assert_eq!(ProbeError::TimedOut { after, phase }.to_string(), text);
        }
    }
}
