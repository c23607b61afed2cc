//! Maps that an earlier controller has pinned.

use std::path::Path;

use aya::maps::MapData;

use super::super::error::KernelError;
use super::super::pins::versioned;
use super::super::sizes::Sizes;
use super::handles::{Maps, entries};

impl Maps {
    /// Opens what an earlier controller has pinned below a root, without loading anything: for looking only.
    ///
    /// # Errors
    /// Nothing is pinned there, or not all maps of this layout are.
    pub fn pinned(pin_root: &Path) -> Result<Self, KernelError> {
        let directory = versioned(pin_root);
        if !directory.is_dir() {
            return Err(KernelError::NothingPinned { directory });
        }
        Self::take(&|name| {
            MapData::from_pin(directory.join(name)).map_err(|source| KernelError::Aya { what: name, source })
        })
    }
}

/// Whether there is pinned state, all of it of the layout and sizes wanted.
///
/// # Errors
/// There is some, but not that, or it cannot be read.
pub(in crate::dataplane) fn is_compatible(directory: &Path, sizes: &Sizes) -> Result<bool, KernelError> {
    let mut found = 0;
    let wanted = entries(sizes);
    for (name, entries) in wanted {
        let path = directory.join(name);
        if !path.exists() {
            continue;
        }
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(|source| KernelError::Aya { what: "a pinned map", source })?;
        if info.max_entries() != entries {
            return Err(KernelError::Incompatible {
                directory: directory.to_owned(),
                difference: format!("map {name} has {} entries, {entries} are wanted", info.max_entries()),
            });
        }
        found += 1;
    }
    if found != 0 && found != wanted.len() {
        return Err(KernelError::Incompatible {
            directory: directory.to_owned(),
            difference: format!("{found} of {} maps are there", wanted.len()),
        });
    }
    Ok(found != 0)
}
