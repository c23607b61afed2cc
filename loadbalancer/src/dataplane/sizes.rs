//! Sizes of the kernel's tables.

use loadbalancer_common::affinity::BUCKET_ENTRIES;
use loadbalancer_common::ring::{BLOCK_SLOTS, SLOT_BLOCKS};

/// Sizes of the kernel's tables, fixed while the state lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub services: u32,
    pub backends: u32,
    pub rings: u32,
    /// Flows that the affinity table holds well: it gets twice as many entries, as a power of two.
    pub flows: u32,
    /// Flows of `nat` services.
    pub nat_flows: u32,
    /// VIPs, counting each address, port and protocol.
    pub vips: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { services: 64, backends: 1024, rings: 64, flows: 1_000_000, nat_flows: 262_144, vips: 1024 }
    }
}

impl Sizes {
    /// Buckets of the affinity table. At half load of eight-entry buckets with two places a flow, fewer than one flow in
    /// a thousand finds no room (measured by a test in `tests`).
    pub fn buckets(&self) -> u32 {
        (self.flows.max(64) * 2 / BUCKET_ENTRIES as u32).next_power_of_two()
    }

    /// Blocks of one ring: its slots and its members.
    pub fn ring_blocks(&self) -> u32 {
        SLOT_BLOCKS + self.backends.div_ceil(BLOCK_SLOTS)
    }

    /// Paths: each backend's slots may all differ, and a change needs the new ones beside the old.
    pub fn paths(&self) -> u32 {
        self.backends * 4 + 16
    }

    /// Places for watched flows: one for every four of a full table if one in sixteen is watched, as then at most. Few of them
    /// are in the middle of something at a time, and more places would only take the processor's cache.
    pub fn observed(&self) -> u32 {
        (self.flows.max(self.nat_flows) / 64).clamp(1 << 10, 1 << 16).next_power_of_two()
    }
}
