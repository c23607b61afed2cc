//! One probe: asks a server once.
//!
//! However a probe ends, its connection is reset (`SO_LINGER` of zero) instead of closed, as HAProxy's checks do: a
//! close would leave a `TIME_WAIT` socket for a minute, 60,000 of them at 1,000 probes a second.
//!
//! The last packet of the TCP handshake is held back (`TCP_QUICKACK` off). For HTTP the request carries it; for a TCP
//! check the reset takes its place, so the server's kernel answers and the server itself never sees a connection that
//! ends before it began, and logs none. Should the gateway be slower to send the reset than the kernel is willing to
//! hold the packet back (40 ms), the server sees a connection that was reset.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::error::{Phase, ProbeError};
use super::http;
use super::spec::{CheckKind, CheckSpec};

/// Asks a server once. Returns how long it took: to the SYN-ACK, or to the end of the HTTP answer.
///
/// # Errors
/// Why the check failed; see [`ProbeError::is_local`] for those that say nothing about the server.
pub async fn probe(spec: &CheckSpec) -> Result<Duration, ProbeError> {
    let limit = TimeLimit::start(spec.timeout);
    let stream = limit.within(Phase::Connect, connect(spec)).await?;
    match &spec.kind {
        CheckKind::Tcp => {}
        CheckKind::Http(check) => http::exchange(stream, check, spec.target, &limit).await?,
    }
    Ok(limit.started.elapsed())
}

/// The time that a probe has for all of its phases together.
pub(super) struct TimeLimit {
    started: Instant,
    timeout: Duration,
}

impl TimeLimit {
    pub(super) fn start(timeout: Duration) -> Self {
        Self { started: Instant::now(), timeout }
    }

    pub(super) async fn within<T>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, ProbeError>>,
    ) -> Result<T, ProbeError> {
        match timeout(self.timeout.saturating_sub(self.started.elapsed()), work).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::TimedOut { after: self.timeout, phase }),
        }
    }
}

async fn connect(spec: &CheckSpec) -> Result<TcpStream, ProbeError> {
    let socket = open(spec)?;
    socket.connect(spec.target).await.map_err(|error| ProbeError::from_io(&error))
}

fn open(spec: &CheckSpec) -> Result<TcpSocket, ProbeError> {
    let as_probe_error = |error| ProbeError::from_io(&error);
    let socket =
        if spec.target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(as_probe_error)?;
    socket.set_zero_linger().map_err(as_probe_error)?;
    SockRef::from(&socket).set_tcp_quickack(false).map_err(as_probe_error)?;
    if let Some(source) = spec.source {
        let local = match (source, spec.target) {
            // A link-local source needs the interface, which is the target's.
            (IpAddr::V6(ip), SocketAddr::V6(target)) => SocketAddrV6::new(ip, 0, 0, target.scope_id()).into(),
            _ => SocketAddr::new(source, 0),
        };
        socket.bind(local).map_err(|error| ProbeError::from_bind(source, &error))?;
    }
    Ok(socket)
}
