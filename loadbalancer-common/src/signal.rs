//! Passive signals: what the packet path sees of the quality of servers in the traffic itself.
//!
//! A share of the flows is sampled ([`is_sampled`]). What is going on in a sampled flow stands in [`Observed`], one cache
//! line in a table in which a flow has one place, and takes it from whoever has it: a sample lost is no harm. What came
//! out is counted in [`Signals`], by server and channel.

use bytemuck::{Pod, Zeroable};

use crate::backend::PATH_SLOTS;
use crate::histogram::Histogram;

/// Channels that a server can have at a time: more would not fit into its path slots.
pub const CHANNELS: usize = PATH_SLOTS;

/// Mask by which no flow is sampled.
pub const OFF: u16 = u16::MAX;

/// Flows of which one is sampled, at most: higher bits of the hash choose a flow's path slot and its place in tables.
pub const MOST_FLOWS_PER_SAMPLE: u16 = 1 << 12;

/// The mask by which one flow in so many is sampled, a power of two; zero: none is.
pub const fn mask_of(flows_per_sample: u16) -> u16 {
    flows_per_sample.wrapping_sub(1)
}

/// Bits of a mask that say which flows are sampled. The others count its changes.
const SHARE_BITS: u16 = !CHANGE_BITS;
const CHANGE_BITS: u16 = 7 << 12;

/// Whether a flow is sampled, by the hash of its tuple, and so in both directions alike.
#[inline(always)]
pub const fn is_sampled(hash: u64, mask: u16) -> bool {
    // The bit that only `OFF` asks for.
    (hash as u16 | 1 << 15) & mask & SHARE_BITS == 0
}

/// What a mask becomes that is to sample as `wanted` does: another one each time, since what was seen of a flow before a
/// change is of no use after it (see [`sampled_key`]).
pub const fn next_mask(mask: u16, wanted: u16) -> u16 {
    if share(mask) == share(wanted) { mask } else { share(wanted) | mask.wrapping_add(1 << 12) & CHANGE_BITS }
}

/// The part of a mask that says which flows are sampled.
pub const fn share(mask: u16) -> u16 {
    mask & SHARE_BITS
}

/// Key of a flow in the table of sampled flows: its hash, in which bits differ after each of eight changes of the mask, as
/// packets may have passed unseen before.
#[inline(always)]
pub const fn sampled_key(hash: u64, mask: u16) -> u64 {
    hash ^ mask as u64
}

/// Buckets of a histogram.
pub const BUCKETS: usize = 32;
/// Logarithm of the end of the first bucket, in ns: nothing of interest takes less than 2 us.
pub const FIRST_BUCKET_BITS: u32 = 11;

/// Latencies in ns: bucket `i` has those from 2^(10+i) to 2^(11+i). The first has those below as well, the last, from 36
/// minutes on, those above.
pub type Latencies = Histogram<u32, BUCKETS, FIRST_BUCKET_BITS, 0>;

/// What was seen of one server over one channel, ever: all numbers turn over. Changed by atomic additions, so that it need
/// not be kept per CPU: sampled packets are bounded, and the reader has one number to read instead of one per CPU.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Signals {
    /// First SYN to SYN-ACK; in `dsr-*` modes to the client's next segment, which has the client's way in it.
    pub handshakes: Latencies,
    /// Request to the first part of its response, where both pass.
    pub responses: Latencies,
    /// Sums of the above.
    pub handshake_ns: u64,
    pub response_ns: u64,
    /// SYNs that were sent again before they were answered.
    pub lost_syns: u32,
    /// SYNs answered by a reset or by an ICMP error.
    pub refused_syns: u32,
    /// TCP segments with payload, of both sides.
    pub segments: u32,
    /// Segments that were lost between gateway and server.
    pub lost_segments: u32,
    /// Requests answered by a reset or by an ICMP error.
    pub refused_requests: u32,
    /// Datagrams that had no answer for a second when the next one came.
    pub unanswered: u32,
    pub pad: [u32; 6],
}

/// Where the signals of a server over a channel are.
#[inline(always)]
pub const fn index(backend: u16, channel: u8) -> u32 {
    backend as u32 * CHANNELS as u32 + (channel as u32 & (CHANNELS as u32 - 1))
}

/// A sampled flow.
///
/// The words are written one by one, and on several CPUs. So each of the first two carries the flow's tag, by which a reader
/// sees whose it is, and a sample is taken by whoever can exchange [`Pending`] for nothing.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Observed {
    pub who: Who,
    pub pending: Pending,
    /// Sequence number behind the last byte that the client has sent.
    pub client_next: u32,
    /// First byte of the pending request.
    pub request_start: u32,
    /// What the client has sent but did not get here: it will be sent again, and was not lost behind the gateway. Empty: both
    /// are the same.
    pub gap_start: u32,
    pub gap_end: u32,
    /// Sequence number behind the last byte that the server has sent, and behind the last one that it has acknowledged.
    pub server_next: u32,
    pub acknowledged: u32,
    /// One of [`server`].
    pub server: u32,
    pub pad: [u32; 5],
}

