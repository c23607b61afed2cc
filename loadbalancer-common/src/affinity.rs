//! The affinity table: which server a flow belongs to, one cache line per lookup.
//!
//! The table is an array of 64-byte buckets with eight entries of one word each. A flow has a first bucket and, when
//! that one is full of live flows, a second. Tag and bucket come from different halves of the flow hash, so two live
//! flows share an entry with a probability below 16 / 2^32 per insertion (eight entries in each of two buckets); they
//! then share a server, and both stay consistent.
//!
//! An entry, from the top: tag (32 bits), backend (16), state (3), time (13).

use bytemuck::{Pod, Zeroable};

use crate::clock::{TIME_BITS, TIME_MASK, age};
use crate::hash::mix;
use crate::settings::Settings;

pub const BUCKET_ENTRIES: usize = 8;

/// A cache line of entries.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket(pub [u64; BUCKET_ENTRIES]);

/// State of a flow. The number is part of the layout and the index of its time-out.
pub mod state {
    use crate::net::tcp_flag;

    pub const FREE: u8 = 0;
    pub const UDP: u8 = 1;
    /// Only a SYN was seen (or, for a flow that was picked up in its middle, only one packet).
    pub const TCP_SYN: u8 = 2;
    pub const TCP_ESTABLISHED: u8 = 3;
    /// The client sent a FIN.
    pub const TCP_CLIENT_FIN: u8 = 4;
    /// The server sent a FIN (seen only where replies pass through the gateway).
    pub const TCP_SERVER_FIN: u8 = 5;
    /// Both sent a FIN, or one sent a reset.
    pub const TCP_CLOSED: u8 = 6;
    /// Not a flow: the server of a client, for services with client affinity.
    pub const CLIENT: u8 = 7;

    /// Whether a flow in this state counts as active on its server.
    #[inline(always)]
    pub const fn is_active(state: u8) -> bool {
        state >= UDP && state <= TCP_ESTABLISHED
    }

    /// State of a TCP flow after a packet with these flags.
    ///
    /// A SYN leaves the state as it is: whether it starts a new flow is for the caller to decide ([`is_over`]).
    #[inline(always)]
    pub const fn after_tcp(state: u8, flags: u8, from_client: bool) -> u8 {
        if flags & tcp_flag::RST != 0 {
            return TCP_CLOSED;
        }
        if flags & tcp_flag::FIN != 0 {
            let (own, other) =
                if from_client { (TCP_CLIENT_FIN, TCP_SERVER_FIN) } else { (TCP_SERVER_FIN, TCP_CLIENT_FIN) };
            return if state == other || state == TCP_CLOSED { TCP_CLOSED } else { own };
        }
        if state == TCP_SYN && from_client && flags & tcp_flag::SYN == 0 { TCP_ESTABLISHED } else { state }
    }

    /// Whether a SYN of the same tuple starts a new flow instead of repeating the first packet of this one.
    #[inline(always)]
    pub const fn is_over(state: u8) -> bool {
        state >= TCP_CLIENT_FIN && state <= TCP_CLOSED
    }

    pub const fn label(state: u8) -> &'static str {
        match state {
            UDP => "udp",
            TCP_SYN => "syn",
            TCP_ESTABLISHED => "established",
            TCP_CLIENT_FIN => "client-fin",
            TCP_SERVER_FIN => "server-fin",
            TCP_CLOSED => "closed",
            CLIENT => "client",
            _ => "free",
        }
    }
}

