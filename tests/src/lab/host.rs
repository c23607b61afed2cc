//! One host of the lab: a client or a server with one interface.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use loadbalancer::dataplane::attached_program::AttachMode;
use loadbalancer::dataplane::decap::Decap;
use loadbalancer::dataplane::error::KernelError;
use loadbalancer_common::net::GUE_PORT;
use thiserror::Error;

use super::netns::{Namespace, NetnsError};
use super::plan::{Addresses, PlannedHost};
use super::relay::Relay;
use super::xdp::{Receive, XdpError, XdpLink, attach};

/// One end of a link.
#[derive(Clone, Debug)]
pub struct End {
    pub namespace: Namespace,
    pub device: String,
}

#[derive(Debug, Error)]
pub enum DecapError {
    #[error(transparent)]
    Xdp(#[from] XdpError),
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

#[derive(Debug)]
pub struct Host {
    pub name: String,
    pub addresses: Addresses,
    /// The gateway's addresses on the host's link: where its default routes lead.
    pub gateway: Addresses,
    pub near: End,
    /// The other end of its link: at the gateway, or at the switch of a segment.
    pub far: End,
    /// On the link, if the lab was asked for that.
    pub relay: Option<Relay>,
    receiving: Mutex<Option<XdpLink>>,
    decap: Mutex<Option<Decap>>,
}

impl Host {
    /// A host that is up. It starts to receive all frames, also those that XDP programs send.
    pub(super) fn new(planned: &PlannedHost, [near, far]: [End; 2], relay: Option<Relay>) -> Result<Self, XdpError> {
        let PlannedHost { name, addresses, gateway, .. } = planned.clone();
        let (receiving, decap) = (Mutex::new(None), Mutex::new(None));
        let host = Self { name, addresses, gateway, near, far, relay, receiving, decap };
        host.set_receive(Some(Receive::Pass))?;
        Ok(host)
    }

    pub fn namespace(&self) -> &Namespace {
        &self.near.namespace
    }

    /// The host's address of the same family as `like`.
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        self.addresses.like(like)
    }

    /// Gives the host a virtual address on its loopback interface, as a DSR server has it. The host answers no ARP and
    /// no neighbour solicitation for it.
    pub fn add_vip(&self, vip: IpAddr) -> Result<(), NetnsError> {
        self.near.namespace.ip(&[match vip {
            IpAddr::V4(vip) => format!("addr add {vip}/32 dev lo"),
            IpAddr::V6(vip) => format!("addr add {vip}/128 dev lo nodad"),
        }])
    }

    /// Takes a virtual address away again.
    pub fn remove_vip(&self, vip: IpAddr) -> Result<(), NetnsError> {
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        self.near.namespace.ip(&[format!("addr del {vip}/{prefix} dev lo")])
    }

    /// Changes what the host does with received frames; `None` leaves its XDP hook free.
    pub fn set_receive(&self, receive: Option<Receive>) -> Result<(), XdpError> {
        let mut link = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        // The hook takes one program: the old one goes first.
        *link = None;
        *link = receive.map(|receive| attach(&self.near.namespace, &self.near.device, receive)).transpose()?;
        Ok(())
    }

    /// Has the host take packets out of IPIP and GUE tunnels, by the program that ships for that.
    pub fn set_decap(&self) -> Result<(), DecapError> {
        self.set_receive(None)?;
        let ends = [self.addresses.ipv4.into(), self.addresses.ipv6.into()];
        let attach = || Decap::attach(&self.near.device, GUE_PORT, AttachMode::Native, &ends);
        let decap = self.namespace().run(attach)??;
        *self.decap.lock().unwrap_or_else(PoisonError::into_inner) = Some(decap);
        Ok(())
    }

    /// Has the host take tunnelled packets as they are, which is to drop them.
    pub fn remove_decap(&self) -> Result<(), XdpError> {
        *self.decap.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.set_receive(Some(Receive::Pass))
    }

    /// Sets the MTU of both ends of the host's link, in bytes. A relay on the link keeps its own.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), NetnsError> {
        [&self.near, &self.far]
            .into_iter()
            .try_for_each(|end| end.namespace.ip(&[format!("link set {} mtu {mtu}", end.device)]))
    }
}
