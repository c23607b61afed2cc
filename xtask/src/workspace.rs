//! Where things are, and clean commands to run them with.

use std::env;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub struct Workspace {
    pub root: PathBuf,
    /// The target directory that cargo uses for this workspace.
    pub target: PathBuf,
    /// The cargo that runs this task.
    pub cargo: PathBuf,
}

/// A profile of the workspace's Cargo.toml, which tells how each compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The lab and the tests.
    Dev,
    /// Benches.
    Release,
    /// What is installed.
    Dist,
}

impl Profile {
    /// As cargo's option calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            _ => self.name(),
        }
    }
}

impl Workspace {
    pub fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not inside a workspace")?;
        // cargo marks its target directory with this file, wherever environment or configuration put it.
        let own_path = env::current_exe().context("cannot tell where the xtask binary is")?;
        let target = own_path.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
        Ok(Self {
            root: root.to_owned(),
            target: target.map_or_else(|| root.join("target"), Path::to_owned),
            cargo: env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        })
    }

    /// cargo for programs of this machine, free of what the calling cargo set for xtask alone.
    pub fn cargo(&self) -> Command {
        let mut command = self.clean(&self.cargo, is_of_xtask);
        command.env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// A built program, free of what the calling cargo set for xtask alone.
    pub fn program(&self, path: &Path) -> Command {
        let mut command = self.clean(path, is_of_xtask);
        command.current_dir(env::current_dir().unwrap_or_else(|_| self.root.clone()));
        command
    }

    /// A toolchain's program, free of everything that would make it build in another way than told.
    pub fn foreign(&self, path: &Path) -> Command {
        self.clean(path, |name| is_of_xtask(name) || steers_the_compiler(name))
    }

    fn clean(&self, program: &Path, unwanted: fn(&str) -> bool) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(unwanted) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Where `cargo build` puts a binary.
    pub fn binary(&self, profile: Profile, name: &str) -> PathBuf {
        self.target.join(profile.directory()).join(name)
    }
}

/// Set by `cargo run` for the program that it runs. The library path names rustup's own LLVM and must not reach others.
fn is_of_xtask(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || matches!(name, "CARGO" | "LD_LIBRARY_PATH" | "LOADBALANCER_XTASK" | "RUST_RECURSION_COUNT")
}

/// Variables that would change which compiler runs or what it is told.
fn steers_the_compiler(name: &str) -> bool {
    let steers = ["RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CLIPPY_"].iter().any(|it| name.starts_with(it));
    let steers_cargo = ["ENCODED_", "BUILD_", "TARGET_", "PROFILE_", "UNSTABLE_", "INCREMENTAL"]
        .iter()
        .any(|it| name.strip_prefix("CARGO_").is_some_and(|name| name.starts_with(it)));
    (steers || steers_cargo) && name != "CARGO_BUILD_JOBS"
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Refuses to go on without root, with the command that has it.
pub fn need_root(why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    bail!("{why}: that needs root; run:\n  sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {}", arguments.join(" "))
}

/// A program on PATH, or where programs for root are, which a user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    programs(name).into_iter().next()
}

/// Every program of that name on PATH, first match first.
pub fn programs(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)) {
        // Several names may lead to one directory, as /bin does to /usr/bin.
        if let Ok(directory) = directory.canonicalize()
            && !directories.contains(&directory)
        {
            directories.push(directory);
        }
    }
    directories.into_iter().map(|directory| directory.join(name)).filter(|program| is_executable(program)).collect()
}

pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_calling_cargo_steers_the_build_of_the_xdp_program() {
        let dropped = |name| is_of_xtask(name) || steers_the_compiler(name);
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "RUSTFLAGS",
            "RUSTDOCFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            "CLIPPY_ARGS",
            "LD_LIBRARY_PATH",
        ] {
            assert!(dropped(name), "{name} leaks");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_BUILD_JOBS", "RUSTUP_HOME", "HTTPS_PROXY"]
        {
            assert!(!dropped(name), "{name} is lost");
        }
    }
}
