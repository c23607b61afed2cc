//! What a start needs of the machine: the BPF file system, open files, the packet path in the kernel.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::config::{Config, OnIncompatible};
use crate::dataplane::error::KernelError;
use crate::dataplane::load::Kernel;
use crate::dataplane::pins::{remove_pin_root, remove_pins};
use crate::dataplane::reconcile::Reconciler;

const BPF_FS: &str = "/sys/fs/bpf";

/// What is said of a process with a BPF file system of its own: `ip netns exec` gives a new /sys, for one.
pub const OWN_PINS: &str = "this process has a BPF file system of its own: what is pinned goes with it, and forwarding ends \
                            when it does; to run in a network namespace use `nsenter --net=/run/netns/NAME`, not `ip netns exec`";

/// Whether the BPF file system is another than that of the machine's first process.
pub fn has_own_pins() -> bool {
    let device = |root: &str| std::fs::metadata(format!("{root}{BPF_FS}")).map(|found| found.dev()).ok();
    device("").zip(device("/proc/1/root")).is_some_and(|(own, first)| own != first)
}

/// Mounts the BPF file system where it is missing, as other BPF tools do.
pub fn mount_bpf_fs(pin_directory: &Path) -> Result<()> {
    let root = PathBuf::from(BPF_FS);
    if !pin_directory.starts_with(&root) || statfs(&root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system on {BPF_FS}; try `mount -t bpf bpf {BPF_FS}`"))
}

/// The checks of many servers open more files than the usual limit of 1,024.
pub fn raise_open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

pub fn load(config: &Config) -> Result<Kernel> {
    let root = &config.gateway.pin_directory;
    match Kernel::load(config.limits, Some(root)) {
        Err(KernelError::Incompatible { difference, .. })
            if config.gateway.on_incompatible == OnIncompatible::Replace =>
        {
            tracing::warn!(%difference, "the pinned state does not fit and is replaced; flows that it held are lost");
            remove_pins(root)?;
            Ok(Kernel::load(config.limits, Some(root))?)
        }
        result => Ok(result?),
    }
}

pub fn remove_all(pin_directory: &Path) -> Result<(), KernelError> {
    remove_pins(pin_directory)?;
    remove_pin_root(pin_directory)
}

/// The key of the flow hash: as configured, else as pinned, else a new one.
pub fn seed(config: &Config, reconciler: &Reconciler) -> Result<u64> {
    let pinned = reconciler.settings().seed;
    match config.gateway.hash_seed {
        Some(seed) => {
            if reconciler.kernel().adopted && pinned != 0 && pinned != seed {
                tracing::warn!("hash_seed differs from that of the pinned state: live flows may change servers");
            }
            Ok(seed)
        }
        None if pinned != 0 => Ok(pinned),
        None => {
            let mut bytes = [0u8; 8];
            std::io::Read::read_exact(
                &mut std::fs::File::open("/dev/urandom").context("open /dev/urandom")?,
                &mut bytes,
            )
            .context("read /dev/urandom")?;
            Ok(u64::from_ne_bytes(bytes).max(1))
        }
    }
}
