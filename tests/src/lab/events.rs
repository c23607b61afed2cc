//! Waiting for states, and making things happen to hosts.

use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::host::Host;
use super::netns::NetnsError;
use super::plan::{HOST_DEVICE, default_routes};

/// Time between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(2);

#[derive(Debug, Error)]
#[error("not within {waited:?}: {what}")]
pub struct WaitError {
    pub what: String,
    pub waited: Duration,
}

/// Waits until a condition holds, for at most `deadline`.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<(), WaitError> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > deadline {
            return Err(WaitError { what: what.to_owned(), waited: deadline });
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// A side of a host's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Host,
    /// The gateway's, or the switch's in a segment.
    Far,
}

impl Host {
    /// Takes one side of the host's link down; the other loses its carrier.
    pub fn link_down(&self, side: Side) -> Result<(), NetnsError> {
        let end = self.end(side);
        end.namespace.ip(&[format!("link set {} down", end.device)])
    }

    pub fn link_up(&self, side: Side) -> Result<(), NetnsError> {
        let end = self.end(side);
        end.namespace.ip(&[format!("link set {} up", end.device)])?;
        match side {
            Side::Host => self.namespace().ip(&default_routes(HOST_DEVICE, &self.gateway)),
            Side::Far => Ok(()),
        }
    }

    /// Gives the host another MAC address, which it announces.
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), NetnsError> {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        self.near.namespace.ip(&[format!("link set {} address {mac}", self.near.device)])
    }

    fn end(&self, side: Side) -> &super::host::End {
        match side {
            Side::Host => &self.near,
            Side::Far => &self.far,
        }
    }
}
