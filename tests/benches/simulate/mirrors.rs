//! The bars for an original with mirrors.

use std::ops::Range;

use loadbalancer_tests::report::{Bar, Figure, median};

use super::policy::Policy;
use super::run::Run;
use super::scenario::{self, CHANGE_AT, LEVEL, Passive, Scenario};
use super::world::run;

/// Runs the scenarios with mirrors, prints a table and gives the figures that have bars.
pub fn measure(rounds: u64) -> Vec<Figure> {
    println!(
        "\nAn original and two mirrors, all of the same speed; its level is a p90 of {} ms; p90 of all requests\n",
        LEVEL.as_millis()
    );
    println!("{}", Row::HEADER);
    let mut figures = Vec::new();
    let late = scenario::told_late(scenario::surge(), std::time::Duration::from_secs(1));
    let unseen = Scenario { passive: Passive::Absent, ..scenario::surge() };
    for (name, scenario, back_s) in [
        ("load 0.5, 1.5, 0.5 of the original's", scenario::surge(), 10.0),
        ("the same, checks alone", unseen, 10.0),
        ("the same, told 1000 ms late", late, 12.0),
    ] {
        let rows = rows(name, &scenario, rounds);
        let mut add = |what: &str, unit, value: fn(&Row) -> f64, bar| {
            figures.push(Figure::new(format!("{name}: {what}"), unit, rows.each(value)).with_bar(bar));
        };
        add("p90 is back within the level after", "s", |row| row.back_s, Bar::AtMost(back_s));
        let level_ms = LEVEL.as_secs_f64() * 1e3;
        add("p90 from then on", "ms", |row| row.p90_s * 1e3, Bar::AtMost(level_ms));
        add("of its capacity that the original serves", "%", |row| row.used * 100.0, Bar::AtLeast(80.0));
        add("its requests, 5 s off from their mean", "%", |row| row.swing * 100.0, Bar::AtMost(35.0));
        add("requests of mirrors a minute after the load fell", "%", |row| row.at_end * 100.0, Bar::AtMost(0.0));
        add("times that help began", "", |row| row.begins, Bar::AtMost(1.0));
        add("rings", "in a second", |row| row.rings, Bar::AtMost(1.0));
    }
    let rows_of_swell = rows("load 0.5 to 2.0 and back in 4 min", &scenario::swell(), rounds);
    for (what, unit, values, bar) in [
        ("p90", "ms", rows_of_swell.each(|row| row.p90_s * 1e3), Bar::AtMost(LEVEL.as_secs_f64() * 1e3)),
        (
            "of its capacity that the original serves",
            "%",
            rows_of_swell.each(|row| row.used * 100.0),
            Bar::AtLeast(80.0),
        ),
    ] {
        figures.push(Figure::new(format!("load 0.5 to 2.0 and back: {what}"), unit, values).with_bar(bar));
    }
    for (load, most) in [(0.3, 0.0), (0.7, 0.0), (0.9, 5.0)] {
        let name = format!("steady, load {load} of the original's");
        let rows = rows(&name, &scenario::constant(load), rounds);
        let helped = rows.each(|row| row.helped * 100.0);
        figures.push(Figure::new(format!("{name}: requests of mirrors"), "%", helped).with_bar(Bar::AtMost(most)));
    }
    println!("\n{:68} {:>8}  bar", "figure", "median");
    for figure in &figures {
        println!("{:68} {:>8.2} {:12} {}", figure.name, figure.value, figure.unit, figure.bar_text());
    }
    figures
}

struct Rows(Vec<Row>);

impl Rows {
    fn each(&self, value: impl Fn(&Row) -> f64) -> Vec<f64> {
        self.0.iter().map(value).collect()
    }
}

fn rows(name: &str, scenario: &Scenario, rounds: u64) -> Rows {
    let mut measured = Rows(Vec::new());
    for policy in [Policy::Fixed, Policy::Measured] {
        let of = |seed| {
            let scenario = Scenario { seed, ..scenario.clone() };
            Row::new(&scenario, &run(&scenario, &policy))
        };
        measured = Rows((1..=rounds).map(of).collect());
        measured.print(name, policy.name());
    }
    measured
}

