//! The contributor's commands.

mod setup;
mod toolchain;
mod build;
mod check;
mod test;

mod step;
mod version;
mod workspace;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Builds, checks and tests the load balancer, and installs what that needs.
///
/// On a fresh Debian bookworm with rustup's stable toolchain and git, as root:
///
///   cargo xtask test    every test suite
///
/// Before you submit a change: `cargo xtask check && cargo xtask test`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
enum Task {
    /// Install what is missing to build, check and test, saying what and why
    Setup,
    /// Show the compilers found for the XDP program, and what is wrong with those that cannot build it
    Toolchain,
    /// Build the XDP program and the library that carries it
    Build,
    /// Check format, lints on both sides, and docs
    Check,
    /// Run test suites: all, or one of unit, packet, system
    Test(test::Test),
}

fn main() -> Result<()> {
    let task = Task::parse();
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup => setup::run(&workspace),
        Task::Toolchain => toolchain::show(&workspace),
        Task::Build => build::run(&workspace),
        Task::Check => check::run(&workspace),
        Task::Test(test) => test.run(&workspace),
    }
}
