//! What commands share.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

pub const SOCKET: &str = "/run/loadbalancer.sock";
pub const PINS: &str = "/sys/fs/bpf/loadbalancer";

#[derive(Args, Clone)]
pub struct SocketArgs {
    /// Admin socket of the controller
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
}

#[derive(Args, Clone)]
pub struct ShowArgs {
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Where the state is pinned, to be read when no controller runs
    #[arg(long, default_value = PINS)]
    pub pins: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What only a running controller can tell.
#[derive(Args, Clone)]
pub struct ReportArgs {
    #[command(flatten)]
    pub socket: SocketArgs,
    /// As JSON, with all details
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub watch: WatchArgs,
}

#[derive(Args, Clone)]
pub struct WatchArgs {
    /// Again and again, every so many seconds; counters are shown as rates
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    pub watch: Option<u64>,
    /// Stop watching after so many tables
    #[arg(long, requires = "watch")]
    pub count: Option<u64>,
}

pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // Most of the processors are the packet path's; and each thread more costs checks wake-ups of the others.
    let workers = std::thread::available_parallelism().map_or(1, |all| all.get().div_ceil(4));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(workers).enable_all().build().context("start the runtime")?.block_on(future)
}

/// Refuses whoever is not root.
pub fn need_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root\nhelp: run it with sudo");
    }
    Ok(())
}
