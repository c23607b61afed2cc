//! Backends: one server as a member of one service.

use bytemuck::{Pod, Zeroable};

use crate::net::{AnyAddr, Be16};

/// Number 0 is no backend.
pub const NO_BACKEND: u16 = 0;

/// Path slots of a backend. Channels fill them in proportion to their weights; the flow hash picks one.
pub const PATH_SLOTS: usize = 8;

/// One backend, as the packet path reads it. First cache line: what every packet needs.
///
/// Address, source and port of a backend number never change while flows may refer to it; the other fields may.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Indices into the path array; zero: no path.
    pub paths: [u32; PATH_SLOTS],
    pub flags: u16,
    pub service: u16,
    /// Port of the server in `nat` and `dnat`; zero keeps the packet's.
    pub port: Be16,
    pub pad: u16,
    /// Weight in selection between two hot servers; at least 1 while in a ring.
    pub weight: u32,
    /// New flows go elsewhere, if they can, from this many active flows on.
    pub hot_mark: u32,
    /// No new flow from this many active flows on (R6).
    pub high_water: u32,
    /// Weight that the operator has set by hand, plus one; zero: none. Not read by the packet path; kept here so that a new
    /// controller knows it.
    pub set_weight: u32,
    /// Who it is in the configuration, so that a new controller recognises what it finds.
    pub identity: u64,
    pub addr: AnyAddr,
    /// Source address that `nat` gives to packets for this server.
    pub source: AnyAddr,
}

impl Backend {
    /// The number is in use.
    pub const PRESENT: u16 = 1;
    /// May get new flows. Without it live flows go on (or are reset, see `Service::RESET_ON_DOWN` and `DOWN`).
    pub const ACCEPTS: u16 = 2;
    /// Checks say that it does not work.
    pub const DOWN: u16 = 4;
    pub const IPV6: u16 = 8;
    /// The operator has drained it. Not read by the packet path, which goes by `ACCEPTS`; see `set_weight`.
    pub const DRAINED: u16 = 16;
    /// Not a server, but the controller's own responder: in no ring, and what goes to it stays as its client sent it,
    /// in every mode.
    pub const LOCAL: u16 = 32;

    #[inline(always)]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What a backend was sent, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendCounters {
    pub packets: u64,
    /// IP bytes, before encapsulation.
    pub bytes: u64,
    /// New flows.
    pub flows: u64,
    /// Packets from the server, where they pass through the gateway.
    pub reply_packets: u64,
    pub reply_bytes: u64,
}
