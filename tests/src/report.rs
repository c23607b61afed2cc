//! Figures, and whether they meet their bars.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine::Machine;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub name: String,
    /// Median of the rounds.
    pub value: f64,
    pub unit: &'static str,
    /// What was measured in each round.
    pub rounds: Vec<f64>,
    pub bar: Option<Bar>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Self {
        Self { name: name.into(), value: median(&rounds), unit, rounds, bar: None }
    }

    pub fn with_bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    pub fn is_met(&self) -> bool {
        match self.bar {
            None => true,
            Some(Bar::AtMost(bar)) => self.value <= bar,
            Some(Bar::AtLeast(bar)) => self.value >= bar,
        }
    }

    /// The bar, for tables.
    pub fn bar_text(&self) -> String {
        let met = if self.is_met() { "met" } else { "MISSED" };
        match self.bar {
            None => String::new(),
            Some(Bar::AtMost(bar)) => format!("<= {bar}: {met}"),
            Some(Bar::AtLeast(bar)) => format!(">= {bar}: {met}"),
        }
    }
}

/// The middle of some numbers.
///
/// # Panics
/// Without any.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Where a figure that grows with utilisation reaches a target, of steps of both: between steps by its logarithm, and no
/// further than the steps go.
pub fn reaches(steps: &[(f64, f64)], target: f64) -> f64 {
    let mut below: Option<(f64, f64)> = None;
    for (utilisation, figure) in steps {
        if *figure > target {
            return below.map_or(0.0, |(from, low)| {
                let part = (target / low).ln() / (figure / low).ln();
                from + (utilisation - from) * part
            });
        }
        below = Some((*utilisation, *figure));
    }
    below.map_or(0.0, |(utilisation, _)| utilisation)
}

/// What a program exits with that tells whether all was as it is to be.
pub fn exit_code(result: Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes figures as JSON, with the machine that they are of.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, figures: &[Figure]) -> Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        machine: Machine,
        figures: &'a [Figure],
    }
    let text = serde_json::to_string_pretty(&Report { machine: Machine::read(), figures })?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Tells of bars that are missed; gives whether there are none.
pub fn verdict(figures: &[Figure]) -> bool {
    let missed: Vec<&Figure> = figures.iter().filter(|figure| !figure.is_met()).collect();
    for figure in &missed {
        println!("MISSED: {} is {:.2} {}, {}", figure.name, figure.value, figure.unit, figure.bar_text());
    }
    missed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn bars_are_met_from_their_side() {
        let figure = Figure::new("x", "ns", vec![2.0]);
        assert!(figure.clone().with_bar(Bar::AtMost(2.0)).is_met());
        assert!(!figure.clone().with_bar(Bar::AtMost(1.9)).is_met());
        assert!(figure.clone().with_bar(Bar::AtLeast(2.0)).is_met());
        assert!(!figure.with_bar(Bar::AtLeast(2.1)).is_met());
    }

    #[test]
    fn throughput_is_where_the_latency_reaches_the_target() {
        let cases: [(&[(f64, f64)], f64); 4] = [
            (&[(0.8, 100.0), (0.9, 200.0)], 0.9),
            (&[(0.8, 400.0), (0.9, 1600.0)], 0.85),
            (&[(0.8, 1000.0), (0.9, 100.0)], 0.0),
            (&[], 0.0),
        ];
        for (steps, throughput) in cases {
            assert!((reaches(steps, 800.0) - throughput).abs() < 1e-9, "{steps:?}");
        }
    }
}
