//! The UDP check: one datagram, and the answer to it.

use tokio::net::UdpSocket;

use super::body::contains;
use crate::health::error::{Phase, ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::socket::Sockets;
use crate::health::target::Target;

/// Fits into any path's MTU (1500 bytes of Ethernet) with room for tunnels.
const MOST_SENT: usize = 1_400;
/// The system cuts off what is longer.
const ANSWER_LIMIT: usize = 4 * 1024;

/// What to send, and what makes a good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpCheck {
    send: Vec<u8>,
    expect: UdpExpect,
}

/// What makes a good answer. Only its first 4 KiB are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdpExpect {
    Anything,
    StartsWith(Vec<u8>),
    Contains(Vec<u8>),
}

impl UdpCheck {
    /// # Errors
    /// Nothing or too much to send, or nothing that is expected of an answer.
    pub fn new(send: Vec<u8>, expect: UdpExpect) -> Result<Self, SpecError> {
        match &expect {
            _ if send.is_empty() => Err(SpecError::NothingToSend),
            _ if send.len() > MOST_SENT => Err(SpecError::TooMuchToSend(send.len())),
            UdpExpect::StartsWith(bytes) | UdpExpect::Contains(bytes) if bytes.is_empty() => {
                Err(SpecError::NothingExpected)
            }
            _ => Ok(Self { send, expect }),
        }
    }
}

impl UdpExpect {
    fn judge(&self, answer: &[u8]) -> Result<(), ProbeError> {
        let (good, what, bytes) = match self {
            Self::Anything => return Ok(()),
            Self::StartsWith(bytes) => (answer.starts_with(bytes), "start with", bytes),
            Self::Contains(bytes) => (contains(answer, bytes), "contain", bytes),
        };
        if good { Ok(()) } else { Err(ProbeError::Answer(format!("{what} \"{}\"", bytes.escape_ascii()))) }
    }
}

/// Bytes from hexadecimal digits, two each; spaces and colons between them are passed over.
///
/// # Errors
/// Anything else in the text.
pub fn from_hex(text: &str) -> Result<Vec<u8>, SpecError> {
    let bad = || SpecError::Hex(text.to_owned());
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|c| !c.is_ascii_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(bad)?;
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Sends the datagram and judges the first answer: it has come to the port of this probe alone, from the target alone.
pub(in crate::health) async fn ask(
    target: &Target,
    check: &UdpCheck,
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<(), ProbeError> {
    let socket = sockets.datagrams(target).await?;
    let answer = exchange(&socket, &check.send, limit).await?;
    check.expect.judge(&answer)
}

/// The first answer to a datagram, cut off at the limit.
pub(in crate::health) async fn exchange(
    socket: &UdpSocket,
    send: &[u8],
    limit: &TimeLimit,
) -> Result<Vec<u8>, ProbeError> {
    let sent = async { socket.send(send).await.map_err(|error| ProbeError::from_io(&error)) };
    limit.within(Phase::Wait, sent).await?;
    receive(socket, limit).await
}

/// The next datagram, cut off at the limit.
pub(in crate::health) async fn receive(socket: &UdpSocket, limit: &TimeLimit) -> Result<Vec<u8>, ProbeError> {
    let mut answer = Vec::with_capacity(ANSWER_LIMIT);
    let received = async { socket.recv_buf(&mut answer).await.map_err(|error| ProbeError::from_io(&error)) };
    limit.within(Phase::Wait, received).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests;
