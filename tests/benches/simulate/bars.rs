//! What policies make of the scenarios, and the bars.

use std::time::Duration;

use loadbalancer_tests::report::{Bar, Figure, median};

use super::policy::Policy;
use super::run::Run;
use super::scenario::{self, CHANGE_AT, Passive, Scenario};
use super::server::Model;
use super::world::run;

/// Latency that clients are to stay below in 99 of 100 cases, where throughput is compared.
const TARGET_S: f64 = 0.1;

/// Runs all scenarios with all policies, prints a table and gives the figures that have bars.
pub fn measure(rounds: u64) -> Vec<Figure> {
    println!(
        "medians of {rounds} runs; p99 of the requests that came in 20 s before the change, 5 s after it, 10 to 60 s after it\n"
    );
    println!("{}", Row::HEADER);
    let mut figures = Vec::new();
    let all = Policy::ALL;
    let ours = &all[..3];
    for load in [0.5, 0.7] {
        let name = format!("10 x slower, load {load}");
        slower(&name, &scenario::slow(load), &all, rounds, &mut figures);
    }
    let slow = || scenario::slow(0.7);
    let passive = |passive| Scenario { passive, ..slow() };
    slower("10 x slower, sums told", &passive(Passive::Sums), &all, rounds, &mut figures);
    slower("10 x slower, checks alone", &passive(Passive::Absent), &all, rounds, &mut figures);
    let unseen = Scenario { passive: Passive::Absent, ..scenario::different(0.7) };
    rows("speeds 1:2:4, checks alone", &unseen, &all[1..2], rounds);
    for delay_ms in [500, 2_000] {
        let late = scenario::told_late(slow(), Duration::from_millis(delay_ms));
        slower(&format!("10 x slower, told {delay_ms} ms late"), &late, &all, rounds, &mut figures);
    }
    for load in [0.5, 0.7, 0.85, 0.92] {
        let name = format!("speeds 1:2:4, load {load}");
        let rows = rows(&name, &scenario::different(load), &all, rounds);
        self::rows("  with perfect weights", &scenario::different_with_perfect_weights(load), &all[..1], rounds);
        let errors = rows[1].each(|row| row.share_error * 100.0);
        figures.push(
            Figure::new(format!("{name}: share off from capacity after 30 s"), "%", errors).with_bar(Bar::AtMost(10.0)),
        );
    }
    figures.push(throughput(rounds).with_bar(Bar::AtLeast(0.95)));
    let mut steady: Vec<(String, Scenario)> =
        [0.3, 0.7, 0.9].map(|load| (format!("steady, load {load}"), scenario::steady(load))).to_vec();
    let late = scenario::told_late(scenario::steady(0.7), Duration::from_secs(2));
    steady.push(("steady, told 2000 ms late".to_owned(), late));
    for load in [0.3, 0.7, 0.9] {
        let unseen = Scenario { passive: Passive::Absent, ..scenario::steady(load) };
        steady.push((format!("steady, checks alone, load {load}"), unseen));
    }
    for (name, scenario) in steady {
        let rows = rows(&name, &scenario, ours, rounds);
        let deviation = rows[1].each(|row| row.deviation * 100.0);
        let rings = rows[1].each(|row| row.rings_per_minute);
        figures
            .push(Figure::new(format!("{name}: weight off from its mean"), "%", deviation).with_bar(Bar::AtMost(10.0)));
        figures.push(Figure::new(format!("{name}: rings"), "a minute", rings).with_bar(Bar::AtMost(1.0)));
        figures.push(falsely_ejected(&name, &rows[1]));
    }
    let lossy = scenario::all_lossy(0.7, 0.01);
    for (name, passive) in [("all lose 1 %", lossy.passive), ("all lose 1 %, checks alone", Passive::Absent)] {
        let rows = rows(name, &Scenario { passive, ..lossy.clone() }, &all[..2], rounds);
        figures.push(falsely_ejected(name, &rows[1]));
    }
    let flapping = rows("flapping, load 0.6", &scenario::flapping(0.6), &all, rounds);
    let rings = flapping[1].each(|row| f64::from(row.most_rings_in_a_second));
    figures.push(Figure::new("flapping: rings", "in a second", rings).with_bar(Bar::AtMost(1.0)));
    for (name, scenario) in [("loses 5 %", scenario::lossy(0.7)), ("answers 500", scenario::failing(0.7))] {
        let rows = rows(name, &scenario, &all[..2], rounds);
        let ejected = rows[1].each(|row| row.ejected_after_s.unwrap_or(f64::INFINITY));
        let back = rows[1].each(|row| row.share_at_end * 100.0);
        figures.push(Figure::new(format!("{name}: ejected after"), "s", ejected).with_bar(Bar::AtMost(3.0)));
        figures.push(
            Figure::new(format!("{name}: of its share 90 s after recovery"), "%", back).with_bar(Bar::AtLeast(90.0)),
        );
    }
    rows("50 ms farther away, load 0.5", &scenario::far(0.5), ours, rounds);
    rows("all at half speed, load 0.4", &scenario::all_slow(0.4), ours, rounds);
    println!("\n{:68} {:>8}  bar", "figure", "median");
    for figure in &figures {
        println!("{:68} {:>8.2} {:12} {}", figure.name, figure.value, figure.unit, figure.bar_text());
    }
    figures
}

/// In all runs together: none of them may be unlucky.
fn falsely_ejected(name: &str, rows: &Rows) -> Figure {
    let ejections = rows.each(|row| row.ejections as f64).iter().sum();
    Figure::new(format!("{name}: ejections in all runs"), "", vec![ejections]).with_bar(Bar::AtMost(0.0))
}

