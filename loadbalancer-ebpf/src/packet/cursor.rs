//! The only access to packet memory: one type owns all checks of pointers, and hands out typed references and values.
//!
//! A reference borrows the frame, so that nobody can move the frame's ends while it is in use: the kernel may have moved
//! the memory then. Headers are read and written as whole fields. Their addresses need not be aligned: BPF on the
//! architectures that XDP serves allows it, and Rust's alignment rule only selects the width of the instruction here.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__be32, xdp_md};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use aya_ebpf::programs::XdpContext;
use bytemuck::Pod;
use network_types::eth::EthHdr;

/// Largest offset at which a header is looked for. Two VLAN tags, an IPv6 header with extension headers and an embedded
/// packet fit.
pub const MAX_OFFSET: usize = 0x3ff;

/// Bytes of a generated ICMP error that quote a long packet. RFC 792 asks for 8 beyond the IP header, RFC 1812 for up
/// to 576 in all; `bpf_csum_diff` sums at most 512.
pub const LONG_QUOTE: usize = 512;

/// A frame: the context that the kernel gives a program.
#[repr(transparent)]
pub struct Frame(xdp_md);

impl Frame {
    /// The frame of a program.
    #[inline(always)]
    pub fn of_program(ctx: &mut XdpContext) -> &mut Self {
        // SAFETY: the context is the one that the kernel gave us, and is borrowed for as long as the frame.
        unsafe { &mut *ctx.ctx.cast::<Self>() }
    }

    /// The frame of an exported function. The kernel takes such a function only if its signature names the context's type.
    #[inline(always)]
    pub fn of(ctx: &xdp_md) -> &Self {
        // SAFETY: the same layout, and the context is borrowed for as long as the frame.
        unsafe { &*ptr::from_ref(ctx).cast::<Self>() }
    }

    /// The same of one that changes the frame.
    #[inline(always)]
    pub fn of_mut(ctx: &mut xdp_md) -> &mut Self {
        // SAFETY: as above.
        unsafe { &mut *ptr::from_mut(ctx).cast::<Self>() }
    }

    /// The context, for an exported function.
    #[inline(always)]
    pub fn context(&self) -> &xdp_md {
        &self.0
    }

    /// The same for one that changes the frame.
    #[inline(always)]
    pub fn context_mut(&mut self) -> &mut xdp_md {
        &mut self.0
    }

    #[inline(always)]
    fn raw(&self) -> *mut xdp_md {
        (&raw const self.0).cast_mut()
    }

    /// First byte.
    ///
    /// The kernel makes a pointer of this 32-bit load. In assembly, because the compiler would otherwise extend the value
    /// to 64 bits wherever it is used, and so turn the pointer into a number.
    #[inline(always)]
    fn start(&self) -> usize {
        let start: usize;
        // SAFETY: the first field of the context.
        unsafe { asm!("{0} = *(u32 *)({1} + 0)", out(reg) start, in(reg) self.raw(), options(readonly, nostack)) };
        start
    }

    /// End of the linear part. See [`Self::start`].
    #[inline(always)]
    fn end(&self) -> usize {
        let end: usize;
        // SAFETY: the second field of the context.
        unsafe { asm!("{0} = *(u32 *)({1} + 4)", out(reg) end, in(reg) self.raw(), options(readonly, nostack)) };
        end
    }

