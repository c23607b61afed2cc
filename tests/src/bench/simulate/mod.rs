//! Drives the loop with synthetic servers and open-loop clients, on a clock of its own.
//!
//! Clients come as a Poisson process and do not wait for each other. The packet path is modelled as its selection: a
//! random place in the ring, a second one if the first server is hot. The same seed gives the same run.

mod bars;
mod draw;
mod gradient;
mod mirrors;
mod run;
mod scenario;
mod server;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use loadbalancer::quality::tiers;

use self::run::Run;
use self::server::{Change, Model};
use self::world::run;
use super::report;

/// Drives the law from measured quality to weights with synthetic servers.
#[derive(Parser)]
#[command(name = "cargo xtask bench qos --simulate", bin_name = "cargo xtask bench qos --simulate")]
struct Arguments {
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

/// The bench as a program.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    report::exit_code(simulate(&Arguments::parse_from(arguments)))
}

fn simulate(arguments: &Arguments) -> Result<bool> {
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

/// How new flows find a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// The packet path with the weights of the configuration.
    Fixed,
    /// The packet path with measured weights.
    Measured,
    /// The packet path with weights by the law that was planned first, to compare with: see `gradient`.
    Gradient,
    /// HAProxy's `leastconn`: the server with the fewest connections for its weight.
    LeastConnections,
    /// HAProxy's `random(2)`: of two random servers the one with fewer connections for its weight.
    RandomOfTwo,
}

impl Policy {
    fn name(&self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Measured => "measured",
            Self::Gradient => "gradient",
            Self::LeastConnections => "leastconn",
            Self::RandomOfTwo => "random(2)",
        }
    }
}

/// What passive signals are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passive {
    /// Response gaps in buckets of a factor of 2, and their sum.
    Sums,
    /// Response gaps in buckets alone.
    Buckets,
    /// None: both directions do not pass the gateway.
    Absent,
}

/// What is simulated.
#[derive(Clone, Debug)]
struct Scenario {
    servers: Vec<Model>,
    /// Requests per second of all clients together, and what becomes of it in the order of time.
    rate: f64,
    rates: Vec<(Duration, f64)>,
    /// When lower tiers help the first, if they do.
    tiers: Option<tiers::Settings>,
    duration: Duration,
    probe_every: Duration,
    probe_timeout: Duration,
    /// How much later than they were made measurements come in.
    delay: Duration,
    passive: Passive,
    seed: u64,
}
