//! Single flows, as `loadbalancer flows --json` tells of them.

use std::net::SocketAddr;

use serde::Serialize;

use crate::dataplane::flows;

/// A flow of a `nat` service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NatFlow {
    /// `tcp` or `udp`.
    pub protocol: String,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// What the server sees as its client.
    pub source: SocketAddr,
    pub server: SocketAddr,
    pub state: String,
    /// Since the client's last packet, at most.
    pub idle_seconds: u64,
}

/// What the affinity table says of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affinity {
    pub server: String,
    pub state: String,
    /// Since the last packet, at most.
    pub idle_seconds: u64,
}

/// Flows of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowCount {
    pub server: String,
    /// Entries in the affinity table.
    pub affinity: u64,
    /// Flows of `nat`.
    pub nat: u64,
    /// As the packet path counts them.
    pub active: u64,
}

impl From<flows::NatFlow> for NatFlow {
    fn from(it: flows::NatFlow) -> Self {
        Self {
            protocol: it.protocol,
            client: it.client,
            vip: it.vip,
            source: it.source,
            server: it.server,
            state: it.state,
            idle_seconds: it.idle_seconds,
        }
    }
}

impl From<flows::Affinity> for Affinity {
    fn from(it: flows::Affinity) -> Self {
        Self { server: it.server, state: it.state, idle_seconds: it.idle_seconds }
    }
}

impl From<flows::Count> for FlowCount {
    fn from(it: flows::Count) -> Self {
        Self { server: it.server, affinity: it.affinity, nat: it.nat, active: it.active }
    }
}
