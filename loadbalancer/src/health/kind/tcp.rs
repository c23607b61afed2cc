//! The TCP check: the server accepts a connection.

use crate::health::error::ProbeError;
use crate::health::limit::TimeLimit;
use crate::health::socket::{Handshake, Sockets};
use crate::health::target::Target;

/// Connects, and resets the connection.
pub(in crate::health) async fn ask(target: &Target, sockets: &Sockets, limit: &TimeLimit) -> Result<(), ProbeError> {
    drop(sockets.connect(target, Handshake::HeldBack, limit).await?);
    Ok(())
}

#[cfg(test)]
mod tests;
