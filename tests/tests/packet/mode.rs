//! The forwarding modes, and the servers of each.

use loadbalancer_common::path::encap;
use loadbalancer_common::service::mode;
use loadbalancer_tests::frames::world::Server;

use super::family::{Family, V4, V6};

/// A forwarding mode with the encapsulation and the family of the servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) name: &'static str,
    pub(super) mode: u8,
    /// Encapsulation, and whether servers have IPv6 addresses; none: the packet's family.
    pub(super) tunnel: Option<(u8, bool)>,
}

pub(super) const MODES: [Mode; 7] = [
    Mode { name: "nat", mode: mode::NAT, tunnel: None },
    Mode { name: "dnat", mode: mode::DNAT, tunnel: None },
    Mode { name: "dsr-l2", mode: mode::DSR, tunnel: None },
    Mode { name: "dsr-ipip-over4", mode: mode::DSR, tunnel: Some((encap::IPV4, false)) },
    Mode { name: "dsr-ipip-over6", mode: mode::DSR, tunnel: Some((encap::IPV6, true)) },
    Mode { name: "dsr-gue-over4", mode: mode::DSR, tunnel: Some((encap::GUE_IPV4, false)) },
    Mode { name: "dsr-gue-over6", mode: mode::DSR, tunnel: Some((encap::GUE_IPV6, true)) },
];

impl Mode {
    pub(super) fn rewrites(&self) -> bool {
        self.mode != mode::DSR
    }

    pub(super) fn servers(&self, family: &Family) -> [Server; 2] {
        let (encap, addrs) = match self.tunnel {
            Some((encap, true)) => (encap, V6.servers),
            Some((encap, false)) => (encap, V4.servers),
            None => (encap::NONE, family.servers),
        };
        addrs.map(|addr| {
            Server::at(addr).with(|s| {
                s.encap = encap;
                s.port = if self.rewrites() { 8080 } else { 0 };
            })
        })
    }
}
