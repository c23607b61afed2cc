//! One probe: asks a server once.
//!
//! However a probe ends, its connection is reset (`SO_LINGER` of zero) instead of closed, as HAProxy's checks do: a
//! close would leave a `TIME_WAIT` socket for a minute, 60,000 of them at 1,000 probes a second.
//!
//! The last packet of the TCP handshake is held back (`TCP_QUICKACK` off). For HTTP the request carries it; for a TCP
//! check the reset takes its place, so the server's kernel answers and the server itself never sees a connection that
//! ends before it began, and logs none. Should the gateway be slower to send the reset than the kernel is willing to
//! hold the packet back (40 ms), the server sees a connection that was reset.

use std::time::Duration;

use super::agent_report::AgentReport;
use super::error::ProbeError;
use super::kind::{CheckKind, agent, command, dns, http, icmp, tcp, tls, udp};
use super::limit::TimeLimit;
use super::socket::Sockets;
use super::target::{Forwarder, Target};

/// What is asked of one server, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    pub kind: CheckKind,
    pub target: Target,
    /// From the start of one probe to the start of the next, at least [`CheckSpec::MIN_INTERVAL`] (shorter is raised).
    pub interval: Duration,
    /// For a whole probe, from opening the socket to the end of the answer. May exceed the interval: a probe that is
    /// still running when the next is due takes its place.
    pub timeout: Duration,
}

impl CheckSpec {
    /// Ten times what tokio's timers can tell apart.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// How long it took: to the SYN-ACK for TCP, else to the end of the answer.
    pub latency: Duration,
    /// What an agent reported of its server.
    pub report: Option<Box<AgentReport>>,
}

/// Asks a server once.
///
/// # Errors
/// Why the check failed; see [`ProbeError::is_local`] for those that say nothing about the server.
pub async fn probe(spec: &CheckSpec, sockets: &Sockets) -> Result<Answer, ProbeError> {
    let result = ask(spec, sockets).await;
    match spec.target.via.forwarder {
        Forwarder::Kernel => result,
        Forwarder::PacketPath => {
            result.map_err(|error| ProbeError::Through { vip: spec.target.address, error: Box::new(error) })
        }
    }
}

async fn ask(CheckSpec { kind, target, timeout, .. }: &CheckSpec, sockets: &Sockets) -> Result<Answer, ProbeError> {
    let mut limit = TimeLimit::start(*timeout);
    let mut report = None;
    // The large ones are boxed, so that a probe takes no more memory, and no more copying of it, than its kind needs.
    match kind {
        CheckKind::Tcp => tcp::ask(target, sockets, &limit).await?,
        CheckKind::Http(check) => Box::pin(http::ask(target, check, sockets, &limit)).await?,
        CheckKind::Https(check, tls) => {
            let connector = tls.prepare(*timeout).await?;
            // What the gateway reads for itself is not the server's time.
            limit = TimeLimit::start(*timeout);
            Box::pin(tls::ask(target, check, (tls, connector), sockets, &limit)).await?;
        }
        CheckKind::Udp(check) => udp::ask(target, check, sockets, &limit).await?,
        CheckKind::Icmp => icmp::ask(target, sockets, &limit).await?,
        CheckKind::Dns(check) => Box::pin(dns::ask(target, check, sockets, &limit)).await?,
        CheckKind::Command(check) => Box::pin(command::ask(target, check, &limit)).await?,
        CheckKind::Agent(check) => {
            report = Some(Box::new(Box::pin(agent::ask(target, check, sockets, &limit)).await?));
        }
    }
    Ok(Answer { latency: limit.elapsed(), report })
}
