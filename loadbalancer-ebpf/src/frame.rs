//! The only raw access to packet memory.
//!
//! Headers are read and written as whole fields. Their addresses need not be aligned: BPF on the architectures that XDP
//! serves allows it, and Rust's alignment rule only selects the width of the instruction here.

use aya_ebpf::bindings::{__be32, xdp_md};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;

/// Largest offset at which a header is looked for. Two VLAN tags, an IPv6 header with extension headers and an embedded
/// packet fit; the verifier needs a bound.
pub const MAX_OFFSET: usize = 0x3ff;

/// Bytes of a generated ICMP error that quote a long packet. RFC 792 asks for 8 beyond the IP header, RFC 1812 for up
/// to 576 in all; `bpf_csum_diff` sums at most 512.
pub const LONG_QUOTE: usize = 512;

/// Pointer to a `T` at an offset, if the frame's linear part holds it completely.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data();
    let end = ctx.data_end();
    if offset > MAX_OFFSET {
        return None;
    }
    let pointer = start + offset;
    if pointer + size_of::<T>() > end {
        return None;
    }
    Some(pointer as *mut T)
}

#[inline(always)]
pub fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    // SAFETY: `at` has checked that the frame holds the value; every bit pattern of the types used is valid.
    at::<T>(ctx, offset).map(|pointer| unsafe { *pointer })
}

#[inline(always)]
#[must_use]
pub fn store<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> bool {
    match at::<T>(ctx, offset) {
        Some(pointer) => {
            // SAFETY: `at` has checked that the frame holds the value.
            unsafe { *pointer = value };
            true
        }
        None => false,
    }
}

/// Adds (positive) or removes room at the front. Pointers into the frame are void afterwards.
#[inline(always)]
#[must_use]
pub fn grow_head(ctx: &XdpContext, bytes: i32) -> bool {
    // SAFETY: the context is the one that the kernel gave us.
    bytes == 0 || unsafe { bpf_xdp_adjust_head(ctx.ctx.cast::<xdp_md>(), -bytes) } == 0
}

/// Cuts the frame to a length. Pointers into the frame are void afterwards.
#[inline(always)]
#[must_use]
pub fn cut_to(ctx: &XdpContext, length: usize, frame_length: usize) -> bool {
    // SAFETY: the context is the one that the kernel gave us.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx.cast::<xdp_md>(), length as i32 - frame_length as i32) == 0 }
}

/// Bytes of the whole frame, fragments of a multi-buffer frame included.
#[inline(always)]
pub fn length(ctx: &XdpContext) -> usize {
    // SAFETY: the context is the one that the kernel gave us.
    unsafe { aya_ebpf::helpers::bpf_xdp_get_buff_len(ctx.ctx.cast::<xdp_md>()) as usize }
}

/// One's complement sum of [`LONG_QUOTE`] bytes.
#[inline(always)]
pub fn sum_long_quote(ctx: &XdpContext, offset: usize) -> Option<u64> {
    let pointer = at::<[u8; LONG_QUOTE]>(ctx, offset)?;
    // SAFETY: `at` has checked that the frame holds so many bytes.
    let sum = unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, pointer.cast::<__be32>(), LONG_QUOTE as u32, 0)
    };
    if sum < 0 { None } else { Some(sum as u64) }
}
