//! The check that asks a server's agent how the server is.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::{self, HttpCheck};
use crate::health::agent_report::AgentReport;
use crate::health::error::{Phase, ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::socket::{Handshake, Sockets};
use crate::health::target::Target;

/// Longest line of an agent, in bytes; HAProxy's users need less than a hundred.
const LINE_LIMIT: usize = 4 * 1024;

/// How an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentCheck {
    /// HAProxy's agent check: a connection, in which the text is sent, if any, and a line comes back.
    Line { send: Option<String> },
    /// An HTTP request, whose answer is JSON.
    Json(HttpCheck),
}

impl AgentCheck {
    /// # Errors
    /// A path or host that cannot be sent.
    pub fn json(path: &str, host: Option<&str>) -> Result<Self, SpecError> {
        HttpCheck::new("GET", path, host, &[200..=299]).map(Self::Json)
    }
}

/// Asks the agent. A report in which nothing is understood is a failure.
pub(in crate::health) async fn ask(
    target: &Target,
    check: &AgentCheck,
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<AgentReport, ProbeError> {
    let report = match check {
        AgentCheck::Line { send } => {
            // Without a question the agent speaks as soon as it sees the connection.
            let handshake = if send.is_some() { Handshake::HeldBack } else { Handshake::Completed };
            let stream = sockets.connect(target, handshake, limit).await?;
            let line = limit.within(Phase::Wait, read_line(stream, send.as_deref().unwrap_or_default())).await?;
            AgentReport::from_line(&line)
        }
        AgentCheck::Json(request) => {
            AgentReport::from_json(&http::fetch(target, request, sockets, limit).await?.bytes)?
        }
    };
    if report.is_empty() { Err(ProbeError::EmptyReport { unknown: report.unknown.join(" ") }) } else { Ok(report) }
}

async fn read_line(mut stream: TcpStream, send: &str) -> Result<String, ProbeError> {
    let as_probe_error = |error| ProbeError::from_io(&error);
    stream.write_all(send.as_bytes()).await.map_err(as_probe_error)?;
    let mut line = Vec::new();
    let mut part = [0; 512];
    loop {
        let length = stream.read(&mut part).await.map_err(as_probe_error)?;
        let part = &part[..length];
        if let Some(end) = part.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            line.extend_from_slice(&part[..end]);
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.extend_from_slice(part);
        if part.is_empty() {
            // What came may be a part of a word.
            return Err(ProbeError::ClosedEarly);
        }
        if line.len() > LINE_LIMIT {
            return Err(ProbeError::LineTooLong);
        }
    }
}

#[cfg(test)]
mod tests;
