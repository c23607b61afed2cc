//! Probes through the real data path: which server each one is for.
//!
//! A probe asks a VIP from a source port that stands for a server ([`Probe`]). It comes in by an interface of its own, the
//! outer end of a pair, so no client can take its place. The packet path looks it up only where a client's flow would be a
//! new one, and its replies only where a packet would be nobody's.
//!
//! Behind the same pair is the responder, which answers those whom no server takes (see
//! [`crate::backend::Backend::LOCAL`]).

use bytemuck::{Pod, Zeroable};

use crate::net::{AnyAddr, Be16};

/// Ethernet address of the inner end of the pair, where the sockets of probes are. Locally administered (IEEE 802, section
/// 8.4); nobody else is on that link.
pub const MAC: [u8; 6] = [0x02, 0x4c, 0x42, 0x50, 0x52, 0x42];

/// A probe (key: its source port, host order).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Probe {
    /// Address that it comes from: one of the gateway's own, which the server answers to.
    pub source: AnyAddr,
    pub vip: AnyAddr,
    /// Whose packets to the source are replies: the VIP in `dsr-*`, the server in `dnat`. Nobody's (zero) in `nat`, which
    /// tracks its flows.
    pub replier: AnyAddr,
    pub vip_port: Be16,
    pub replier_port: Be16,
    pub service: u16,
    /// The server that it is for.
    pub backend: u16,
    pub protocol: u8,
    pub pad: [u8; 7],
}
