//! What can go wrong between the controller and the kernel.

use std::io;
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::maps::MapError as AyaMapError;

use crate::network::interface::NoInterface;

/// A system call on a map failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} map {map}: {source}")]
pub struct MapError {
    pub operation: &'static str,
    pub map: &'static str,
    pub source: io::Error,
}

/// The packet path cannot be loaded, attached, found or looked into.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this binary was built without the packet path; build it with `cargo xtask build`")]
    NoObject,
    #[error("the kernel refused the packet path: {0}\nhelp: `loadbalancer doctor` checks what it needs")]
    Load(#[from] Box<EbpfError>),
    #[error("the packet path lacks {0}; build it again with `cargo xtask build`")]
    Missing(&'static str),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("cannot use {what} of the packet path: {source}")]
    Aya { what: &'static str, source: AyaMapError },
    #[error("cannot take a handle of map {name}: {source}")]
    Handle { name: &'static str, source: io::Error },
    #[error("cannot {action} {}: {source}\nhelp: {}", path.display(), pin_help(source, path))]
    Pin { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the state pinned in {} has another layout or size: {difference}\nhelp: set `on_incompatible = \"replace\"` to \
         drop it (live connections that need it break), or restore the old sizes in [limits]",
        directory.display()
    )]
    Incompatible { directory: PathBuf, difference: String },
    #[error(
        "interface {interface} already runs an XDP program: {program}\nhelp: detach it (`ip link set dev {interface} \
         xdp off`; another gateway of ours: `loadbalancer detach --pins DIRECTORY`), or choose another interface"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "a running controller keeps its state in {}\nhelp: stop it first; to run two, give each its own `pin_directory`",
        directory.display()
    )]
    InUse { directory: PathBuf },
    #[error(
        "{} is not on a BPF file system, so there are no pins\nhelp: name the `pin_directory` of the configuration",
        directory.display()
    )]
    NoPins { directory: PathBuf },
    #[error("nothing is pinned in {}: no gateway runs, or it keeps its state elsewhere", directory.display())]
    NothingPinned { directory: PathBuf },
    #[error(transparent)]
    NoInterface(#[from] NoInterface),
    #[error("cannot attach to {interface} in {mode} mode: {reason}")]
    Attach { interface: String, mode: &'static str, reason: String },
}

fn pin_help(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "make the BPF file system writable (`mount -o remount,rw`)".to_owned(),
        _ => format!(
            "pins need a BPF file system, which is never full; `findmnt --target {}` shows what is mounted there",
            path.display()
        ),
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
