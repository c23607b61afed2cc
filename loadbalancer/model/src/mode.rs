//! How a service's packets are forwarded, and what becomes of flows that cannot be.

use loadbalancer_common::service::mode;

/// What becomes of a packet on its way to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Nat,
    Dnat,
    DsrL2,
    DsrIpip,
    DsrGue,
}

impl Mode {
    pub const ALL: [Self; 5] = [Self::Nat, Self::Dnat, Self::DsrL2, Self::DsrIpip, Self::DsrGue];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dnat => "dnat",
            Self::DsrL2 => "dsr-l2",
            Self::DsrIpip => "dsr-ipip",
            Self::DsrGue => "dsr-gue",
        }
    }

    /// Mode in the kernel: one of [`loadbalancer_common::service::mode`].
    pub const fn kernel(self) -> u8 {
        match self {
            Self::Nat => mode::NAT,
            Self::Dnat => mode::DNAT,
            Self::DsrL2 | Self::DsrIpip | Self::DsrGue => mode::DSR,
        }
    }

    /// Whether replies go straight from the server to the client.
    pub const fn is_dsr(self) -> bool {
        matches!(self, Self::DsrL2 | Self::DsrIpip | Self::DsrGue)
    }
}

/// How a channel carries packets to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Ipip,
    Gue,
}

/// What new flows are kept together by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    #[default]
    Flow,
    Client,
}

/// How a client learns that no server takes its flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    #[default]
    Reset,
    Drop,
}

/// What becomes of live flows of a server that fails its checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnServerDown {
    #[default]
    Keep,
    Reset,
}
