//! Exact connection tracking, for `nat`: a tuple as it is seen on the wire, and what it becomes.
//!
//! Each flow has two entries in one map, one per direction. The key of one follows from the value of the other
//! ([`Translation::reverse_key`]). The entry of the client's direction holds the flow's state.

use crate::net::Be16;
use crate::path::LastHop;

/// A flow as one side sends it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// What becomes of packets with a tuple. Laid out without padding for both families.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    pub service: u16,
    pub backend: u16,
    /// Last packet of this direction, in ticks.
    pub time: u32,
    /// Client's direction: state of the flow (see [`crate::affinity::state`]), changed by compare-exchange. The other
    /// direction: zero.
    pub state: u32,
    /// [`TO_SERVER`] or [`TO_CLIENT`].
    pub direction: u16,
    /// Both directions: [`SAMPLED`] or zero.
    pub flags: u16,
    /// Both directions: what is added to the client's TCP timestamps, and taken from their echo. Zero: there are none.
    pub timestamps: u32,
    /// Where the client's packets came from; used by the direction to the client.
    pub last_hop: LastHop,
}

pub const TO_SERVER: u16 = 1;
pub const TO_CLIENT: u16 = 2;

/// The flow is sampled (see [`crate::signal`]). Kept here, as nothing else of a packet tells it without a hash.
pub const SAMPLED: u16 = 1;

impl<A: Copy> Translation<A> {
    /// The tuple of the other direction's packets: those that answer what this entry makes.
    #[inline(always)]
    pub fn reverse_key(&self, protocol: u8) -> Tuple<A> {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol, pad: [0; 3] }
    }
}

/// A fragmented packet, by what all its fragments share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    pub id: u32,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// Where the first fragment went: addresses as rewritten, and the way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment<A> {
    pub src: A,
    pub dst: A,
    pub service: u16,
    pub backend: u16,
    /// Path for packets to the server; zero: to the client, by `last_hop`.
    pub path: u32,
    pub last_hop: LastHop,
}
