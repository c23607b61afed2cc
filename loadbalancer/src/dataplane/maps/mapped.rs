//! The values of an array map in memory.
#![expect(unsafe_code, reason = "memory that is shared with the kernel, seen through atomics only")]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use bytemuck::Pod;

/// The values of an array map in memory that is shared with the packet path: seen as words, as both sides change them.
pub struct Mapped<V> {
    start: NonNull<AtomicU64>,
    bytes: usize,
    layout: PhantomData<V>,
}

// SAFETY: it is a mapping of shared memory that is only reached through atomics.
unsafe impl<V> Send for Mapped<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for Mapped<V> {}

impl<V> fmt::Debug for Mapped<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({} bytes)", self.bytes)
    }
}

impl<V: Pod> Mapped<V> {
    /// `values`: how many the map has; each is some words.
    ///
    /// # Errors
    /// The kernel refuses: the map is not one that can be mapped, or is smaller.
    pub(super) fn new(map: BorrowedFd<'_>, values: usize) -> io::Result<Self> {
        let bytes = values * size_of::<V>();
        // SAFETY: the kernel chooses the address, and refuses a length that is not the map's.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<AtomicU64>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, bytes, layout: PhantomData }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// All words of all values.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is so long, is aligned to a page, and lives as long as `self`; atomics allow others to
        // change it meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes / size_of::<u64>()) }
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.bytes / size_of::<V>()
    }

    /// The words of one value.
    pub fn value(&self, index: usize) -> &[AtomicU64] {
        let words = size_of::<V>() / size_of::<u64>();
        &self.words()[index * words..(index + 1) * words]
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
