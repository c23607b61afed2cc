//! What measured quality decides, end to end in the lab: weights, ejection, channels and standby servers, under open-loop load.
//!
//! Each scenario brings up labs of its own, in which nothing is shared with others; ways that are compared run at the same
//! time. The service times of servers are waits, so that two processors have room for several labs.

mod world;
mod haproxy;
mod slow;
mod speeds;
mod steady;
mod eject;
mod channel;
mod standby;
mod controller;
mod consistency;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = SCENARIOS.map(|it| it.name))]
    only: Vec<String>,
    /// Minutes for which weights change while flows are held
    #[arg(long, default_value_t = 1)]
    minutes: u64,
    /// Show the gateway's own reports on weights as well
    #[arg(long)]
    explain: bool,
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

    fn at_least(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtLeast(bar));
        self
    }
}

/// What differs between rounds.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Of the random times of requests.
    seed: u64,
    /// How long weights change.
    weights_for: Duration,
    /// Show the gateway's own reports.
    explain: bool,
}

struct Scenario {
    name: &'static str,
    round: fn(Round) -> Result<Vec<Value>>,
    /// One round is enough.
    once: bool,
}

const fn scenario(name: &'static str, round: fn(Round) -> Result<Vec<Value>>) -> Scenario {
    Scenario { name, round, once: false }
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

/// Does something for each item, at the same time.
fn all<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        // All are waited for, so that a failure of one leaves no lab of another behind.
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().map(|ended| ended.unwrap_or_else(|_| bail!("it panicked; what it said is above"))).collect()
    })
}

/// Does two things at the same time.
fn both<R: Send>(one: impl FnOnce() -> Result<R> + Send, other: impl FnOnce() -> Result<R> + Send) -> Result<(R, R)> {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        let other = other.join().unwrap_or_else(|_| bail!("it panicked; what it said is above"));
        Ok((one?, other?))
    })
}

pub fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut failures = Vec::new();
    let chosen = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    for round in 0..arguments.rounds {
        for Scenario { name, round: scenario, once } in SCENARIOS {
            if !chosen(name) || (once && round > 0) {
                continue;
            }
            eprintln!("round {}/{}: {name}", round + 1, arguments.rounds);
            let begun = Instant::now();
            let weights_for = Duration::from_secs(60 * arguments.minutes);
            let this = Round { seed: round + 1, weights_for, explain: arguments.explain };
            match scenario(this).with_context(|| format!("{name}, round {}", round + 1)) {
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
