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

use tokio::time::{Instant, timeout};

use super::error::{Phase, ProbeError};
use super::socket::{self, Handshake};
use super::spec::{CheckKind, CheckSpec};
use super::word::Word;
use super::{agent, command, dns, http, icmp, udp};

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// How long it took: to the SYN-ACK for TCP, else to the end of the answer.
    pub latency: Duration,
    /// What an agent said of its server.
    pub word: Option<Box<Word>>,
}

/// Asks a server once.
///
/// # Errors
/// Why the check failed; see [`ProbeError::is_local`] for those that say nothing about the server.
pub async fn probe(spec: &CheckSpec) -> Result<Answer, ProbeError> {
    let result = ask(spec).await;
    if spec.via.prober.is_none() {
        return result;
    }
    result.map_err(|error| ProbeError::Through { vip: spec.target, error: Box::new(error) })
}

async fn ask(spec: &CheckSpec) -> Result<Answer, ProbeError> {
    // What the gateway reads for itself is not the server's time.
    let tls = match &spec.kind {
        CheckKind::Https(_, check) => {
            let late = |_| ProbeError::NoRoots {
                what: "certificates of authorities".to_owned(),
                error: format!("reading them takes longer than {:?}", spec.timeout),
            };
            Some(timeout(spec.timeout, check.prepare()).await.map_err(late)??)
        }
        _ => None,
    };
    let limit = TimeLimit::start(spec.timeout);
    let connect = |handshake| limit.within(Phase::Connect, socket::connect(spec, handshake));
    let mut word = None;
    // The large ones are boxed, so that a probe takes no more memory, and no more copying of it, than its kind needs.
    match &spec.kind {
        CheckKind::Tcp => drop(connect(Handshake::HeldBack).await?),
        CheckKind::Http(check) => {
            let stream = connect(Handshake::HeldBack).await?;
            Box::pin(http::ask(stream, check, spec.target, http::PORT, &limit)).await?;
        }
        CheckKind::Https(check, tls_check) => {
            let stream = connect(Handshake::HeldBack).await?;
            let Some(tls) = tls else { unreachable!("it was prepared above") };
            let handshake = Box::pin(tls_check.handshake(tls, stream, spec.target));
            let stream = limit.within(Phase::Encrypt, handshake).await?;
            Box::pin(http::ask(stream, check, spec.target, http::TLS_PORT, &limit)).await?;
        }
        CheckKind::Udp(check) => udp::ask(spec, check, &limit).await?,
        CheckKind::Icmp => icmp::echo(spec, &limit).await?,
        CheckKind::Dns(check) => Box::pin(dns::ask(spec, check, &limit)).await?,
        CheckKind::Command(check) => Box::pin(command::run(spec, check, &limit)).await?,
        CheckKind::Agent(check) => {
            let stream = connect(check.handshake()).await?;
            word = Some(Box::new(Box::pin(agent::ask(stream, check, spec.target, &limit)).await?));
        }
    }
    Ok(Answer { latency: limit.started.elapsed(), word })
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
