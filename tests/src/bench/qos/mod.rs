//! What measured quality decides, end to end in the lab: weights, ejection, channels and standby servers, under open-loop load.
//!
//! Each scenario brings up labs of its own, in which nothing is shared with others; ways that are compared run at the same
//! time. The service times of servers are waits, so that two processors have room for several labs.

mod world;
mod haproxy;
mod slow;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use super::plot::{self, Column};
use super::report::{self, Bar, Figure};

/// Measures in the lab what measured quality does for clients.
#[derive(Parser)]
#[command(name = "cargo xtask bench qos", bin_name = "cargo xtask bench qos")]
struct Arguments {
    /// Rounds, in each of which every scenario has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only these scenarios
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = NAMES)]
    only: Vec<String>,
    /// Minutes for which weights change while flows are held
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// What was measured of one thing in one round.
#[derive(Clone, Debug)]
pub struct Value {
    what: String,
    unit: &'static str,
    value: f64,
    bar: Option<Bar>,
}

impl Value {
    fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { what: what.into(), unit, value, bar: None }
    }

    fn at_most(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtMost(bar));
        self
    }
}

/// What differs between rounds.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Of the random times of requests.
    seed: u64,
}

type Scenario = fn(Round) -> Result<Vec<Value>>;

const SCENARIOS: [(&str, Scenario); 1] = [("slow", slow::round)];
const NAMES: [&str; 1] = ["slow"];

pub fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut failures = Vec::new();
    let chosen = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    for round in 0..arguments.rounds {
        for (name, scenario) in SCENARIOS.into_iter().filter(|(name, _)| chosen(name)) {
            eprintln!("round {}/{}: {name}", round + 1, arguments.rounds);
            let begun = Instant::now();
            match scenario(Round { seed: round + 1 }).with_context(|| format!("{name}, round {}", round + 1)) {
                Ok(values) => {
                    values.iter().for_each(|value| eprintln!("  {}: {:.3} {}", value.what, value.value, value.unit));
                    values.into_iter().for_each(|value| add(&mut figures, value));
                }
                Err(error) => {
                    eprintln!("  failed: {error:#}");
                    failures.push(error);
                }
            }
            eprintln!("  took {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    ensure!(!figures.is_empty(), "nothing was measured");
    figures.iter_mut().for_each(|figure| figure.value = report::median(&figure.rounds));
    print(&figures);
    if let Some(path) = &arguments.json {
        report::write_json(path, &figures)?;
    }
    if let Some(directory) = &arguments.plots {
        draw(directory, &figures)?;
    }
    failures.iter().for_each(|error| println!("FAILED: {error:#}"));
    Ok(report::verdict(&figures) && failures.is_empty())
}

fn add(figures: &mut Vec<Figure>, value: Value) {
    match figures.iter_mut().find(|figure| figure.name == value.what) {
        Some(figure) => figure.rounds.push(value.value),
        None => {
            let figure = Figure::new(value.what, value.unit, vec![value.value]);
            figures.push(Figure { bar: value.bar, ..figure });
        }
    }
}

fn print(figures: &[Figure]) {
    println!("| what | bar | median | rounds | |\n|---|---|---|---|---|");
    for figure in figures {
        let rounds: Vec<String> = figure.rounds.iter().map(|value| format!("{value:.2}")).collect();
        let (bar, met) = match figure.bar {
            None => (String::new(), ""),
            Some(_) if figure.is_met() => (figure.bar_text().replace(": met", ""), "met"),
            Some(_) => (figure.bar_text().replace(": MISSED", ""), "MISSED"),
        };
        println!("| {} | {bar} | {:.2} {} | {} | {met} |", figure.name, figure.value, figure.unit, rounds.join(" "));
    }
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
