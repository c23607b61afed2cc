//! The queue's two meetings with the packet path: what it is handed over, and how it gives back.
//!
//! The first packet of a flow that no server takes goes to the controller in a ring buffer, as a [`Held`] and the frame
//! behind it. When a server has room, the controller sends the frame in again, by the interface of our own probes and with a
//! [`Ticket`] in front that says which server. Nobody else can: what is on the other end of that interface is ours alone.

use bytemuck::{Pod, Zeroable};

use crate::hash::mix;
use crate::net::{AnyAddr, Be16};

/// EtherType in front of a frame that is given back (IEEE 802, local experimental 1).
pub const TICKET: u16 = 0x88b5;

/// Room for the usual first packet of a connection: Ethernet with two tags, IPv6, TCP with 40 bytes of options.
pub const SMALL_FRAME: usize = 128;
/// Largest frame that may wait: with its ticket it fits into the interface that it comes back by.
pub const LARGE_FRAME: usize = 1488;

/// Bytes of the ring buffer: some 20,000 connections that the controller has not looked at yet.
pub const BUFFER_BYTES: u32 = 1 << 22;

/// What a record in the ring buffer is about: its first byte.
pub mod kind {
    /// The first packet of a flow: a [`super::Held`], and the frame.
    pub const FLOW: u8 = 1;
    /// A client has shown that it is where its packets say (see [`super::cookie`]): a [`super::Held`].
    pub const VERIFIED: u8 = 2;
    /// A client gave up: a [`super::Held`].
    pub const RESET: u8 = 3;
    /// A server of a service has room: a [`super::HasRoom`].
    pub const ROOM: u8 = 4;
}

/// What the packet path knows of a flow that is to wait.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Held {
    /// One of [`kind`].
    pub kind: u8,
    pub protocol: u8,
    pub service: u16,
    /// Interface that it came by.
    pub ifindex: u32,
    pub hash: u64,
    /// When it came, in nanoseconds of the monotonic clock.
    pub time: u64,
    pub src: AnyAddr,
    /// Sequence number of a TCP segment, by which one that is sent again is told from a new connection's; zero for datagrams.
    pub sequence: u32,
    pub dport: Be16,
    /// Class that its client's address gives, plus one; zero: none.
    pub class: u16,
    /// Server that its client had before, for services that keep a client on one; zero: none.
    pub preferred: u16,
    /// Bytes of the frame behind this.
    pub length: u16,
    pub tos: u8,
    /// Whether addresses are of IPv6.
    pub ipv6: u8,
    /// Whether its client has shown that it is where its packets say.
    pub verified: u8,
    pub pad: u8,
}

/// A server of a service has room: someone may be given back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HasRoom {
    /// [`kind::ROOM`].
    pub kind: u8,
    pub pad: u8,
    pub service: u16,
    pub pad2: u32,
}

impl HasRoom {
    #[inline(always)]
    pub const fn new(service: u16) -> Self {
        Self { kind: kind::ROOM, pad: 0, service, pad2: 0 }
    }
}

/// In front of a frame that is given back, where an Ethernet header would be.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ticket {
    /// Where an Ethernet header has addresses. Nobody reads them.
    pub addresses: [u16; 6],
    /// [`TICKET`].
    pub ethertype: Be16,
    /// The server, which has counted the flow as active already; zero: the flow is refused, as its service is configured.
    pub backend: u16,
    /// Interface that the frame came by.
    pub ifindex: u32,
    pub service: u16,
    pub flags: u16,
}

impl Ticket {
    /// Without a server: the client is told that it is refused, however its service is configured.
    pub const RESET: u16 = 1;
    /// Without a server: the client is to show that it is where its packets say, and goes on waiting.
    pub const CHALLENGE: u16 = 2;

    pub const fn new(service: u16, backend: u16, ifindex: u32, flags: u16) -> Self {
        Self { addresses: [0; 6], ethertype: Be16::new(TICKET), backend, ifindex, service, flags }
    }
}

/// Class of a client's address: the key of a longest prefix match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ClassKey {
    /// Bits of service and address that count: 32 and those of the prefix.
    prefix_len: u32,
    /// With the family, so that prefixes of both can be in one map. All of its bits count, whatever their order.
    service: u32,
    addr: AnyAddr,
}

impl ClassKey {
    /// `length`: bits of the address that count.
    #[inline(always)]
    pub const fn new(service: u16, ipv6: bool, addr: AnyAddr, length: u8) -> Self {
        Self { prefix_len: 32 + length as u32, service: service as u32 | (ipv6 as u32) << 16, addr }
    }

    /// Bits that count, and what they count of.
    #[inline(always)]
    pub const fn parts(&self) -> (u32, [u32; 5]) {
        let [a, b, c, d] = self.addr.0;
        (self.prefix_len, [self.service, a, b, c, d])
    }
}

/// The acknowledgement number of a challenge: a client that did not send it a SYN cannot know it, and one that did answers with
/// a reset that repeats it, as to the remains of an older connection (RFC 9293, section 3.5.1), and still waits for its own.
/// `ticks`: coarse time of the challenge.
#[inline(always)]
pub const fn cookie(hash: u64, ticks: u32) -> u32 {
    mix(hash ^ 0x6368_616c_6c65_6e67 ^ ((ticks as u64) << 40)) as u32
}