/// What came of one run.
struct Row {
    /// Seconds from the change of the load until the p90 of a second is within the level for three on end.
    back_s: f64,
    /// Of all requests that came 15 s after the change or later, while the load was more than the original can serve.
    p90_s: f64,
    /// Of its capacity, from 30 s after the change on.
    used: f64,
    /// Largest difference of the original's requests in 5 s from their mean in that time, as a part of it.
    swing: f64,
    /// Share of the mirrors in the last minute, and in all of the time.
    at_end: f64,
    helped: f64,
    begins: f64,
    rings: f64,
    rings_per_minute: f64,
}

impl Row {
    const HEADER: &str = "scenario                               policy    back after        p90   original   off  mirrors  at end  begins  rings/min";

    fn new(scenario: &Scenario, run: &Run) -> Self {
        let end = scenario.duration.as_secs() as usize;
        let capacity = scenario.servers[0].capacity();
        let busy = overload(scenario, capacity, end);
        let steady = (busy.start + 15).min(busy.end)..busy.end;
        let settled = (busy.start + 30).min(busy.end)..busy.end;
        let served = |seconds: Range<usize>| {
            let moments = &run.series[seconds.start..seconds.end.min(run.series.len())];
            moments.iter().map(|moment| moment.servers[0].requests as f64).sum::<f64>() / moments.len().max(1) as f64
        };
        let mean = served(settled.clone());
        let spans = settled.clone().step_by(5).filter(|at| at + 5 <= settled.end);
        let within = |second: usize| run.quantile(second..second + 1, 0.9) <= LEVEL.as_secs_f64();
        let back = (CHANGE_AT..end - 3).find(|at| (*at..at + 3).all(within));
        let mirrors = |seconds: Range<usize>| 1.0 - run.load(0, seconds);
        let helped = |index: usize| run.series[index].servers[0].weight < 1.0;
        Self {
            back_s: back.map_or(f64::INFINITY, |at| (at - CHANGE_AT) as f64),
            p90_s: run.quantile(steady, 0.9),
            used: mean / capacity,
            swing: spans.map(|at| (served(at..at + 5) / mean - 1.0).abs()).fold(0.0, f64::max),
            at_end: mirrors(end - 60..end),
            helped: mirrors(0..end),
            begins: (1..run.series.len()).filter(|index| helped(*index) && !helped(index - 1)).count() as f64,
            rings: f64::from(run.most_rings_in_a_second()),
            rings_per_minute: run.rings_per_minute(0..end),
        }
    }
}

/// The seconds in which more comes than the original can serve; without any, all.
fn overload(scenario: &Scenario, capacity: f64, end: usize) -> Range<usize> {
    let beyond: Vec<usize> = scenario
        .rates
        .iter()
        .enumerate()
        .filter(|(_, (_, rate))| *rate > capacity)
        .flat_map(|(index, (at, _))| {
            let next = scenario.rates.get(index + 1).map_or(end, |(next, _)| next.as_secs() as usize);
            [at.as_secs() as usize, next]
        })
        .collect();
    beyond.first().zip(beyond.last()).map_or(0..end, |(first, last)| *first..*last)
}

impl Rows {
    fn print(&self, name: &str, policy: &str) {
        let middle = |value: fn(&Row) -> f64| median(&self.each(value));
        println!(
            "{name:38} {policy:8} {:>9.0} s {:>7.0} ms {:>8.0} % {:>5.0} {:>6.1} % {:>5.1} % {:>7.0} {:>10.1}",
            middle(|row| row.back_s),
            middle(|row| row.p90_s) * 1e3,
            middle(|row| row.used) * 100.0,
            middle(|row| row.swing) * 100.0,
            middle(|row| row.helped) * 100.0,
            middle(|row| row.at_end) * 100.0,
            middle(|row| row.begins),
            middle(|row| row.rings_per_minute),
        );
    }
}
