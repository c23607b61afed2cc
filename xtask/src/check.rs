//! `cargo xtask check`: format, lints on both sides, docs, licences and the plan of the modules, one line each.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::build::{self, XDP};
use crate::licence;
use crate::need::Purpose;
use crate::setup;
use crate::step::{self, Finished};
use crate::structure;
use crate::workspace::Workspace;

#[derive(Args)]
pub struct Check {
    /// Run these checks only [default: all]
    checks: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// rustfmt
    Format,
    /// clippy, on both sides of the kernel
    Lints,
    /// rustdoc
    Docs,
    /// Every dependency fits a program under MIT or Apache-2.0
    Licences,
    /// No module imports upward, none in a circle
    Imports,
    /// What is pure names nothing that has effects, and depends on nothing that has
    Pure,
    /// No file has more than 600 lines, no function more than 80
    Sizes,
}

impl Check {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        let kinds = if self.checks.is_empty() { Kind::value_variants() } else { &self.checks };
        if kinds.contains(&Kind::Lints) {
            setup::ensure(workspace, &[Purpose::Build, Purpose::Check])?;
        }
        let mut checks = Checks::default();
        for kind in kinds {
            checks.run_kind(workspace, *kind)?;
        }
        checks.finish()
    }
}

#[derive(Default)]
struct Checks {
    failed: Vec<&'static str>,
}

impl Checks {
    fn run_kind(&mut self, workspace: &Workspace, kind: Kind) -> Result<()> {
        let mut cargo = workspace.cargo();
        match kind {
            Kind::Format => self.run("format", cargo.args(["fmt", "--all", "--check"]), passed),
            Kind::Lints => {
                // The suites are named, as they are no test of their own for `cargo test`, and no target of all.
                cargo.args(["clippy", "--workspace", "--exclude", XDP, "--all-targets", "--test", "suites"]);
                cargo.args(["--", "--deny", "warnings"]);
                self.run("lints, host side", &mut cargo, passed)?;
                self.run("lints, XDP side", xdp_lint(workspace)?.args(["--", "--deny", "warnings"]), passed)
            }
            Kind::Docs => {
                cargo.env("RUSTDOCFLAGS", "--deny warnings");
                self.run("docs", cargo.args(["doc", "--workspace", "--exclude", XDP, "--no-deps"]), passed)
            }
            Kind::Licences => {
                cargo.args(["tree", "--locked", "--workspace", "--target", "all", "--prefix", "none"]);
                self.run("licences", cargo.args(["--format", "{p}|{l}"]), licences_fit)
            }
            Kind::Imports => self.look("imports", || structure::imports(&workspace.root)),
            Kind::Pure => self.look("pure crates", || pure_crates(workspace)),
            Kind::Sizes => self.look("sizes", || structure::sizes(&workspace.root)),
        }
    }

    /// Runs one check and goes on after a failure: the others may find something as well.
    fn run(
        &mut self,
        name: &'static str,
        command: &mut Command,
        judge: fn(&Finished) -> Result<(), String>,
    ) -> Result<()> {
        let finished = step::watch(name, command, false)?;
        self.note(name, judge(&finished), finished.took);
        Ok(())
    }

    /// One check that reads the sources itself, and tells what it finds.
    fn look(&mut self, name: &'static str, find: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
        let started = Instant::now();
        let found = find()?;
        let verdict = if found.is_empty() { Ok(()) } else { Err(found.join("\n")) };
        self.note(name, verdict, started.elapsed());
        Ok(())
    }

    fn note(&mut self, name: &'static str, verdict: Result<(), String>, took: Duration) {
        println!("{name:17} {}  {}", if verdict.is_ok() { "ok    " } else { "FAILED" }, step::seconds(took));
        if let Err(complaint) = verdict {
            eprintln!("{}", complaint.trim_end());
            self.failed.push(name);
        }
    }

    fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("these checks failed: {}", self.failed.join("; "));
        }
        Ok(())
    }
}

fn passed(finished: &Finished) -> Result<(), String> {
    if finished.success { Ok(()) } else { Err(finished.output.clone()) }
}

/// Reads `NAME vVERSION ...|EXPRESSION` for each package in the lock file.
fn licences_fit(finished: &Finished) -> Result<(), String> {
    passed(finished)?;
    let unfit: BTreeSet<String> = finished
        .output
        .lines()
        .filter_map(|line| line.trim_end_matches(" (*)").split_once('|'))
        .filter(|(_, expression)| !licence::is_allowed(expression))
        .map(|(package, expression)| match expression {
            "" => format!("{package} states no licence"),
            _ => format!("{package} is under {expression}, which does not allow MIT or Apache-2.0 for the whole"),
        })
        .collect();
    if unfit.is_empty() { Ok(()) } else { Err(unfit.into_iter().collect::<Vec<_>>().join("\n")) }
}

/// What pure crates name and depend on that has effects.
fn pure_crates(workspace: &Workspace) -> Result<Vec<String>> {
    let mut found = structure::effects(&workspace.root)?;
    for directory in structure::PURE_CRATES {
        let mut tree = workspace.cargo();
        tree.args(["tree", "--locked", "--target", "all", "--edges", "normal,build", "--prefix", "none"]);
        tree.current_dir(workspace.root.join(directory));
        let finished = step::watch("pure crates", &mut tree, false)?;
        match passed(&finished) {
            Ok(()) => found.extend(structure::forbidden_dependencies(directory, &finished.output)),
            Err(complaint) => found.push(complaint),
        }
    }
    Ok(found)
}

/// The clippy of the compiler that builds the XDP programs: another one could not read that compiler's core library.
fn xdp_lint(workspace: &Workspace) -> Result<Command> {
    let compiler = build::xdp_compiler(workspace)?;
    let Some(clippy) = build::beside(&compiler, "cargo-clippy") else {
        bail!(
            "there is no cargo-clippy beside {}; with rustup: rustup component add clippy --toolchain NAME",
            compiler.rustc.display()
        );
    };
    build::xdp_command(workspace, &compiler, &clippy, "clippy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_with_unfit_licences_are_named_once() {
        let output = "\
loadbalancer v0.1.0 (/x)|MIT OR Apache-2.0
good v1.0.0|MIT (*)
unfit v2.0.0|GPL-3.0-only
unfit v2.0.0|GPL-3.0-only (*)
silent v0.1.0 (proc-macro)|

";
        let finished = |success| Finished { success, output: output.to_owned(), took: Duration::ZERO };
        let complaint = licences_fit(&finished(true)).unwrap_err();
        assert_eq!(
            complaint,
            "silent v0.1.0 (proc-macro) states no licence\n\
             unfit v2.0.0 is under GPL-3.0-only, which does not allow MIT or Apache-2.0 for the whole"
        );
        assert_eq!(licences_fit(&finished(false)).unwrap_err(), output);
    }
}
