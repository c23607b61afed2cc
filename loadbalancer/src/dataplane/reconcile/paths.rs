//! Which paths are in the kernel's table, each once.

use std::collections::{BTreeSet, HashMap, VecDeque};

use loadbalancer_common::backend::Backend;
use loadbalancer_common::path::Path;

use super::super::error::MapError;
use super::super::ids::PathNumber;
use super::error::ReconcileError;
use super::found::Found;
use super::tables::Tables;

#[derive(Clone, Debug)]
pub(super) struct Paths {
    paths: HashMap<PathNumber, Path>,
    numbers: HashMap<[u8; size_of::<Path>()], PathNumber>,
    /// The one that was given up first comes first, as packets and fragments may still refer to the last.
    free: VecDeque<PathNumber>,
    capacity: u32,
}

impl Paths {
    /// Those that servers refer to.
    pub(super) fn of(found: &Found, tables: &impl Tables, capacity: u32) -> Result<Self, MapError> {
        let used: BTreeSet<u32> = found.present().flat_map(|(_, backend)| backend.paths).collect();
        let free = (1..capacity).filter(|number| !used.contains(number)).map(PathNumber).collect();
        let mut known = Self { paths: HashMap::new(), numbers: HashMap::new(), free, capacity };
        for number in used.into_iter().filter(|number| *number != 0).map(PathNumber) {
            if let Some(path) = tables.path(number)? {
                known.paths.insert(number, path);
                known.numbers.insert(bytemuck::cast(path), number);
            }
        }
        Ok(known)
    }

    pub(super) fn get(&self, number: PathNumber) -> Option<&Path> {
        self.paths.get(&number)
    }

    pub(super) fn number(&self, path: &Path) -> Option<PathNumber> {
        self.numbers.get(bytemuck::bytes_of(path)).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (PathNumber, &Path)> {
        self.paths.iter().map(|(number, path)| (*number, path))
    }

    /// The number that the next path gets.
    pub(super) fn next(&self) -> Result<PathNumber, ReconcileError> {
        let full = ReconcileError::Full { what: "another path", capacity: self.capacity, key: "backends" };
        self.free.front().copied().ok_or(full)
    }

    /// Notes that a path was written to the next number.
    pub(super) fn insert_next(&mut self, path: &Path) {
        if let Some(number) = self.free.pop_front() {
            self.paths.insert(number, *path);
            self.numbers.insert(bytemuck::cast(*path), number);
        }
    }

    /// Gives up those of a server's paths that no server has any more.
    pub(super) fn release(&mut self, before: &Backend, found: &Found) {
        for number in before.paths.into_iter().filter(|number| *number != 0) {
            if !found.present().any(|(_, backend)| backend.paths.contains(&number))
                && let Some(path) = self.paths.remove(&PathNumber(number))
            {
                self.numbers.remove(bytemuck::bytes_of(&path));
                self.free.push_back(PathNumber(number));
            }
        }
    }
}