/// What is known of the server's direction of a sampled flow.
pub mod server {
    pub const UNKNOWN: u32 = 0;
    /// Its sequence numbers.
    pub const KNOWN: u32 = 1;
    /// UDP: it sends datagrams unasked, so that none can be said to answer another.
    pub const TALKS: u32 = 2;
}

/// Whose entry it is: tag of the flow hash (upper half), channel (8 bits), backend (16).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Who(pub u64);

impl Who {
    #[inline(always)]
    pub const fn new(hash: u64, backend: u16, channel: u8) -> Self {
        Self(hash << 32 | (channel as u64) << 16 | backend as u64)
    }

    #[inline(always)]
    pub const fn is_of(self, hash: u64) -> bool {
        (self.0 >> 32) as u32 == hash as u32
    }

    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn channel(self) -> u8 {
        (self.0 >> 16) as u8
    }
}

/// What the server owes, and since when: from the top 17 bits of the flow's hash, kind (2), whether it is not to be timed (1),
/// time in ns (44: it turns over after 4.9 hours).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Pending(pub u64);

/// Kinds of [`Pending`].
pub mod pending {
    pub const NOTHING: u8 = 0;
    /// The answer to a SYN.
    pub const HANDSHAKE: u8 = 1;
    /// The response to a request.
    pub const RESPONSE: u8 = 2;
}

impl Pending {
    const TIME_BITS: u32 = 44;
    const TIME_MASK: u64 = (1 << Self::TIME_BITS) - 1;
    const UNTIMED: u64 = 1 << Self::TIME_BITS;
    const KIND_SHIFT: u32 = Self::TIME_BITS + 1;
    const TAG_SHIFT: u32 = Self::KIND_SHIFT + 2;

    #[inline(always)]
    pub const fn nothing(hash: u64) -> Self {
        // Sampled flows are alike in the lowest bits.
        Self((hash >> 12) << Self::TAG_SHIFT)
    }

    /// Owed since `now_ns`.
    #[inline(always)]
    pub const fn since(hash: u64, kind: u8, now_ns: u64) -> Self {
        Self(Self::nothing(hash).0 | (kind as u64 & 3) << Self::KIND_SHIFT | now_ns & Self::TIME_MASK)
    }

    /// The same, but an answer would not tell how long it took.
    #[inline(always)]
    pub const fn untimed(self) -> Self {
        Self(self.0 | Self::UNTIMED)
    }

    /// Kind, if it is this flow's.
    #[inline(always)]
    pub const fn kind(self, hash: u64) -> u8 {
        if self.0 >> Self::TAG_SHIFT == Self::nothing(hash).0 >> Self::TAG_SHIFT {
            (self.0 >> Self::KIND_SHIFT) as u8 & 3
        } else {
            pending::NOTHING
        }
    }

    #[inline(always)]
    pub const fn is_timed(self) -> bool {
        self.0 & Self::UNTIMED == 0
    }

    /// Time since then in ns. What seems to lie in the future, as clocks of CPUs may differ a little, is now.
    #[inline(always)]
    pub const fn age(self, now_ns: u64) -> u64 {
        let age = now_ns.wrapping_sub(self.0) & Self::TIME_MASK;
        if age >> (Self::TIME_BITS - 1) == 0 { age } else { 0 }
    }
}

/// How far `to` is ahead of `from` (RFC 9293, section 3.4: modulo 2^32).
#[inline(always)]
pub const fn ahead(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

/// Beyond this a segment is no neighbour of what was seen before: it is forged, or much was not seen.
pub const FAR: i32 = 1 << 24;

/// Where a segment with payload lies to what was seen of its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It brings the next bytes, perhaps behind some that were seen.
    Next,
    /// It begins behind bytes that were not seen.
    BehindGap,
    /// It brings bytes that were not seen.
    InGap,
    /// All of it was seen before.
    Again,
    Far,
}

