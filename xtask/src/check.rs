//! `cargo xtask check`: format, lints on both sides, docs and licences, one line each.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, bail};

use crate::build::{self, XDP};
use crate::licence;
use crate::need::Purpose;
use crate::setup;
use crate::step::{self, Finished};
use crate::workspace::Workspace;

pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, &[Purpose::Build, Purpose::Check])?;
    let mut checks = Checks::default();

    let mut format = workspace.cargo();
    checks.run("format", format.args(["fmt", "--all", "--check"]), passed)?;

    let mut lint = workspace.cargo();
    lint.args(["clippy", "--workspace", "--exclude", XDP, "--all-targets", "--", "--deny", "warnings"]);
    checks.run("lints, host side", &mut lint, passed)?;

    checks.run("lints, XDP side", xdp_lint(workspace)?.args(["--", "--deny", "warnings"]), passed)?;

    let mut document = workspace.cargo();
    document.env("RUSTDOCFLAGS", "--deny warnings");
    checks.run("docs", document.args(["doc", "--workspace", "--exclude", XDP, "--no-deps"]), passed)?;

    let mut tree = workspace.cargo();
    tree.args(["tree", "--locked", "--workspace", "--target", "all", "--prefix", "none", "--format", "{p}|{l}"]);
    checks.run("licences", &mut tree, licences_fit)?;

    checks.finish()
}

#[derive(Default)]
struct Checks {
    failed: Vec<&'static str>,
}

impl Checks {
    /// Runs one check and goes on after a failure: the others may find something as well.
    fn run(
        &mut self,
        name: &'static str,
        command: &mut Command,
        judge: fn(&Finished) -> Result<(), String>,
    ) -> Result<()> {
        let finished = step::watch(name, command, false)?;
        let verdict = judge(&finished);
        println!("{name:17} {}  {}", if verdict.is_ok() { "ok    " } else { "FAILED" }, step::seconds(finished.took));
        if let Err(complaint) = verdict {
            eprintln!("{}", complaint.trim_end());
            self.failed.push(name);
        }
        Ok(())
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
    use std::time::Duration;

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