    /// Pointer to a `T` at an offset, if the linear part holds it completely.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (mut pointer, end) = (self.start(), self.end());
        // In assembly, because the compiler would otherwise compute the address twice, in two ways, and the verifier would
        // not see that what was checked is what is used. The mask is the bound that the verifier wants on every offset; no
        // caller comes near it (see `MAX_OFFSET`).
        // SAFETY: two arithmetic instructions.
        unsafe {
            asm!("{1} &= 4095", "{0} += {1}", inout(reg) pointer, inout(reg) offset => _, options(pure, nomem, nostack));
        }
        if pointer + size_of::<T>() > end { None } else { Some(pointer as *mut T) }
    }

    /// What stands at an offset.
    #[inline(always)]
    pub fn view<T: Pod>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `at` has checked that the frame holds the value; every bit pattern is one.
        self.at::<T>(offset).map(|pointer| unsafe { &*pointer })
    }

    /// The same, to be changed.
    #[inline(always)]
    pub fn view_mut<T: Pod>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above, and the frame is borrowed for as long as the value.
        self.at::<T>(offset).map(|pointer| unsafe { &mut *pointer })
    }

    #[inline(always)]
    pub fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        // SAFETY: as above.
        self.at::<T>(offset).map(|pointer| unsafe { *pointer })
    }

    #[inline(always)]
    #[must_use]
    pub fn store<T: Pod>(&mut self, offset: usize, value: T) -> bool {
        match self.view_mut::<T>(offset) {
            Some(place) => {
                *place = value;
                true
            }
            None => false,
        }
    }

    /// Writes the first `N` bytes of a header at the start, in words of eight and of two bytes.
    #[inline(always)]
    #[must_use]
    pub fn write_front<const N: usize, const M: usize>(&mut self, header: &[u8; M]) -> bool {
        const { assert!(N <= M && N.is_multiple_of(2)) };
        let Some(target) = self.at::<[u8; N]>(0) else {
            return false;
        };
        let (source, target) = (header.as_ptr(), target.cast::<u8>());
        let mut i = 0;
        // SAFETY: both sides hold N bytes: `at` has checked the frame.
        unsafe {
            while i + 8 <= N {
                *target.add(i).cast::<u64>() = *source.add(i).cast::<u64>();
                i += 8;
            }
            while i + 2 <= N {
                *target.add(i).cast::<u16>() = *source.add(i).cast::<u16>();
                i += 2;
            }
        }
        true
    }

    /// The same for a length that is not known before.
    #[inline(never)]
    #[must_use]
    pub fn write_front_bytes<const M: usize>(&mut self, header: &[u8; M], length: usize) -> bool {
        const { assert!(M.is_multiple_of(2)) };
        let mut i = 0;
        while i < M {
            if i >= length {
                return true;
            }
            // SAFETY: `i` is even and below the header's length, which is even.
            let pair = unsafe { *header.as_ptr().add(i).cast::<u16>() };
            if !self.store(i, pair) {
                return false;
            }
            i += 2;
        }
        true
    }

    /// Copies the whole frame, of a length that fits.
    #[inline(always)]
    #[must_use]
    pub fn read_all<const N: usize>(&self, into: &mut [u8; N], length: usize) -> bool {
        // Older verifiers conclude nothing from "not zero"; a frame is longer than its link header.
        length > EthHdr::LEN
            && length <= N
            // SAFETY: the kernel copies into a buffer that has room for so many bytes.
            && unsafe { bpf_xdp_load_bytes(self.raw(), 0, into.as_mut_ptr().cast(), length as u32) } == 0
    }

    /// Whether the linear part has so many bytes.
    #[inline(always)]
    pub fn is_linear(&self, bytes: usize) -> bool {
        self.start() + bytes <= self.end()
    }

    /// Bytes of the linear part.
    #[inline(always)]
    #[allow(dead_code, reason = "the bench's generator asks, which includes this file")]
    pub fn linear_length(&self) -> usize {
        self.end() - self.start()
    }

    /// Bytes of the whole frame, fragments of a multi-buffer frame included.
    #[inline(always)]
    pub fn length(&self) -> usize {
        // SAFETY: the context is the one that the kernel gave us.
        unsafe { bpf_xdp_get_buff_len(self.raw()) as usize }
    }

    /// Adds (positive) or removes room at the front.
    #[inline(always)]
    #[must_use]
    pub fn grow_head(&mut self, bytes: i32) -> bool {
        // SAFETY: the context is the one that the kernel gave us, and nothing refers into the frame.
        bytes == 0 || unsafe { bpf_xdp_adjust_head(self.raw(), -bytes) } == 0
    }

    /// Cuts the frame to a length.
    #[inline(always)]
    #[must_use]
    pub fn cut_to(&mut self, length: usize) -> bool {
        let by = length as i32 - self.length() as i32;
        // SAFETY: as above.
        unsafe { bpf_xdp_adjust_tail(self.raw(), by) == 0 }
    }

    /// Interface by which the frame came in.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex
    }

    /// Largest IP packet of an interface, of that on which the frame came if it is zero; zero if the kernel does not say.
    #[inline(always)]
    pub fn mtu(&self, ifindex: u32) -> u16 {
        let mut mtu = 0u32;
        // SAFETY: the context is the kernel's, and `mtu` lives through the call.
        let result = unsafe { bpf_check_mtu(self.raw().cast(), ifindex, &raw mut mtu, 0, 0) };
        if result < 0 || mtu > u16::MAX as u32 { 0 } else { mtu as u16 }
    }

    /// One's complement sum of [`LONG_QUOTE`] bytes.
    #[inline(always)]
    pub fn sum_long_quote(&self, offset: usize) -> Option<u64> {
        let pointer = self.at::<[u8; LONG_QUOTE]>(offset)?;
        // SAFETY: `at` has checked that the frame holds so many bytes.
        let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, pointer.cast::<__be32>(), LONG_QUOTE as u32, 0) };
        if sum < 0 { None } else { Some(sum as u64) }
    }
}

impl EbpfContext for Frame {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.raw().cast()
    }
}

/// A number as it is, of which the verifier then knows that it has at most 17 bits: kernels before 6.13 forget what they
/// know of a number when its bytes are swapped, and refuse to add it to a pointer.
#[inline(always)]
pub fn bounded(mut number: usize) -> usize {
    // SAFETY: an arithmetic instruction.
    unsafe { asm!("{0} &= 0x1ffff", inout(reg) number, options(pure, nomem, nostack)) };
    number
}
