//! Installs what is missing, saying what and why.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step;
use crate::toolchain::{self, LINKER_VERSION};
use crate::workspace::{Workspace, find_program, is_root};

/// LLVM that Debian's compiler for BPF is built with; the linker's must not be older.
const LLVM: &str = "22";

/// A Debian package, and what it is needed for.
struct Package {
    name: &'static str,
    why: &'static str,
}

const LINT: Package =
    Package { name: "rust-web-clippy", why: "lints the XDP program with the compiler that builds it" };

/// What the eBPF compiler is, where none was found.
const COMPILER: [Package; 2] = [
    Package { name: "rustc-web", why: "compiles the XDP program" },
    Package { name: "libstd-rust-web-dev-bpf", why: "Rust's core library for BPF" },
];

/// What building `bpf-linker` takes.
const LINKER: [Package; 4] = [
    Package { name: "llvm-22-dev", why: "the library that bpf-linker is made of" },
    Package { name: "g++", why: "links bpf-linker, which is partly C++" },
    Package { name: "zlib1g-dev", why: "LLVM's compression" },
    Package { name: "libzstd-dev", why: "LLVM's compression" },
];

/// Programs that tests run.
const PROGRAMS: [(&str, Package); 1] =
    [("ip", Package { name: "iproute2", why: "network namespaces for the system tests" })];

/// Installs everything that is missing. Quick when nothing is.
pub fn run(workspace: &Workspace) -> Result<()> {
    let compiler = toolchain::compiler(workspace);
    let linker = toolchain::linker(workspace);
    let mut missing: Vec<&Package> = Vec::new();
    if compiler.is_err() {
        missing.extend(&COMPILER);
    }
    if compiler.is_err() || toolchain::lint_driver().is_none() {
        missing.push(&LINT);
    }
    if linker.is_err() {
        missing.extend(LINKER.iter().filter(|package| !is_installed(package.name)));
    }
    missing.extend(PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| package));
    if missing.is_empty() && linker.is_ok() {
        return Ok(());
    }
    for package in &missing {
        println!("missing: {} ({})", package.name, package.why);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if !names.is_empty() {
        install(&names)?;
    }
    if linker.is_err() {
        println!("missing: bpf-linker (links the XDP program)");
        let mut cargo = workspace.foreign(&workspace.cargo);
        cargo.env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")).args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM}"),
        ]);
        step::run("install bpf-linker (a minute or two)", &mut cargo)?;
    }
    toolchain::compiler(workspace).map_err(|problem| anyhow::anyhow!(problem)).context("after installing")?;
    toolchain::linker(workspace).map_err(|problem| anyhow::anyhow!(problem)).context("after installing")?;
    Ok(())
}

fn install(names: &[&str]) -> Result<()> {
    let command = format!("apt-get update && apt-get install --yes --no-install-recommends {}", names.join(" "));
    if find_program("apt-get").is_none() {
        bail!("this is not Debian: install the equivalents of {}", names.join(", "));
    }
    if !is_root() {
        bail!("packages are missing; as root run:\n  {command}");
    }
    step::run("update the package lists", apt().arg("update"))
        .context("apt-get update failed: is a package mirror reachable?")?;
    step::run(
        &format!("install {}", names.join(" ")),
        apt().args(["install", "--yes", "--no-install-recommends"]).args(names),
    )
    .context("apt-get install failed; the compiler comes from bookworm-security, which must be among the sources")
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
