//! Whom to ask, and by which way.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

/// Whom a probe asks, and by which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The port is zero for kinds that need none.
    pub address: SocketAddr,
    pub via: Via,
    /// Local TCP or UDP port to ask from; `None` leaves the choice to the system. See [`super::SourcePorts`].
    pub source_port: Option<NonZeroU16>,
    /// Names of service and server, for commands.
    pub service: String,
    pub server: String,
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
    pub forwarder: Forwarder,
}

/// What forwards the packets of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarder {
    /// The gateway's kernel: the target is the server.
    #[default]
    Kernel,
    /// The packet path: the target is a VIP.
    PacketPath,
}
