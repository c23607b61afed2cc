//! The ring buffer by which the packet path hands flows over.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

/// The reader's end. See [`loadbalancer_common::queue`] for what a record is.
pub struct QueueBuffer(pub(super) RingBuf<MapData>);

impl QueueBuffer {
    /// The next record; none: there is none yet, and the descriptor can be polled for it. Its place is free once it is dropped.
    pub fn read(&mut self) -> Option<impl Deref<Target = [u8]>> {
        self.0.next()
    }
}

impl AsFd for QueueBuffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
