//! Frames: as they wait, and as they go back to the packet path.

use std::time::Duration;

use loadbalancer_common::queue::Ticket;

use super::order::Entry;

/// Memory of an entry beside its frame, see the test of [`Queue`](super::order::Queue)'s memory.
pub(super) const ENTRY_BYTES: u64 = 256;

/// A frame that goes back to the packet path.
#[derive(Debug)]
pub struct Out {
    pub ticket: Ticket,
    pub frame: Box<[u8]>,
    pub(super) released: Option<Box<Released>>,
}

#[derive(Debug)]
pub(super) struct Released {
    /// Without its frame.
    pub(super) entry: Entry<Parked>,
    pub(super) wait: Duration,
}

/// What a waiting flow is but for its place in the queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Parked {
    pub(super) frame: Box<[u8]>,
    pub(super) ifindex: u32,
    pub(super) preferred: u16,
    pub(super) is_datagram: bool,
    /// Of the first packet, see [`Held`](loadbalancer_common::queue::Held).
    pub(super) sequence: u32,
}

impl Parked {
    /// What its entry takes of the memory of all.
    pub(super) fn bytes(&self) -> u64 {
        ENTRY_BYTES + self.frame.len() as u64
    }
}
