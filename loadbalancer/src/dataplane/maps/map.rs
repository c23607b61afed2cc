//! A map with types: its entries, one by one or all of them.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use aya::maps::{MapData, MapType};
use bytemuck::{Pod, bytes_of, bytes_of_mut, cast_slice, cast_slice_mut};

use super::super::error::{KernelError, MapError};
use super::mapped::Mapped;
use super::syscall::RawMap;

/// Entries that one batch look-up asks for.
const BATCH: u32 = 4096;

/// A map with keys and values of known layout.
pub struct Map<K, V> {
    raw: RawMap,
    name: &'static str,
    entries: u32,
    layout: PhantomData<(K, V)>,
}

impl<K, V> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({}, {} entries)", self.name, self.entries)
    }
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// # Errors
    /// The map has another layout, or the kernel gives no handle of it.
    pub(super) fn open(data: &MapData, name: &'static str) -> Result<Self, KernelError> {
        let aya = |source| KernelError::Aya { what: name, source };
        let info = data.info().map_err(aya)?;
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
            return Err(KernelError::Missing(name));
        }
        // CPUs that the kernel keeps values for, and writes them of: all that there may ever be, not only those online.
        let values = match info.map_type().map_err(aya)? {
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => aya::util::nr_cpus()
                .map_err(|(_, source)| MapError { operation: "count the CPUs for", map: name, source })?,
            _ => 1,
        };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|source| KernelError::Handle { name, source })?;
        let raw = RawMap::new(fd, size_of::<K>(), size_of::<V>(), values);
        Ok(Self { raw, name, entries: info.max_entries(), layout: PhantomData })
    }

    /// Number of entries that the map can hold.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    fn error(&self, operation: &'static str) -> impl Fn(io::Error) -> MapError {
        let map = self.name;
        move |source| MapError { operation, map, source }
    }

    /// The value of a key, if there is one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = V::zeroed();
        let found = self.raw.lookup(bytes_of(key), bytes_of_mut(&mut value)).map_err(self.error("read"))?;
        Ok(found.then_some(value))
    }

    /// The values of a key on each CPU, for a per-CPU map; none: there is no such key.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn get_per_cpu(&self, key: &K) -> Result<Vec<V>, MapError> {
        // The kernel rounds each up to 8 bytes.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut values = vec![V::zeroed(); self.raw.values()];
        if !self.raw.lookup(bytes_of(key), cast_slice_mut(&mut values)).map_err(self.error("read"))? {
            values.clear();
        }
        Ok(values)
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses.
    pub fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.raw.update(bytes_of(key), bytes_of(value)).map_err(self.error("write"))
    }

    /// Sets the same value on each CPU of a per-CPU map.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses.
    pub fn set_per_cpu(&self, key: &K, value: &V) -> Result<(), MapError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let values = vec![*value; self.raw.values()];
        self.raw.update(bytes_of(key), cast_slice(&values)).map_err(self.error("write"))
    }

    /// Removes a key. False if it was not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, MapError> {
        self.raw.delete(bytes_of(key)).map_err(self.error("delete from"))
    }

    /// All entries of a hash map, in batches. Entries that change meanwhile may be seen or not.
    ///
    /// # Errors
    /// The kernel refuses; some were visited until then.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), MapError> {
        let mut batch = BATCH.min(self.entries.max(1));
        let mut keys = vec![K::zeroed(); batch as usize];
        let mut values = vec![V::zeroed(); batch as usize];
        let mut cursor: Option<Vec<u8>> = None;
        loop {
            let found =
                self.raw.lookup_batch(cursor.as_deref(), cast_slice_mut(&mut keys), cast_slice_mut(&mut values));
            let found = match found {
                Ok(found) => found,
                // One hash bucket holds more than the batch.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && batch < self.entries => {
                    batch = batch.saturating_mul(2).min(self.entries);
                    keys.resize(batch as usize, K::zeroed());
                    values.resize(batch as usize, V::zeroed());
                    continue;
                }
                Err(error) => return Err(self.error("list")(error)),
            };
            for (key, value) in keys.iter().zip(&values).take(found.count) {
                visit(key, value);
            }
            match found.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// All keys, one by one: for maps that have no batches, or whose batches want another cursor. Keys that come or go meanwhile
    /// may be seen or not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn keys(&self) -> Result<Vec<K>, MapError> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::zeroed();
            let found = self.raw.next_key(keys.last().map(bytes_of), bytes_of_mut(&mut next));
            // One that goes meanwhile has the walk begin anew.
            if !found.map_err(self.error("list"))? || keys.len() >= self.entries as usize {
                return Ok(keys);
            }
            keys.push(next);
        }
    }

    /// Maps the values of an array map into memory.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn mapped(&self) -> Result<Mapped<V>, MapError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        Mapped::new(self.raw.fd(), self.entries as usize).map_err(self.error("map into memory"))
    }
}
