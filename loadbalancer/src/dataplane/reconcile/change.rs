//! One write to the kernel's tables.

use std::collections::HashSet;
use std::net::IpAddr;

use loadbalancer_common::backend::Backend;
use loadbalancer_common::path::Path;
use loadbalancer_common::probe::Probe;
use loadbalancer_common::service::{Reply, Service, Vip};
use loadbalancer_common::settings::Settings;

use super::super::ids::{BackendNumber, PathNumber, RingNumber, ServiceNumber};

/// What a VIP, or a server's reply, is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) addr: IpAddr,
    /// Zero: any.
    pub(super) port: u16,
    pub(super) protocol: u8,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Settings(Settings),
    /// Nothing of who had the number before is counted any more.
    ResetService(ServiceNumber),
    /// The default: the number is free.
    Service(ServiceNumber, Service),
    /// New flows may find room in the service again.
    Room(ServiceNumber),
    /// Nothing of who had the number before is counted any more.
    ResetBackend(BackendNumber),
    /// The default: the number is free.
    Backend(BackendNumber, Backend),
    /// The entries of all flows to these go.
    ForgetFlows(HashSet<BackendNumber>),
    /// None of its flows is active any more.
    ResetActive(BackendNumber),
    Path(PathNumber, Path),
    /// With all words of the ring's place.
    Ring(RingNumber, Vec<u64>),
    /// None: it goes.
    Vip(Target, Option<Vip>),
    /// None: it goes.
    Reply(Target, Option<Reply>),
    /// By source port; none: it goes.
    Probe(u16, Option<Probe>),
}

impl Change {
    /// Whether it is told as a write: what only resets counters of a number is not.
    pub(super) fn is_counted(&self) -> bool {
        !matches!(
            self,
            Self::ResetService(_) | Self::Room(_) | Self::ResetBackend(_) | Self::ForgetFlows(_) | Self::ResetActive(_)
        )
    }
}
