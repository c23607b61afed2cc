//! Rings: the table that maps a flow's hash to a server, one per service and tier.
//!
//! Rings live in one memory-mapped array of cache-line blocks. A ring is a run of blocks: first [`SLOTS`] backend
//! numbers, then the list of distinct members. It is written completely, then a single store in the service entry
//! switches to it.

use bytemuck::{Pod, Zeroable};

/// Slots of a ring. A prime, as in Maglev (Eisenbud et al., NSDI 2016), whose larger table has this size.
pub const SLOTS: u32 = 65_537;

/// Backend numbers in a block: one cache line.
pub const BLOCK_SLOTS: u32 = 32;

/// Blocks that the slots of a ring take.
pub const SLOT_BLOCKS: u32 = SLOTS.div_ceil(BLOCK_SLOTS);

/// A cache line of backend numbers; zero is no backend.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RingBlock(pub [u16; BLOCK_SLOTS as usize]);

/// Where a ring is: first block (upper half) and number of members (lower half), in one word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RingRef(pub u64);

impl RingRef {
    pub const fn new(block: u32, members: u32) -> Self {
        Self(((block as u64) << 32) | members as u64)
    }

    #[inline(always)]
    pub const fn block(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Zero: the tier has no server.
    #[inline(always)]
    pub const fn members(self) -> u32 {
        self.0 as u32
    }
}
