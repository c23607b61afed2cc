//! What is pinned in the BPF file system, and so outlives the controller: where it is, who has it, and its end.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use loadbalancer_common::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::KernelError;

const LINK_PREFIX: &str = "link-";

/// What keeps two controllers from the same pins, for as long as it lives.
#[derive(Debug)]
pub struct PinLock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// Takes the pins below a root, which is made if it is not there.
///
/// # Errors
/// A running controller has them, or the root cannot be made or opened.
pub fn lock_pins(pin_root: &Path) -> Result<PinLock, KernelError> {
    let failed = |action| move |source| KernelError::Pin { action, path: pin_root.to_owned(), source };
    fs::create_dir_all(pin_root).map_err(failed("create"))?;
    let directory = File::open(pin_root).map_err(failed("open"))?;
    match directory.try_lock() {
        Ok(()) => Ok(PinLock(directory)),
        Err(TryLockError::WouldBlock) => Err(KernelError::InUse { directory: pin_root.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Removes everything pinned below a root, of any layout version: programs detach, maps go. False if there was nothing.
/// The root itself stays, if it is locked by who calls this.
///
/// # Errors
/// The root is not on a BPF file system, or something in it cannot be removed.
pub fn remove_pins(pin_root: &Path) -> Result<bool, KernelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::Pin { action: "remove", path, source }
    };
    let entries = match fs::read_dir(pin_root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(failed(pin_root))?,
    };
    if !statfs(pin_root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(KernelError::NoPins { directory: pin_root.to_owned() });
    }
    let mut found = false;
    for entry in entries {
        let path = entry.map_err(failed(pin_root))?.path();
        let version = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok());
        if version.is_some() {
            fs::remove_dir_all(&path).map_err(failed(&path))?;
            found = true;
        }
    }
    Ok(found)
}

/// Removes the root of pins, if nothing else is in it.
///
/// # Errors
/// It is there and empty, and cannot be removed.
pub fn remove_pin_root(pin_root: &Path) -> Result<(), KernelError> {
    match fs::remove_dir(pin_root) {
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(KernelError::Pin { action: "remove", path: pin_root.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes the link of one interface, which detaches the program.
///
/// # Errors
/// It is there, and cannot be removed.
pub fn remove_link(pin_root: &Path, interface: &str) -> Result<(), KernelError> {
    let pin = link_pin(&versioned(pin_root), interface);
    match fs::remove_file(&pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { action: "remove", path: pin, source })
        }
        _ => Ok(()),
    }
}

/// Interfaces that have a pinned link below a root.
pub fn pinned_interfaces(pin_root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(versioned(pin_root)) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(LINK_PREFIX).map(|name| name.replace('+', ".")))
        .collect()
}

/// Where maps and links of this build's layout are.
pub(super) fn versioned(pin_root: &Path) -> PathBuf {
    pin_root.join(format!("v{LAYOUT_VERSION}"))
}

pub(super) fn link_pin(directory: &Path, interface: &str) -> PathBuf {
    // The BPF file system has no dots in names.
    directory.join(format!("{LINK_PREFIX}{}", interface.replace('.', "+")))
}
