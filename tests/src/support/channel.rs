//! A way from the gateway to the servers, with a relay that impairs it while it is in use.

use std::collections::BTreeMap;

use super::host::End;
use super::lab::LabError;
use super::netns::{Namespace, NetnsError};
use super::plan::{Addresses, GATEWAY, Plan, RELAY, ROUTER, relay_devices};
use super::relay::Relay;
use super::xdp::{XdpLink, attach_xdp_pass};

#[derive(Debug)]
pub struct Channel {
    pub name: String,
    /// The gateway's interface.
    pub near: End,
    /// The router's interface, on the other side of the relay.
    pub far: End,
    /// The gateway's addresses. What servers send there comes back over this channel.
    pub source: Addresses,
    /// The router's addresses.
    pub next_hop: Addresses,
    pub relay: Relay,
    routes: Vec<String>,
    /// Without it the relay would not get what the gateway sends from XDP.
    _receiving: XdpLink,
}

impl Channel {
    pub(super) fn up(plan: &Plan, index: usize, namespaces: &BTreeMap<&str, Namespace>) -> Result<Self, LabError> {
        let planned = &plan.channels[index];
        let end = |host: &str| End { namespace: namespaces[host].clone(), device: planned.name.clone() };
        let [near, far] = relay_devices(&planned.name);
        Ok(Self {
            name: planned.name.clone(),
            near: end(GATEWAY),
            far: end(ROUTER),
            source: planned.gateway,
            next_hop: planned.router,
            _receiving: attach_xdp_pass(&namespaces[RELAY], &near)?,
            relay: Relay::start(&namespaces[RELAY], [&near, &far], index as u64)?,
            routes: plan.channel_routes(index),
        })
    }

    /// Takes the gateway's interface down. Its kernel forgets the routes over it.
    pub fn link_down(&self) -> Result<(), NetnsError> {
        self.near.namespace.ip(&[format!("link set {} down", self.near.device)])
    }

    pub fn link_up(&self) -> Result<(), NetnsError> {
        self.near.namespace.ip(&[format!("link set {} up", self.near.device)])?;
        self.near.namespace.ip(&self.routes)
    }
}
