//! What the queue does: under overload, for classes, under floods, and how fast.
//!
//! Each scenario brings up labs of its own; ways that are compared run at the same time. The service times of servers are waits, so
//! that two processors have room for several labs.

mod overload;
mod classes;
mod slot;
mod many;
mod prefixes;
mod flood;
mod kill;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::scenario::{self, Common, Scenario, scenario};

/// Measures in the lab what the queue does for clients and servers.
#[derive(Parser)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
}

const SCENARIOS: [Scenario; 8] = [
    scenario("overload", overload::round),
    scenario("shares", classes::shares),
    scenario("waits", classes::waits),
    scenario("slot", slot::round),
    scenario("many", many::round),
    Scenario { once: true, ..scenario("prefixes", prefixes::round) },
    scenario("flood", flood::round),
    scenario("kill", kill::round),
];

/// Open files that all labs need at most.
const FILES: u64 = 20_000;

pub fn run(arguments: &Arguments) -> Result<bool> {
    // Several labs, each with thousands of connections of which both ends are here.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    ensure!(hard >= FILES, "{hard} files may be open, {FILES} are needed: raise the hard limit (`ulimit -Hn`)");
    let (_, met) = scenario::run(&SCENARIOS, &arguments.common, Duration::ZERO)?;
    Ok(met)
}
