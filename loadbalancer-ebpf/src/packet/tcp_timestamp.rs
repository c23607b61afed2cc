//! TCP timestamps (RFC 7323) of flows in `nat`: to a server, the gateway is one client with one clock.
//!
//! Source ports come back while the server still has an earlier connection in TIME_WAIT. It takes a SYN then only if the
//! timestamp is newer than the last one it saw (RFC 6191), and clients start their clocks anywhere. So each flow's clock
//! is moved to where the gateway's clock stood at the SYN: added to what the client says, taken from what the server echoes.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use loadbalancer_common::checksum::{fold, replace32, update};
use network_types::tcp::TcpHdr;

use crate::clock;
use crate::packet::cursor::{Frame, MAX_OFFSET};
use crate::packet::parse::Tcp;

/// The gateway's clock ticks every 2^9 ns. It must run faster than any client's, or a flow could leave a later time behind
/// than the next one begins with; the fastest in use ticks every microsecond. It turns around after 18 minutes, and no
/// TIME_WAIT is longer than 4 (RFC 9293).
const TICK_SHIFT: u32 = 9;
const KIND: u8 = 8;
const LENGTH: u8 = 10;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// Two times "no operation", then the option: how it begins in all segments but the first, by advice of RFC 7323.
const USUAL: u32 = u32::from_be_bytes([NO_OPERATION, NO_OPERATION, KIND, LENGTH]);
/// Bytes that options can have.
const MOST: usize = 40;

/// One of the option's numbers, by its place behind the option's kind and length.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Number {
    Value = 0,
    Echo = 4,
}

/// What to add to a new flow's timestamps, by its first segment. Zero: it has none.
#[inline(always)]
pub fn offset(frame: &Frame, l4: u16) -> u32 {
    let place = tcp_timestamp(frame.context(), l4 as u32) as usize;
    if place == 0 {
        return 0;
    }
    // The coarse clock stands still for some milliseconds, in which a port may come back.
    let now = (clock::precise_ns() >> TICK_SHIFT) as u32;
    frame.load::<u32>(place).map_or(0, |value| now.wrapping_sub(u32::from_be(value)))
}

/// Adds to one of the timestamps of a segment, if it has any.
#[inline(always)]
pub fn shift(frame: &mut Frame, l4: u16, number: Number, by: u32) {
    if by != 0 {
        tcp_shift_timestamp(frame.context_mut(), l4 as u32, number as u32, by);
    }
}

/// See [`shift`]. Exported so that the verifier checks it once by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_shift_timestamp(ctx: &mut xdp_md, l4: u32, number: u32, by: u32) -> u32 {
    let place = tcp_timestamp(ctx, l4) as usize;
    if place == 0 {
        return 0;
    }
    let frame = Frame::of_mut(ctx);
    let (l4, number) = (l4 as usize & MAX_OFFSET, number as usize & Number::Echo as usize);
    let Some(field) = frame.view_mut::<u32>(place + number) else {
        return 0;
    };
    let old = *field;
    // An echo of zero says that there is nothing to echo.
    if number == Number::Echo as usize && old == 0 {
        return 0;
    }
    let new = u32::from_be(old).wrapping_add(by).to_be();
    *field = new;
    // Behind an odd number of bytes, the halves of each word change places (RFC 1071, section 2B).
    let difference = fold(replace32(old, new));
    let difference = if (place ^ l4) & 1 == 0 { difference } else { difference.swap_bytes() };
    if let Some(checksum) = frame.view_mut::<u16>(l4 + offset_of!(Tcp, checksum)) {
        *checksum = update(*checksum, difference as u64);
    }
    0
}

/// Offset of a segment's timestamp value in the frame. Zero: it has none. Exported so that the verifier walks the loop by
/// itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_timestamp(ctx: &xdp_md, l4: u32) -> u32 {
    let frame = Frame::of(ctx);
    let l4 = l4 as usize & MAX_OFFSET;
    let Some(length) = frame.load::<u8>(l4 + offset_of!(Tcp, offset)) else {
        return 0;
    };
    let end = l4 + (length >> 4) as usize * 4;
    let at = l4 + TcpHdr::LEN;
    if end >= at + 12 && frame.load::<u32>(at) == Some(USUAL.to_be()) {
        return at as u32 + 4;
    }
    let mut next = (l4 + TcpHdr::LEN) as u32;
    let mut i = 0;
    while i < MOST && next != 0 {
        i += 1;
        let place = next;
        next = tcp_option(ctx, place, end as u32);
        if next == place {
            return place + 2;
        }
    }
    0
}

/// Offset of the option behind the one at an offset; the same offset if that one is the timestamps; zero if there is no
/// further one. Exported so that the verifier knows nothing of what it returns: knowing more, kernels before 6.8 walk the
/// loop that calls it once for each series of options.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tcp_option(ctx: &xdp_md, at: u32, end: u32) -> u32 {
    if at + LENGTH as u32 > end {
        return 0;
    }
    let Some([kind, length]) = Frame::of(ctx).load::<[u8; 2]>(at as usize) else {
        return 0;
    };
    match kind {
        KIND if length == LENGTH => at,
        NO_OPERATION => at + 1,
        END_OF_OPTIONS => 0,
        _ if length < 2 => 0,
        _ => at + length as u32,
    }
}
