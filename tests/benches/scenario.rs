//! Scenarios in the lab, in rounds: each brings up labs of its own, and tells what it measured.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loadbalancer_tests::report::{self, Bar, Figure};

/// What all benches of scenarios are told.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// Rounds, in each of which every scenario has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only these scenarios
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Show the gateway's own reports as well
    #[arg(long)]
    explain: bool,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
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
    pub fn new(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { what: what.into(), unit, value, bar: None }
    }

    pub fn at_most(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtMost(bar));
        self
    }

    pub fn at_least(mut self, bar: f64) -> Self {
        self.bar = Some(Bar::AtLeast(bar));
        self
    }
}

/// What differs between rounds.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Of the random times of requests.
    pub seed: u64,
    /// How long the scenario that takes longest goes on.
    pub long: Duration,
    /// Show the gateway's own reports.
    pub explain: bool,
    /// Where to draw what happens, in the first round.
    pub plots: Option<&'static Path>,
}

pub struct Scenario {
    pub name: &'static str,
    pub round: fn(Round) -> Result<Vec<Value>>,
    /// One round is enough.
    pub once: bool,
}

pub const fn scenario(name: &'static str, round: fn(Round) -> Result<Vec<Value>>) -> Scenario {
    Scenario { name, round, once: false }
}

/// Does something for each item, at the same time.
pub fn all<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        // All are waited for, so that a failure of one leaves no lab of another behind.
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        ended.into_iter().map(|ended| ended.unwrap_or_else(|_| bail!("it panicked; what it said is above"))).collect()
    })
}

/// Does two things at the same time.
pub fn both<R: Send>(
    one: impl FnOnce() -> Result<R> + Send,
    other: impl FnOnce() -> Result<R> + Send,
) -> Result<(R, R)> {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        let other = other.join().unwrap_or_else(|_| bail!("it panicked; what it said is above"));
        Ok((one?, other?))
    })
}

/// Runs scenarios, tells of all figures and of bars that are missed. Gives the figures, and whether all is as it is to be.
pub fn run(scenarios: &[Scenario], common: &Common, long: Duration) -> Result<(Vec<Figure>, bool)> {
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name).collect();
    if let Some(unknown) = common.only.iter().find(|only| !names.contains(&only.as_str())) {
        bail!("there is no scenario {unknown}\nhelp: these are there: {}", names.join(", "));
    }
    // It lives as long as the program does.
    let plots: Option<&'static Path> = common.plots.clone().map(|path| &*Box::leak(path.into_boxed_path()));
    let mut figures: Vec<Figure> = Vec::new();
    let mut failures = Vec::new();
    let chosen = |name: &str| common.only.is_empty() || common.only.iter().any(|only| only == name);
    for round in 0..common.rounds {
        for Scenario { name, round: scenario, once } in scenarios {
            if !chosen(name) || (*once && round > 0) {
                continue;
            }
            eprintln!("round {}/{}: {name}", round + 1, common.rounds);
            let begun = Instant::now();
            let this = Round { seed: round + 1, long, explain: common.explain, plots: plots.filter(|_| round == 0) };
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
    if let Some(path) = &common.json {
        report::write_json(path, &figures)?;
    }
    failures.iter().for_each(|error| println!("FAILED: {error:#}"));
    let met = report::verdict(&figures) && failures.is_empty();
    Ok((figures, met))
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
