//! Test suites: one line each, and a total.

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::workspace::{Workspace, need_root};
use crate::{build, setup, step};

#[derive(Args)]
pub struct Test {
    /// Suites to run; all of them if none is named
    suites: Vec<Suite>,
}

#[derive(Clone, Copy, ValueEnum, PartialEq)]
enum Suite {
    /// What needs no root
    Unit,
    /// Frames through the loaded program
    Packet,
    /// Hosts in network namespaces
    System,
}

impl Test {
    pub fn run(&self, workspace: &Workspace) -> Result<()> {
        let suites = if self.suites.is_empty() { Suite::value_variants() } else { &self.suites };
        if suites.iter().any(|suite| *suite != Suite::Unit) {
            need_root("packet and system tests load programs into the kernel and make network namespaces")?;
        }
        setup::run(workspace)?;
        build::objects(workspace)?;
        let (mut passed, mut failed) = (0, 0);
        for suite in suites {
            let counts = suite.run(workspace)?;
            passed += counts.passed;
            failed += counts.failed;
        }
        println!("{passed} passed, {failed} failed");
        if failed > 0 || passed == 0 {
            bail!("{failed} tests failed");
        }
        Ok(())
    }
}

impl Suite {
    fn run(self, workspace: &Workspace) -> Result<Counts> {
        let mut command = workspace.cargo();
        let name = match self {
            Suite::Unit => {
                command.args(["test", "--quiet"]);
                "unit"
            }
            Suite::Packet => {
                command.args(["run", "--quiet", "--package", "loadbalancer-tests", "--bin", "packet"]);
                "packet"
            }
            Suite::System => {
                command.args(["test", "--quiet", "--package", "loadbalancer-tests"]);
                "system"
            }
        };
        finish(name, &mut command)
    }
}

/// Runs a suite and prints its line.
fn finish(name: &str, command: &mut Command) -> Result<Counts> {
    let finished = step::watch(&format!("test {name}"), command, false)?;
    let counts = Counts::of(&finished.output);
    if !finished.success {
        print!("{}", finished.output);
    }
    if !finished.success && counts.failed == 0 {
        bail!("suite {name} did not run to its end; what it printed is above");
    }
    println!(
        "{name:8} {:5} cases, {} failed, {}",
        counts.passed + counts.failed,
        counts.failed,
        step::seconds(finished.took)
    );
    Ok(counts)
}

#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: u32,
    failed: u32,
}

impl Counts {
    /// Adds up all lines that say `N passed` and `N failed`.
    fn of(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines().filter(|line| line.contains(" passed")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            for pair in words.windows(2) {
                let number = pair[0].parse().unwrap_or(0);
                match pair[1].trim_end_matches([',', ';']) {
                    "passed" => counts.passed += number,
                    "failed" => counts.failed += number,
                    _ => {}
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored\n\
                      test result: FAILED. 4 passed; 2 failed; 0 ignored\npacket: 350 passed, 1 failed\nnothing here\n";
        assert_eq!(Counts::of(output), Counts { passed: 357, failed: 3 });
        assert_eq!(Counts::of("no result"), Counts::default());
    }
}