/// `next` is the byte behind the last that was seen; what lies in the gap was not.
#[inline(always)]
pub const fn place(next: u32, gap_start: u32, gap_end: u32, start: u32, end: u32) -> Place {
    let begins = ahead(next, start);
    if begins > FAR || begins < -FAR {
        return Place::Far;
    }
    if ahead(next, end) > 0 {
        return if begins > 0 { Place::BehindGap } else { Place::Next };
    }
    if ahead(gap_start, start) >= 0 && ahead(end, gap_end) >= 0 { Place::InGap } else { Place::Again }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn off_samples_nothing_and_one_in_sixteen_about_that() {
        let hashes = (0..64_000u64).map(crate::hash::mix);
        let sampled = |mask| hashes.clone().filter(|hash| is_sampled(*hash, mask)).count();
        assert_eq!(sampled(OFF), 0);
        assert_eq!(sampled(mask_of(0)), 0);
        assert!(!is_sampled(0, OFF));
        assert_eq!(sampled(mask_of(1)), 64_000);
        // 4,000 expected; 6 sigma is about 370.
        assert!((3_630..4_370).contains(&sampled(mask_of(16))), "{}", sampled(mask_of(16)));
        assert!(is_sampled(0, mask_of(MOST_FLOWS_PER_SAMPLE)));
    }

    #[test]
    fn each_change_of_a_share_gives_another_key() {
        let (all, half) = (mask_of(1), mask_of(2));
        let mut mask = all;
        let mut keys = std::vec![sampled_key(0, mask)];
        for wanted in [half, all, OFF, all, half, all, half] {
            let before = mask;
            mask = next_mask(mask, wanted);
            assert_eq!(share(mask), share(wanted));
            assert_eq!(next_mask(mask, wanted), mask, "the same again");
            assert_ne!(mask, before);
            assert_eq!(is_sampled(0, mask), wanted != OFF);
            assert_eq!(is_sampled(1, mask), wanted == all, "{mask:x}");
            assert!(!keys.contains(&sampled_key(0, mask)));
            keys.push(sampled_key(0, mask));
        }
    }

    #[test]
    fn buckets_double_from_two_microseconds_on() {
        let of =
            [(0, 0), (2_047, 0), (2_048, 1), (4_095, 1), (4_096, 2), (1_000_000, 9), (1 << 41, 31), (u64::MAX, 31)];
        for (ns, wanted) in of {
            assert_eq!(Latencies::bucket(ns), wanted, "{ns} ns");
        }
    }

    #[test]
    fn an_entry_tells_whose_it_is() {
        let hash = 0x1234_5678_9abc_d000;
        let who = Who::new(hash, 65_535, 7);
        assert_eq!((who.is_of(hash), who.backend(), who.channel()), (true, 65_535, 7));
        assert!(!who.is_of(hash + 1));
        let owed = Pending::since(hash, pending::RESPONSE, u64::MAX);
        assert_eq!((owed.kind(hash), owed.is_timed(), owed.age(1_000)), (pending::RESPONSE, true, 1_001));
        assert_eq!(owed.kind(hash ^ 1 << 12), pending::NOTHING, "another flow's");
        assert_eq!((owed.untimed().kind(hash), owed.untimed().is_timed()), (pending::RESPONSE, false));
        assert_eq!(Pending::nothing(hash).kind(hash), pending::NOTHING);
    }

    #[test]
    fn no_latency_is_absurd_when_clocks_differ() {
        assert_eq!(Pending::since(5, pending::HANDSHAKE, 1_000_000).age(999_000), 0);
    }

    #[test]
    fn every_place_of_a_segment() {
        for zero in [0u32, 1_000, u32::MAX - 50] {
            let at = |next, gap: (u32, u32), segment: (u32, u32)| {
                let from = |number: u32| zero.wrapping_add(number);
                place(from(next), from(gap.0), from(gap.1), from(segment.0), from(segment.1))
            };
            let none = (0, 0);
            assert_eq!(at(100, none, (100, 200)), Place::Next);
            assert_eq!(at(100, none, (50, 101)), Place::Next);
            assert_eq!(at(100, none, (101, 200)), Place::BehindGap);
            assert_eq!(at(100, none, (50, 100)), Place::Again);
            assert_eq!(at(300, (100, 200), (100, 200)), Place::InGap);
            assert_eq!(at(300, (100, 200), (150, 160)), Place::InGap);
            assert_eq!(at(300, (100, 200), (90, 200)), Place::Again);
            assert_eq!(at(300, (100, 200), (200, 300)), Place::Again);
            assert_eq!(at(100, none, (20_000_000, 20_000_100)), Place::Far);
            assert_eq!(at(20_000_000, none, (100, 200)), Place::Far);
        }
    }

    proptest! {
        #[test]
        fn places_do_not_depend_on_where_numbers_begin(next: u32, by: u32, start in 0u32..70_000, length in 1u32..65_536) {
            let segment = |zero: u32| (zero.wrapping_add(start).wrapping_sub(35_000), zero.wrapping_add(start + length).wrapping_sub(35_000));
            let at = |next: u32| { let (start, end) = segment(next); place(next, next, next, start, end) };
            prop_assert_eq!(at(next), at(next.wrapping_add(by)));
        }

        #[test]
        fn buckets_are_those_of_the_logarithm(ns in 2_048u64..1 << 41) {
            prop_assert_eq!(Latencies::bucket(ns), ns.ilog2() as usize - 10);
        }
    }
}
