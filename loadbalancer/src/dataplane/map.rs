//! Typed access to BPF maps by system call and by memory mapping.
//!
//! The library that loads the programs has no batch look-ups and no memory mapping, and wants its own trait on every key
//! and value; these few system calls take the plain-old-data layouts of `loadbalancer-common` as they are.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use bytemuck::{Pod, Zeroable};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Entries that one batch look-up asks for.
const BATCH: u32 = 4096;

/// `union bpf_attr` for the element commands.
#[repr(C)]
#[derive(Clone, Copy, Zeroable, Pod)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
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

/// A system call on a map failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} map {map}: {source}")]
pub struct MapError {
    pub operation: &'static str,
    pub map: &'static str,
    pub source: io::Error,
}

/// A map with keys and values of known layout.
pub struct Map<K, V> {
    fd: OwnedFd,
    name: &'static str,
    entries: u32,
    layout: PhantomData<(K, V)>,
}

impl<K, V> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({}, {} entries)", self.name, self.entries)
    }
}

fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> io::Result<()> {
    // SAFETY: `attr` is a prefix of `union bpf_attr`, its size is given, and the pointers in it live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// `fd` must be of a map with this layout; the loader has compared it.
    pub(super) fn new(fd: OwnedFd, name: &'static str, entries: u32) -> Self {
        Self { fd, name, entries, layout: PhantomData }
    }

    /// Number of entries that the map can hold.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn error(&self, operation: &'static str, source: io::Error) -> MapError {
        MapError { operation, map: self.name, source }
    }

    fn element(&self, key: &K, value: *mut u8, flags: u64) -> ElementAttr {
        ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value as u64,
            flags,
        }
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = V::zeroed();
        Ok(self.read(key, std::ptr::from_mut(&mut value).cast())?.then_some(value))
    }

    /// The values of a key on each CPU, for a per-CPU map. The kernel rounds each up to 8 bytes.
    pub fn get_per_cpu(&self, key: &K) -> Result<Vec<V>, MapError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut values = vec![V::zeroed(); self.cpus()?];
        if !self.read(key, values.as_mut_ptr().cast())? {
            values.clear();
        }
        Ok(values)
    }

    fn read(&self, key: &K, value: *mut u8) -> Result<bool, MapError> {
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut self.element(key, value, 0)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.error("read", error)),
        }
    }

    pub fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        let mut value = *value;
        bpf(BPF_MAP_UPDATE_ELEM, &mut self.element(key, std::ptr::from_mut(&mut value).cast(), 0))
            .map_err(|error| self.error("write", error))
    }

    /// Sets the same value on each CPU of a per-CPU map.
    pub fn set_per_cpu(&self, key: &K, value: &V) -> Result<(), MapError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut values = vec![*value; self.cpus()?];
        bpf(BPF_MAP_UPDATE_ELEM, &mut self.element(key, values.as_mut_ptr().cast(), 0))
            .map_err(|error| self.error("write", error))
    }

    /// CPUs that the kernel keeps values for, and writes them of: all that there may ever be, not only those online.
    fn cpus(&self) -> Result<usize, MapError> {
        static CPUS: OnceLock<usize> = OnceLock::new();
        if let Some(cpus) = CPUS.get() {
            return Ok(*cpus);
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| self.error("count the CPUs for", error))?;
        Ok(*CPUS.get_or_init(|| cpus))
    }

    /// Removes a key. False if it was not there.
    pub fn remove(&self, key: &K) -> Result<bool, MapError> {
        match bpf(BPF_MAP_DELETE_ELEM, &mut self.element(key, std::ptr::null_mut(), 0)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.error("delete from", error)),
        }
    }

    /// All entries of a hash map, in batches. Entries that change meanwhile may be seen or not.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), MapError> {
        let mut batch = BATCH.min(self.entries.max(1));
        let mut keys = vec![K::zeroed(); batch as usize];
        let mut values = vec![V::zeroed(); batch as usize];
        // The kernel's cursor through a hash map is a number of four bytes.
        let mut cursor: Option<u32> = None;
        loop {
            let mut next = 0u32;
            let mut attr = BatchAttr {
                in_batch: cursor.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
                out_batch: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: batch,
                map_fd: self.fd.as_raw_fd() as u32,
                element_flags: 0,
                flags: 0,
            };
            let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
            let last = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One hash bucket holds more than the batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < self.entries => {
                    batch = batch.saturating_mul(2).min(self.entries);
                    keys.resize(batch as usize, K::zeroed());
                    values.resize(batch as usize, V::zeroed());
                    continue;
                }
                Err(error) => return Err(self.error("list", error)),
            };
            for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
                visit(key, value);
            }
            if last {
                return Ok(());
            }
            cursor = Some(next);
        }
    }

    /// All keys, one by one: for maps that have no batches, or whose batches want another cursor. Keys that come or go meanwhile
    /// may be seen or not.
    pub fn keys(&self) -> Result<Vec<K>, MapError> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::zeroed();
            let before = keys.last().map_or(0, |key| std::ptr::from_ref(key) as u64);
            let mut attr = ElementAttr {
                map_fd: self.fd.as_raw_fd() as u32,
                pad: 0,
                key: before,
                value: std::ptr::from_mut(&mut next) as u64,
                flags: 0,
            };
            match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
                // One that goes meanwhile has the walk begin anew.
                Ok(()) if keys.len() < self.entries as usize => keys.push(next),
                Ok(()) => return Ok(keys),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(self.error("list", error)),
            }
        }
    }

    /// Maps the values of an array map into memory.
    pub(super) fn mapped(&self) -> Result<Mapped<V>, MapError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let bytes = self.entries as usize * size_of::<V>();
        // SAFETY: the kernel chooses the address; length and descriptor are of this map.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<AtomicU64>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Mapped { start, bytes, layout: PhantomData }),
            _ => Err(self.error("map into memory", io::Error::last_os_error())),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
    }
}

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
