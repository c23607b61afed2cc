//! `cargo xtask build`: the XDP programs and the binary that carries them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use clap::Args;

use crate::need::Purpose;
use crate::setup;
use crate::step;
use crate::toolchain::{self, Compiler, Core, TARGET};
use crate::workspace::{Profile, Workspace, is_executable};

/// The package of the XDP programs.
pub const XDP: &str = "loadbalancer-ebpf";
/// Selects what runs on this machine: all packages but the XDP programs.
pub const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", XDP];

#[derive(Args)]
pub struct Build {
    /// Let the XDP programs log packets: for debugging only, it costs speed
    #[arg(long)]
    debug_log: bool,
}

impl Build {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        xdp_objects(workspace, if self.debug_log { &["--features", "debug-log"] } else { &[] })?;
        binaries(workspace, Profile::Dist, &[])?;
        println!("built {}", workspace.binary(Profile::Dist, "loadbalancer").display());
        Ok(())
    }
}

/// Installs what is missing for some purposes, then builds `loadbalancer` and some binaries of the tests package, all
/// carrying the XDP objects.
pub fn everything(workspace: &Workspace, profile: Profile, purposes: &[Purpose], test_binaries: &[&str]) -> Result<()> {
    setup::ensure(workspace, purposes)?;
    xdp_objects(workspace, &[])?;
    binaries(workspace, profile, test_binaries)
}

fn xdp_objects(workspace: &Workspace, options: &[&str]) -> Result<()> {
    setup::ensure(workspace, &[Purpose::Build])?;
    let compiler = xdp_compiler(workspace)?;
    let cargo = match compiler.core {
        Core::Prebuilt => workspace.cargo.clone(),
        // The sources of core belong to the cargo of the same toolchain.
        Core::Source => beside(&compiler, "cargo").unwrap_or_else(|| workspace.cargo.clone()),
    };
    let mut build = xdp_command(workspace, &compiler, &cargo, "build")?;
    step::compile("build XDP programs", build.args(options))
}

fn binaries(workspace: &Workspace, profile: Profile, test_binaries: &[&str]) -> Result<()> {
    let mut build = workspace.cargo();
    build.args(["build", "--profile", profile.name(), "--bin", "loadbalancer"]);
    match profile {
        // What is installed gets no feature that only tests want.
        Profile::Dist => build.args(["--package", "loadbalancer"]),
        // All packages, as the tests have them: another choice is another set of features, and compiles much twice.
        Profile::Dev | Profile::Release => build.args(HOST_PACKAGES),
    };
    for binary in test_binaries {
        build.args(["--bin", binary]);
    }
    let names: Vec<_> = ["loadbalancer"].iter().chain(test_binaries).copied().collect();
    step::compile(&format!("build {}", names.join(", ")), &mut build)
}

pub fn xdp_compiler(workspace: &Workspace) -> Result<Compiler> {
    toolchain::compiler(workspace)?.context(
        "no compiler can build the XDP programs: `cargo xtask toolchain` tells why, `cargo xtask setup` mends it",
    )
}

/// cargo, or a program that takes cargo's arguments, told to do something with the XDP package.
pub fn xdp_command(workspace: &Workspace, compiler: &Compiler, cargo: &Path, subcommand: &str) -> Result<Command> {
    let linker = toolchain::linker(workspace, compiler.llvm)
        .map_err(|rejection| anyhow!("no linker for the XDP programs: {}; mend: {}", rejection.why, rejection.mend))?;
    let linker = linker.to_str().with_context(|| format!("the path {} is not UTF-8", linker.display()))?;
    // v3 brings the atomics that the maps need; BTF is made from the debug information.
    let flags = ["-C", &format!("linker={linker}"), "-C", "target-cpu=v3", "-C", "debuginfo=2", "-C", "link-arg=--btf"];
    let mut command = workspace.foreign(cargo);
    command
        .env("CARGO", &workspace.cargo)
        .env("CARGO_TARGET_DIR", xdp_target(workspace))
        .env("RUSTC", &compiler.rustc)
        // Empty turns off what a configuration file may name.
        .env("RUSTC_WRAPPER", "")
        // aya-ebpf uses features that are not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args([subcommand, "--release", "--package", XDP, "--target", TARGET]);
    if compiler.core == Core::Source {
        command.arg("-Zbuild-std=core");
    }
    Ok(command)
}

/// The XDP package has its own target directory: another compiler would throw out what the usual one has built. The build
/// scripts of the packages that embed the objects look for them there.
fn xdp_target(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf")
}

/// A program of the same toolchain as a compiler.
pub fn beside(compiler: &Compiler, program: &str) -> Option<PathBuf> {
    Some(compiler.rustc.with_file_name(program)).filter(|path| is_executable(path))
}
