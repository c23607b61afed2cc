//! bpf(2) on maps. The sizes of keys and values are kept with the descriptor, so that the kernel is never given a buffer that
//! it reads or writes beyond.
#![expect(unsafe_code, reason = "bpf(2) takes pointers, and no library wraps its batches")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Bytes of the kernel's cursor through a hash map; through other maps it is a key.
const CURSOR_BYTES: usize = 4;

/// `union bpf_attr` for the element commands.
#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for the batch commands.
#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// What a batch look-up gave.
pub(super) struct Batch {
    /// Entries.
    pub(super) count: usize,
    /// Where to go on; none: there are no more.
    pub(super) next: Option<Vec<u8>>,
}

/// A map's descriptor, and what its keys and values take.
pub(super) struct RawMap {
    fd: OwnedFd,
    key_bytes: usize,
    /// Of one value.
    value_bytes: usize,
    /// Values of a key: one, or one for each CPU.
    values: usize,
}

impl RawMap {
    /// The sizes must be those of the map, as the kernel tells them.
    pub(super) fn new(fd: OwnedFd, key_bytes: usize, value_bytes: usize, values: usize) -> Self {
        Self { fd, key_bytes, value_bytes, values }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Values of a key: one, or one for each CPU.
    pub(super) fn values(&self) -> usize {
        self.values
    }

    /// Bytes of all values of a key, as the kernel copies them.
    fn all_value_bytes(&self) -> usize {
        if self.values == 1 { self.value_bytes } else { self.values * self.value_bytes.next_multiple_of(8) }
    }

    /// Reads the value of a key. False: there is none.
    pub(super) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.key_bytes, self.all_value_bytes()));
        let mut attr = self.element(key.as_ptr() as u64, value.as_mut_ptr() as u64);
        // SAFETY: key and value are as long as the map's, and live through the call.
        is_there(unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) })
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_bytes, self.all_value_bytes()));
        let mut attr = self.element(key.as_ptr() as u64, value.as_ptr() as u64);
        // SAFETY: key and value are as long as the map's, live through the call, and are only read.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }
    }

    /// False: it was not there.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.key_bytes);
        let mut attr = self.element(key.as_ptr() as u64, 0);
        // SAFETY: the key is as long as the map's, and lives through the call.
        is_there(unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) })
    }

    /// The key behind another one; without one, the first. False: there is none.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        assert!(key.is_none_or(|key| key.len() == self.key_bytes) && next.len() == self.key_bytes);
        let mut attr = self.element(key.map_or(0, |key| key.as_ptr() as u64), next.as_mut_ptr() as u64);
        // SAFETY: both keys are as long as the map's, and live through the call.
        is_there(unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) })
    }

    /// Reads as many entries as there is room for, from the beginning or from where another batch ended.
    pub(super) fn lookup_batch(&self, from: Option<&[u8]>, keys: &mut [u8], values: &mut [u8]) -> io::Result<Batch> {
        let cursor_bytes = self.key_bytes.max(CURSOR_BYTES);
        assert!(from.is_none_or(|from| from.len() == cursor_bytes));
        let room = (keys.len() / self.key_bytes).min(values.len() / self.all_value_bytes());
        let mut next = vec![0; cursor_bytes];
        let mut attr = BatchAttr {
            in_batch: from.map_or(0, |from| from.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: there is room for so many keys and values and for a cursor, and all of it lives through the call.
        let more = is_there(unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) })?;
        Ok(Batch { count: attr.count as usize, next: more.then_some(next) })
    }

    fn element(&self, key: u64, value: u64) -> ElementAttr {
        ElementAttr { map_fd: self.fd.as_raw_fd() as u32, pad: 0, key, value, flags: 0 }
    }
}

/// Takes "there is no such entry" out of the errors.
fn is_there(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// # Safety
/// `attr` is the beginning of `union bpf_attr` for the command, and the pointers in it are good for what the kernel reads and
/// writes there.
unsafe fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    // SAFETY: the caller's promise; the size of `attr` is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
