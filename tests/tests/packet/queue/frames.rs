//! Frames of flows that may wait.

use loadbalancer_common::net::protocol;
use loadbalancer_tests::frames::frame::{Frame, Transport};

pub(in crate::packet) const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];
/// Tags of frames: none, one, two.
pub(in crate::packet) const TAGS: [&[u16]; 3] = [&[], &[100], &[200, 0xe064]];

/// A packet without data, of a sequence number.
pub(super) fn numbered(frame: Frame, number: u32) -> Frame {
    frame.with(|f| {
        f.payload.clear();
        if let Transport::Tcp { sequence, .. } = &mut f.transport {
            *sequence = number;
        }
    })
}
