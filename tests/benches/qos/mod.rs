//! What measured quality decides, end to end in the lab: weights, ejection, channels and standby servers, under open-loop load.
//!
//! Each scenario brings up labs of its own, in which nothing is shared with others; ways that are compared run at the same
//! time. The service times of servers are waits, so that two processors have room for several labs.

pub mod world;
pub mod haproxy;
mod slow;
mod speeds;
mod steady;
mod eject;
mod channel;
mod standby;
pub mod controller;
mod consistency;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use loadbalancer_tests::report::Figure;

use super::plot::{self, Column};
use super::scenario::{self, Common, Scenario, scenario};

/// Measures in the lab what measured quality does for clients.
#[derive(Parser)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Minutes for which weights change while flows are held
    #[arg(long, default_value_t = 1)]
    minutes: u64,
}

const SCENARIOS: [Scenario; 9] = [
    scenario("slow", slow::round),
    scenario("speeds", speeds::round),
    scenario("steady", steady::round),
    scenario("eject", eject::round),
    scenario("channel", channel::worse),
    scenario("dead", channel::dead),
    scenario("standby", standby::round),
    scenario("controller", controller::round),
    Scenario { once: true, ..scenario("consistency", consistency::round) },
];

pub fn run(arguments: &Arguments) -> Result<bool> {
    let long = Duration::from_secs(60 * arguments.minutes);
    let (figures, met) = scenario::run(&SCENARIOS, &arguments.common, long)?;
    if let Some(directory) = &arguments.common.plots {
        draw(directory, &figures)?;
    }
    Ok(met)
}

/// The latencies of the ways that are compared.
fn draw(directory: &std::path::Path, figures: &[Figure]) -> Result<()> {
    let columns: Vec<Column> = figures
        .iter()
        .filter_map(|figure| Some((figure.name.strip_prefix(slow::P99_OF)?, figure.value)))
        .map(|(name, value)| Column { name: name.to_owned(), value })
        .collect();
    if columns.is_empty() {
        return Ok(());
    }
    let path = directory.join("qos-slow.svg");
    plot::columns(&path, "p99 of all requests while one of four servers is 10 x slower", "ms", &columns)
}
