//! Debian's kernels and the emulator that boots them, for `cargo xtask test kernels`.
//!
//! All of it is unpacked below the target directory and none of it is installed: this machine must not boot these
//! kernels, and Debian's emulator may not go together with what is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt;
use crate::workspace::{Workspace, find_program};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Also the name of the directory that it is unpacked in.
    pub series: &'static str,
    /// The package that names the newest kernel package of the series.
    newest: &'static str,
}

pub const KERNELS: [Kernel; 2] = [
    Kernel { series: "6.1", newest: "linux-image-cloud-amd64" },
    Kernel { series: "6.12", newest: "linux-image-6.12-cloud-amd64" },
];

pub const EMULATOR: &str = "qemu-system-x86_64";

/// Runs the unpacked emulator.
const EMULATOR_SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/qemu
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH
exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/seabios" -L "$here/usr/share/qemu" \
    -L "$here/usr/lib/ipxe/qemu" "$@"
"#;

/// Unpacks in a directory of its own, so that what breaks off half way is not taken for the whole.
const FETCH_KERNEL: &str = r#"
rm -rf part && mkdir part
newest=$(apt-cache depends --important "$1" | sed -n 's/^ *Depends: //p')
(cd part && apt-get download ${newest:-"$1"})
dpkg-deb --extract part/*.deb part/root
mv part/root "$2"
rm -r part
"#;

/// The libraries that are missing here come along. It changes nothing outside, so it needs neither locks nor root.
const FETCH_EMULATOR: &str = r#"
rm -rf part qemu && mkdir -p part/partial part/root
apt-get install --download-only --yes --no-install-recommends \
    --option Debug::NoLocking=1 --option Dir::Cache::archives="$PWD/part" qemu-system-x86
for package in part/*.deb; do dpkg-deb --extract "$package" part/root; done
mv part/root qemu
rm -r part
"#;

/// Where the kernels are: each has `boot` and `lib` in a directory named after its series.
pub fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("kernels")
}

pub fn has_kernel(workspace: &Workspace, kernel: Kernel) -> bool {
    directory(workspace).join(kernel.series).is_dir()
}

pub fn has_emulator(workspace: &Workspace) -> bool {
    find_program(EMULATOR).is_some() || directory(workspace).join(EMULATOR).is_file()
}

pub fn fetch_kernel(workspace: &Workspace, kernel: Kernel) -> Result<()> {
    let directory = prepare(workspace)?;
    let label = format!("unpack Linux {} from {}", kernel.series, kernel.newest);
    apt::with_fresh_lists(workspace, &label, || {
        script(workspace, &directory, FETCH_KERNEL, &[kernel.newest, kernel.series])
    })
}

pub fn fetch_emulator(workspace: &Workspace) -> Result<()> {
    let directory = prepare(workspace)?;
    apt::with_fresh_lists(workspace, "unpack qemu-system-x86", || script(workspace, &directory, FETCH_EMULATOR, &[]))?;
    let path = directory.join(EMULATOR);
    fs::write(&path, EMULATOR_SCRIPT)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let directory = directory(workspace);
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

fn script(workspace: &Workspace, directory: &Path, text: &str, arguments: &[&str]) -> Command {
    let mut command = apt::command(workspace, "sh");
    command.current_dir(directory).args(["-euc", text, "sh"]).args(arguments);
    command
}
