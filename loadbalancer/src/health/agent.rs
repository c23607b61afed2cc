//! The probe that asks a server's agent how the server is.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::{Phase, ProbeError};
use super::http;
use super::probe::TimeLimit;
use super::socket::Handshake;
use super::spec::{HttpCheck, SpecError};
use super::word::Word;

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

    pub(super) fn handshake(&self) -> Handshake {
        match self {
            // The agent speaks as soon as it sees the connection.
            Self::Line { send: None } => Handshake::Completed,
            Self::Line { send: Some(_) } | Self::Json(_) => Handshake::HeldBack,
        }
    }
}

/// Asks over a connection. A word in which nothing is understood is a failure.
pub(super) async fn ask(
    stream: TcpStream,
    check: &AgentCheck,
    target: SocketAddr,
    limit: &TimeLimit,
) -> Result<Word, ProbeError> {
    let word = match check {
        AgentCheck::Line { send } => {
            let line = limit.within(Phase::Wait, read_line(stream, send.as_deref().unwrap_or_default())).await?;
            Word::from_line(&line)
        }
        AgentCheck::Json(request) => {
            let body = http::exchange(stream, request, target, http::PORT, true, limit).await?;
            Word::from_json(&body.bytes)?
        }
    };
    if word.is_empty() { Err(ProbeError::NoWord { unknown: word.unknown.join(" ") }) } else { Ok(word) }
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
