//! The contributor's commands.

mod setup;
mod toolchain;
mod build;
mod check;
mod test;
mod run;

mod need;
mod apt;
mod kernels;
mod licence;
mod structure;
mod suite;
mod step;
mod version;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Builds, runs and tests the load balancer, and installs what that needs.
///
/// On a fresh Debian bookworm with rustup's stable toolchain and git, as root:
///
///   cargo xtask run     the lab: real HTTP traffic balanced by XDP between network namespaces
///   cargo xtask test    every test suite
///
/// Before you submit a change: `cargo xtask check && cargo xtask test`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
enum Task {
    /// Install what is missing to build, check, run and test, saying what and why
    Setup(setup::Setup),
    /// Show the compilers found for the XDP program, and what is wrong with those that cannot build it
    Toolchain,
    /// Build the XDP program and the `loadbalancer` binary that carries it
    Build(build::Build),
    /// Check format, lints on both sides, docs, licences and the order of modules
    Check(check::Check),
    /// Start the lab, or with `-- --config FILE` the gateway on this machine's interfaces
    Run(run::Run),
    /// Run test suites: all, or one of unit, packet, system, fuzz, kernels
    Test(test::Test),
    /// Measure: all, or one of packet, ring, system, qos, queue
    Bench(run::Bench),
    /// Look for what would keep the gateway from working on this machine
    Doctor(run::Doctor),
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup(setup) => setup.run(&workspace),
        Task::Toolchain => toolchain::show(&workspace),
        Task::Build(build) => build.run(&workspace),
        Task::Check(check) => check.run(&workspace),
        Task::Run(run) => run.run(&workspace),
        Task::Test(test) => test.run(&workspace),
        Task::Bench(bench) => bench.run(&workspace),
        Task::Doctor(doctor) => doctor.run(&workspace),
    }
}
