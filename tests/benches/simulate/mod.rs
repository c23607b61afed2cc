//! Drives the loop with synthetic servers and open-loop clients, on a clock of its own.
//!
//! Clients come as a Poisson process and do not wait for each other. The packet path is modelled as its selection: a
//! random place in the ring, a second one if the first server is hot. The same seed gives the same run.

mod bars;
mod draw;
mod gradient;
mod mirrors;
mod policy;
mod run;
mod scenario;
mod server;
mod tally;
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use loadbalancer_tests::report;

/// Drives the law from measured quality to weights with synthetic servers.
#[derive(Parser)]
pub struct Arguments {
    /// Runs of each scenario, each with other clients; figures are medians
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Only an original with mirrors
    #[arg(long)]
    mirrors: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots of weights, load and latency over time
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

pub fn simulate(arguments: &Arguments) -> Result<bool> {
    let rounds = arguments.rounds.max(1);
    let mut figures = if arguments.mirrors { Vec::new() } else { bars::measure(rounds) };
    figures.extend(mirrors::measure(rounds));
    if let Some(path) = &arguments.json {
        report::write_json(path, &figures)?;
    }
    if let Some(directory) = &arguments.plots {
        draw::all(directory)?;
    }
    Ok(report::verdict(&figures))
}