/// A server that becomes slower: beside fixed weights, and beside what HAProxy would do.
fn slower(name: &str, scenario: &Scenario, policies: &[Policy], rounds: u64, figures: &mut Vec<Figure>) {
    let rows = rows(name, scenario, policies, rounds);
    let late = |policy: usize| rows[policy].each(|row| row.p99_s[2]);
    let over = |others: Vec<f64>| late(1).iter().zip(others).map(|(ours, other)| ours / other).collect::<Vec<f64>>();
    let haproxy = late(3).iter().zip(late(4)).map(|(one, other)| one.min(other)).collect();
    let to_fixed = Figure::new(format!("{name}: p99 over that with fixed weights"), "", over(late(0)));
    let to_haproxy = Figure::new(format!("{name}: p99 over leastconn's or random(2)'s"), "", over(haproxy));
    figures.push(to_fixed.with_bar(Bar::AtMost(0.5)));
    figures.push(to_haproxy.with_bar(Bar::AtMost(1.0)));
}

/// Throughput with measured weights over that with perfect weights, each as high as the latency target permits.
fn throughput(rounds: u64) -> Figure {
    let ratios = (1..=rounds).map(|seed| {
        let measured = highest_load(scenario::different, &Policy::Measured, seed);
        let perfect = highest_load(scenario::different_with_perfect_weights, &Policy::Fixed, seed);
        measured / perfect
    });
    Figure::new("speeds 1:2:4: throughput at a p99 of 100 ms over that with perfect weights", "", ratios.collect())
}

/// Load at which the 99th percentile reaches the target after 30 s, within a hundredth.
fn highest_load(scenario: impl Fn(f64) -> Scenario, policy: &Policy, seed: u64) -> f64 {
    let fits = |load: f64| {
        let run = run(&Scenario { seed, ..scenario(load) }, policy);
        run.quantile(CHANGE_AT..run.latencies.len(), 0.99) <= TARGET_S
    };
    let (mut low, mut high) = (0.5, 1.0);
    while high - low > 0.01 {
        let middle = f64::midpoint(low, high);
        if fits(middle) { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// Runs of a scenario with one policy.
struct Rows(Vec<Row>);

impl Rows {
    fn each(&self, value: impl Fn(&Row) -> f64) -> Vec<f64> {
        self.0.iter().map(value).collect()
    }

    fn median(&self, value: impl Fn(&Row) -> f64) -> f64 {
        median(&self.each(value))
    }
}

/// Runs a scenario with policies, and prints a line for each.
fn rows(name: &str, scenario: &Scenario, policies: &[Policy], rounds: u64) -> Vec<Rows> {
    let mut all = Vec::new();
    for policy in policies {
        let of = |seed| {
            let scenario = Scenario { seed, ..scenario.clone() };
            Row::new(&scenario, &run(&scenario, policy))
        };
        let rows = Rows((1..=rounds).map(of).collect());
        rows.print(name, policy.name());
        all.push(rows);
    }
    all
}

/// What came of one run.
struct Row {
    p99_s: [f64; 3],
    /// Largest difference of a share of the requests from the share of capacity from 30 s on, as a part of it.
    share_error: f64,
    /// Largest difference of a weight from its mean from 30 s on, as a part of it.
    deviation: f64,
    rings_per_minute: f64,
    most_rings_in_a_second: u32,
    /// Time from the first change to the first ejection.
    ejected_after_s: Option<f64>,
    ejections: usize,
    /// Share of the requests of the first server in the last 30 s, as a part of its fair share.
    share_at_end: f64,
}

impl Row {
    const HEADER: &str =
        "scenario                         policy     p99 before     0-5 s   10-60 s   share off  weight off  rings/min";

    fn new(scenario: &Scenario, run: &Run) -> Self {
        let end = scenario.duration.as_secs() as usize;
        let most = (CHANGE_AT + 60).min(end);
        let servers = 0..scenario.servers.len();
        let capacity: f64 = scenario.servers.iter().map(Model::capacity).sum();
        let share_error = |server: usize| {
            let due = scenario.servers[server].capacity() / capacity;
            (run.load(server, CHANGE_AT..end) / due - 1.0).abs()
        };
        let change_s = CHANGE_AT as f64;
        Self {
            p99_s: [
                run.quantile(CHANGE_AT - 20..CHANGE_AT, 0.99),
                run.quantile(CHANGE_AT..CHANGE_AT + 5, 0.99),
                run.quantile(CHANGE_AT + 10..most, 0.99),
            ],
            share_error: servers.clone().map(share_error).fold(0.0, f64::max),
            deviation: servers.clone().map(|it| run.largest_deviation(it, CHANGE_AT..end)).fold(0.0, f64::max),
            rings_per_minute: run.rings_per_minute(CHANGE_AT..end),
            most_rings_in_a_second: run.most_rings_in_a_second(),
            ejected_after_s: run.ejections.first().map(|(at, _)| at.as_secs_f64() - change_s),
            ejections: run.ejections.len(),
            share_at_end: run.load(0, end - 30..end) * scenario.servers.len() as f64,
        }
    }
}

impl Rows {
    fn print(&self, name: &str, policy: &str) {
        let p99 = |span: usize| format!("{:.0} ms", self.median(|row| row.p99_s[span]) * 1e3);
        let percent = |value: fn(&Row) -> f64| format!("{:.1} %", self.median(value) * 100.0);
        println!(
            "{name:32} {policy:10} {:>10} {:>9} {:>9} {:>11} {:>11} {:>10.1}",
            p99(0),
            p99(1),
            p99(2),
            percent(|row| row.share_error),
            percent(|row| row.deviation),
            self.median(|row| row.rings_per_minute),
        );
    }
}
