//! The only raw access to packet memory.
//!
//! Headers are read and written as whole fields. Their addresses need not be aligned: BPF on the architectures that XDP
//! serves allows it, and Rust's alignment rule only selects the width of the instruction here.

use core::arch::asm;

use aya_ebpf::bindings::{__be32, xdp_md};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;

/// Largest offset at which a header is looked for. Two VLAN tags, an IPv6 header with extension headers and an embedded
/// packet fit.
pub const MAX_OFFSET: usize = 0x3ff;

/// Bytes of a generated ICMP error that quote a long packet. RFC 792 asks for 8 beyond the IP header, RFC 1812 for up
/// to 576 in all; `bpf_csum_diff` sums at most 512.
pub const LONG_QUOTE: usize = 512;

/// First byte of the frame.
///
/// The kernel makes a pointer of this 32-bit load. In assembly, because the compiler would otherwise extend the value to
/// 64 bits wherever it is used, and so turn the pointer into a number.
#[inline(always)]
pub fn start(ctx: &XdpContext) -> usize {
    let start: usize;
    // SAFETY: the first field of the context.
    unsafe { asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) ctx.ctx, options(readonly, nostack)) };
    start
}

/// End of the frame's linear part. See [`start`].
#[inline(always)]
pub fn end(ctx: &XdpContext) -> usize {
    let end: usize;
    // SAFETY: the second field of the context.
    unsafe { asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) ctx.ctx, options(readonly, nostack)) };
    end
}

/// Pointer to a `T` at an offset, if the frame's linear part holds it completely.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let (mut pointer, end) = (start(ctx), end(ctx));
    // In assembly, because the compiler would otherwise compute the address twice, in two ways, and the verifier would not
    // see that what was checked is what is used. The mask is the bound that the verifier wants on every offset; no caller
    // comes near it (see `MAX_OFFSET`).
    // SAFETY: two arithmetic instructions.
    unsafe {
        asm!("{1} &= 4095", "{0} += {1}", inout(reg) pointer, inout(reg) offset => _, options(pure, nomem, nostack));
    }
    if pointer + size_of::<T>() > end { None } else { Some(pointer as *mut T) }
}

/// A number as it is, of which the verifier then knows that it has at most 17 bits: kernels before 6.13 forget what they
/// know of a number when its bytes are swapped, and refuse to add it to a pointer.
#[inline(always)]
pub fn bounded(mut number: usize) -> usize {
    // SAFETY: an arithmetic instruction.
    unsafe { asm!("{0} &= 0x1ffff", inout(reg) number, options(pure, nomem, nostack)) };
    number
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
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, pointer.cast::<__be32>(), LONG_QUOTE as u32, 0) };
    if sum < 0 { None } else { Some(sum as u64) }
}
