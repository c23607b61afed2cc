//! A way from the gateway to the servers, with a relay that impairs it while it is in use.

use super::host::End;
use super::netns::NetnsError;
use super::plan::{Addresses, PlannedChannel};
use super::relay::Relay;

#[derive(Debug)]
pub struct Channel {
    pub name: String,
    /// The gateway's interface.
    pub near: End,
    /// The other side of the relay, at the router, or at the switch of a segment.
    pub far: End,
    /// The gateway's addresses. What servers send there comes back over this channel.
    pub source: Addresses,
    /// The router's addresses; none in a segment, where servers are neighbours.
    pub next_hop: Option<Addresses>,
    pub relay: Relay,
    routes: Vec<String>,
}

impl Channel {
    pub(super) fn new(planned: &PlannedChannel, [far, near]: [End; 2], relay: Relay, routes: Vec<String>) -> Self {
        let PlannedChannel { name, gateway, next_hop } = planned.clone();
        Self { name, near, far, source: gateway, next_hop, relay, routes }
    }

    /// Takes the gateway's interface down. Its kernel forgets the routes over it.
    pub fn link_down(&self) -> Result<(), NetnsError> {
        self.near.namespace.ip(&[format!("link set {} down", self.near.device)])
    }

    pub fn link_up(&self) -> Result<(), NetnsError> {
        self.near.namespace.ip(&[format!("link set {} up", self.near.device)])?;
        self.near.namespace.ip(&self.routes)
    }

    /// Takes the next hop's interface down, or brings it up: the gateway's own stays up, but nobody answers.
    pub fn set_far_up(&self, up: bool) -> Result<(), NetnsError> {
        let state = if up { "up" } else { "down" };
        self.far.namespace.ip(&[format!("link set {} {state}", self.far.device)])
    }
}
