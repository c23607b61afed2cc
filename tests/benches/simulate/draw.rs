//! Plots of runs over time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::policy::Policy;
use super::run::{Moment, Run, ServerMoment};
use super::scenario::{self, Scenario};
use super::world::run;
use crate::plot::{self, Line, Panel};

/// Draws the scenarios that show most into a directory.
pub fn all(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let all = Policy::ALL;
    let most = &all[..4];
    let late = scenario::told_late(scenario::slow(0.7), std::time::Duration::from_secs(2));
    for (name, title, scenario) in [
        ("slow", "One of four servers is 10 x slower from 30 s to 90 s, load 70 %", scenario::slow(0.7)),
        ("late", "The same, measurements come in 2 s late", late),
        ("different", "Servers of speed 1, 2 and 4, equal weights configured, load 70 %", scenario::different(0.7)),
        ("flapping", "One of four servers is 10 x slower for 5 s of every 10 s, load 60 %", scenario::flapping(0.6)),
        ("lossy", "One of four servers loses 5 % from 30 s to 90 s, load 70 %", scenario::lossy(0.7)),
    ] {
        let path = directory.join(format!("simulate-{name}.svg"));
        let runs: Vec<(&Policy, Run)> = most.iter().map(|policy| (policy, run(&scenario, policy))).collect();
        let measured = &runs[1].1;
        let panels = [
            Panel { y_title: "weight, %", lines: servers(measured, |moment| moment.weight), logarithmic: false },
            Panel { y_title: "requests, %", lines: servers(measured, |moment| moment.load), logarithmic: false },
            Panel {
                y_title: "p99, ms",
                lines: runs.iter().map(|(policy, run)| p99(policy, run)).collect(),
                logarithmic: true,
            },
        ];
        plot::panels(&path, title, "seconds", &panels)?;
    }
    for (name, title, scenario) in [
        ("surge", "An original, two mirrors; load 0.5, 1.5 and 0.5 of what the original can serve", scenario::surge()),
        ("swell", "The same; load 0.5 to 2.0 and back in four minutes", scenario::swell()),
    ] {
        let run = run(&scenario, &all[1]);
        let capacity = scenario.servers[0].capacity();
        let names = ["original", "mirror 1", "mirror 2"];
        let load = |server: usize| {
            let point = |(index, moments): (usize, &[Moment])| {
                let sum: u64 = moments.iter().map(|moment| moment.servers[server].requests).sum();
                ((index * 2) as f64, 100.0 * sum as f64 / moments.len() as f64 / capacity)
            };
            Line { name: names[server].to_owned(), points: run.series.chunks(2).enumerate().map(point).collect() }
        };
        let seconds = (0..run.latencies.len()).step_by(2);
        let p90 = seconds.map(|at| (at as f64, run.quantile(at..at + 2, 0.9) * 1e3)).collect();
        let panels = [
            Panel { y_title: "requests, % of capacity", lines: (0..3).map(load).collect(), logarithmic: false },
            Panel { y_title: "p90, ms", lines: vec![Line { name: "all".to_owned(), points: p90 }], logarithmic: true },
        ];
        plot::panels(&directory.join(format!("simulate-{name}.svg")), title, "seconds", &panels)?;
    }
    let steady = Scenario { duration: std::time::Duration::from_secs(210), ..scenario::steady(0.7) };
    let of = |policy: &Policy| servers(&run(&steady, policy), |moment| moment.weight);
    let panels = [
        Panel { y_title: "weight, %: measured", lines: of(&all[1]), logarithmic: false },
        Panel { y_title: "weight, %: gradient", lines: of(&all[2]), logarithmic: false },
    ];
    plot::panels(&directory.join("simulate-steady.svg"), "Four equal servers, load 70 %", "seconds", &panels)
}

/// A line for each server, in percent of all, in means of two seconds.
fn servers(run: &Run, value: impl Fn(&ServerMoment) -> f64) -> Vec<Line> {
    let count = run.series.first().map_or(0, |moment| moment.servers.len());
    let line = |server: usize| {
        let point = |(index, moments): (usize, &[Moment])| {
            let sum: f64 = moments.iter().map(|moment| value(&moment.servers[server])).sum();
            ((index * 2) as f64, 100.0 * sum / moments.len() as f64)
        };
        Line { name: format!("server {}", server + 1), points: run.series.chunks(2).enumerate().map(point).collect() }
    };
    (0..count).map(line).collect()
}

/// 99th percentile of every two seconds.
fn p99(policy: &Policy, run: &Run) -> Line {
    let seconds = (0..run.latencies.len()).step_by(2);
    let points = seconds.map(|at| (at as f64, run.quantile(at..at + 2, 0.99) * 1e3)).collect();
    Line { name: policy.name().to_owned(), points }
}
