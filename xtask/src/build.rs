//! Builds the XDP programs and what carries them.

use std::process::Command;

use anyhow::Result;

use crate::setup;
use crate::step;
use crate::toolchain::{self, TARGET};
use crate::workspace::Workspace;

pub fn run(workspace: &Workspace) -> Result<()> {
    setup::run(workspace)?;
    objects(workspace)?;
    step::compile("build the controller", workspace.cargo().args(["build", "--release", "--package", "loadbalancer"]))
}

/// The eBPF objects.
pub fn objects(workspace: &Workspace) -> Result<()> {
    step::compile("build the XDP programs", bpf_cargo(workspace, "build")?.arg("--release"))
}

/// cargo with the compiler and the flags for BPF.
pub fn bpf_cargo(workspace: &Workspace, command: &str) -> Result<Command> {
    let compiler = toolchain::compiler(workspace).map_err(|problem| anyhow::anyhow!(problem))?;
    let linker = toolchain::linker(workspace).map_err(|problem| anyhow::anyhow!(problem))?;
    let flags = [
        // Atomic operations beyond addition need the third version of the instruction set (Linux 5.12).
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut cargo = workspace.foreign(&workspace.cargo);
    cargo
        .env("RUSTC", &compiler.rustc)
        // The program uses compare-exchange, which on BPF exists only as an unstable intrinsic.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", workspace.target.join("ebpf"))
        .args([command, "--package", "loadbalancer-ebpf", "--target", TARGET]);
    if compiler.build_core {
        cargo.args(["-Z", "build-std=core"]);
    }
    Ok(cargo)
}
