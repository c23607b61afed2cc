//! What each purpose needs, and what of that is missing here.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;

use crate::kernels::{self, KERNELS, Kernel};
use crate::toolchain::{self, LINKER_LLVM};
use crate::workspace::{Workspace, find_program};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// The XDP program and the binaries
    Build,
    /// Format, lints, docs and licences
    Check,
    /// The lab and the system tests, in network namespaces
    Lab,
    /// What the benches compare with
    Bench,
    /// Debian's kernels under emulation
    Kernels,
}

impl Purpose {
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Check => "check",
            Self::Lab => "lab",
            Self::Bench => "bench",
            Self::Kernels => "kernels",
        }
    }
}

/// What `build`, `check`, `run` and `test` need.
pub const EVERYDAY: [Purpose; 3] = [Purpose::Build, Purpose::Check, Purpose::Lab];

/// Something that is not there, and why it is needed.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    pub remedy: Remedy,
    pub why: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Remedy {
    Packages(&'static [&'static str]),
    /// Compiled by cargo.
    Linker,
    /// Unpacked below the target directory, not installed; and so is the emulator.
    Kernel(Kernel),
    Emulator,
}

const COMPILER_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
const CLIPPY_PACKAGES: &[&str] = &["rust-web-clippy"];
const LLVM_PACKAGES: &[&str] = &["llvm-22-dev"];
/// Where Debian's compiler packages put their programs.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LLVM_LIBRARY: &str = "/usr/lib/llvm-22/lib/libLLVM.so";

/// Purpose, program, its package, and what it is used for.
const PROGRAMS: &[(Purpose, &str, &[&str], &str)] = &[
    (Purpose::Lab, "ip", &["iproute2"], "makes network namespaces"),
    (Purpose::Lab, "ethtool", &["ethtool"], "switches off checksum offload on virtual interfaces"),
    (Purpose::Lab, "ping", &["iputils-ping"], "asks virtual addresses for an echo"),
    (Purpose::Bench, "wrk", &["wrk"], "drives HTTP load"),
    (Purpose::Bench, "nginx", &["nginx-light", "libnginx-mod-stream"], "serves HTTP, and balances TCP to compare with"),
    (Purpose::Bench, "haproxy", &["haproxy"], "balances TCP to compare with"),
    (Purpose::Bench, "nft", &["nftables"], "balances by DNAT to compare with"),
];

/// What is missing for some purposes, in the order in which to put it right.
pub fn missing(workspace: &Workspace, purposes: &[Purpose]) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    if purposes.contains(&Purpose::Build) || purposes.contains(&Purpose::Check) {
        let compiler = toolchain::compiler(workspace)?;
        if compiler.is_none() {
            missing.push(packages(COMPILER_PACKAGES, "compile the XDP program: a rustc with a core library for eBPF"));
        }
        // Another compiler brings its own clippy, by its own means; `check` says if it does not.
        let is_debian = compiler.as_ref().is_none_or(|compiler| compiler.rustc == Path::new(DEBIAN_RUSTC));
        if purposes.contains(&Purpose::Check) && is_debian && !Path::new("/usr/bin/cargo-clippy").exists() {
            missing.push(packages(CLIPPY_PACKAGES, "lints the XDP program with the compiler that builds it"));
        }
        let bitcode = compiler.map_or(LINKER_LLVM, |compiler| compiler.llvm);
        if purposes.contains(&Purpose::Build)
            && let Err(rejection) = toolchain::linker(workspace, bitcode)
        {
            if !Path::new(LLVM_LIBRARY).exists() {
                missing.push(packages(LLVM_PACKAGES, "is the LLVM that bpf-linker is built on"));
            }
            let why = format!("links the XDP program ({})", rejection.why);
            missing.push(Missing { remedy: Remedy::Linker, why });
        }
    }
    for (purpose, program, names, why) in PROGRAMS {
        if purposes.contains(purpose) && find_program(program).is_none() {
            missing.push(packages(names, why));
        }
    }
    if purposes.contains(&Purpose::Kernels) {
        for kernel in KERNELS.into_iter().filter(|kernel| !kernels::has_kernel(workspace, *kernel)) {
            let why = "to load and verify the XDP programs in".to_owned();
            missing.push(Missing { remedy: Remedy::Kernel(kernel), why });
        }
        if !kernels::has_emulator(workspace) {
            missing.push(Missing { remedy: Remedy::Emulator, why: "boots these kernels".to_owned() });
        }
    }
    Ok(missing)
}

fn packages(names: &'static [&'static str], why: &str) -> Missing {
    Missing { remedy: Remedy::Packages(names), why: why.to_owned() }
}

impl Missing {
    /// What it is, as one would ask for it.
    pub fn name(&self) -> String {
        match self.remedy {
            Remedy::Packages(names) => names.join(", "),
            Remedy::Linker => format!("bpf-linker {}", toolchain::LINKER_VERSION),
            Remedy::Kernel(kernel) => format!("Linux {}", kernel.series),
            Remedy::Emulator => kernels::EMULATOR.to_owned(),
        }
    }
}