/// One flow's word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    #[inline(always)]
    pub const fn new(tag: u32, backend: u16, state: u8, time: u16) -> Self {
        Self(
            ((tag as u64) << 32)
                | ((backend as u64) << 16)
                | ((state as u64 & 7) << TIME_BITS)
                | (time & TIME_MASK) as u64,
        )
    }

    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    pub const fn state(self) -> u8 {
        ((self.0 >> TIME_BITS) & 7) as u8
    }

    #[inline(always)]
    pub const fn time(self) -> u16 {
        self.0 as u16 & TIME_MASK
    }

    /// The same flow in another state, seen at `time`.
    #[inline(always)]
    pub const fn with(self, state: u8, time: u16) -> Self {
        Self::new(self.tag(), self.backend(), state, time)
    }

    #[inline(always)]
    pub const fn is_expired(self, settings: &Settings, now: u16) -> bool {
        age(now, self.time()) > settings.timeouts[self.state() as usize & 7]
    }

    /// How willingly the entry is given up, most willingly first: free, expired, closed, embryonic, oldest.
    /// So a flood of SYNs evicts itself before any established flow.
    ///
    /// Without branches: eight of them in a row would otherwise be 2^8 ways for the verifier to walk.
    #[inline(always)]
    pub const fn keep_rank(self, settings: &Settings, now: u16) -> u32 {
        // A class per state, one byte each, from state 0 (free) upwards: while live, and when expired.
        const LIVE: u64 = 0x04_02_04_04_04_03_04_00;
        const EXPIRED: u64 = 0x01_01_01_01_01_01_01_00;
        let age = age(now, self.time());
        let state = self.state() as u32 & 7;
        let expired = ((settings.timeouts[state as usize] as i64 - age as i64) >> 63) as u64;
        let classes = LIVE ^ ((LIVE ^ EXPIRED) & expired);
        let class = (classes >> (state * 8)) as u32 & 7;
        (class << TIME_BITS) | (TIME_MASK - age) as u32
    }
}

/// Lowest [`Entry::keep_rank`] that belongs to a live flow past its handshake.
pub const LIVE_RANK: u32 = 4 << TIME_BITS;

/// Tag of a flow hash.
#[inline(always)]
pub const fn tag(hash: u64) -> u32 {
    hash as u32
}

/// First bucket of a flow hash.
#[inline(always)]
pub const fn bucket(hash: u64, mask: u32) -> u32 {
    (hash >> 32) as u32 & mask
}

/// The other bucket of an entry. It follows from bucket and tag alone and is its own inverse, so whoever scans the table
/// can find both buckets of an entry (partial-key cuckoo hashing, Fan et al., CoNEXT 2014).
#[inline(always)]
pub const fn other_bucket(bucket: u32, tag: u32, mask: u32) -> u32 {
    (bucket ^ (mix(tag as u64) as u32 | 1)) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { timeouts: [0, 70, 5, 1700, 30, 30, 3, 70], ..Settings::zeroed() }
    }

    #[test]
    fn an_entry_keeps_its_parts() {
        let entry = Entry::new(0xdead_beef, 65_535, state::CLIENT, TIME_MASK);
        assert_eq!(
            (entry.tag(), entry.backend(), entry.state(), entry.time()),
            (0xdead_beef, 65_535, state::CLIENT, TIME_MASK)
        );
        assert!(!Entry::new(0, 1, state::UDP, 0).is_free());
    }

    #[test]
    fn given_up_in_the_order_that_protects_established_flows() {
        let (s, now) = (settings(), 100);
        let order = [
            Entry(0),
            Entry::new(1, 1, state::TCP_SYN, 90),
            Entry::new(1, 1, state::TCP_CLOSED, 99),
            Entry::new(1, 1, state::TCP_SYN, 97),
            Entry::new(1, 1, state::TCP_SYN, 99),
            Entry::new(1, 1, state::TCP_ESTABLISHED, 50),
            Entry::new(1, 1, state::UDP, 99),
        ];
        let ranks = order.map(|e| e.keep_rank(&s, now));
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert!(ranks[4] < LIVE_RANK && ranks[5] >= LIVE_RANK);
    }

    #[test]
    fn other_bucket_is_its_own_inverse_and_differs() {
        for (bucket, tag) in [(0u32, 0u32), (5, 77), (1023, u32::MAX)] {
            let other = other_bucket(bucket, tag, 1023);
            assert_ne!(bucket, other);
            assert_eq!(other_bucket(other, tag, 1023), bucket);
        }
    }
}
