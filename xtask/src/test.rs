//! `cargo xtask test`: one line per suite, then the total.

use std::env;
use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::build;
use crate::kernels;
use crate::need::Purpose;
use crate::step::{self, Finished};
use crate::suite::Cases;
use crate::workspace::{Profile, Workspace, need_root};

/// What runs when no suite is named.
const BY_DEFAULT: &[Suite] = &[Suite::Unit, Suite::Packet, Suite::System, Suite::Fuzz];

#[derive(Args)]
pub struct Test {
    /// The suite to run [default: unit, packet, system and fuzz]
    suite: Option<Suite>,

    /// Print everything that the suites print
    #[arg(long, short)]
    verbose: bool,

    /// Arguments of the standard harness, such as a filter for names of cases; `-- --help` lists them
    #[arg(last = true, requires = "suite")]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Tests that need neither root nor an eBPF compiler
    Unit,
    /// Frames through the XDP programs in the kernel's test run
    Packet,
    /// Real sockets between network namespaces
    System,
    /// Mutated and random frames
    Fuzz,
    /// Load and verify on Debian's kernels, under emulation
    Kernels,
}

impl Test {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        let suites = self.suite.as_ref().map_or(BY_DEFAULT, std::slice::from_ref);
        if suites.iter().any(|suite| suite.needs_root()) {
            need_root("the packet, system and fuzz suites load XDP programs")?;
        }
        let purposes: Vec<Purpose> = suites.iter().flat_map(|suite| suite.purposes()).copied().collect();
        if !purposes.is_empty() {
            // Before the unit tests: they embed the XDP programs as well, and would be compiled again once these are there.
            build::everything(workspace, Profile::Dev, &purposes, &[])?;
            step::compile("build suites", test_binary(workspace).arg("--no-run"))?;
        }
        let mut total = Cases::default();
        for suite in suites {
            total.add(self.run_suite(workspace, *suite)?);
        }
        println!("{} passed, {} failed", total.passed, total.failed);
        if total.failed > 0 {
            bail!("tests failed");
        }
        Ok(())
    }

    fn run_suite(&self, workspace: &Workspace, suite: Suite) -> Result<Cases> {
        let mut command = suite.command(workspace);
        command.args(&self.arguments);
        let finished = step::watch(suite.name(), &mut command, self.verbose)?;
        let (cases, complaint) = judge(&finished);
        if cases.failed > 0 && !self.verbose {
            for line in finished.output.lines().filter(|line| !line.ends_with(" ... ok")) {
                println!("{line}");
            }
        }
        let ignored = if cases.ignored > 0 { format!(", {} ignored", cases.ignored) } else { String::new() };
        println!(
            "{:8} {:>6} passed, {} failed{ignored}  {}{}",
            suite.name(),
            cases.passed,
            cases.failed,
            step::seconds(finished.took),
            complaint.map(|complaint| format!("  ({complaint})")).unwrap_or_default()
        );
        Ok(cases)
    }
}

/// The cases of a suite. One that broke off, or ran nothing, has at least one failure.
fn judge(finished: &Finished) -> (Cases, Option<&'static str>) {
    let cases = Cases::of(&finished.output);
    let one_failure = |cases: Cases| Cases { failed: cases.failed.max(1), ..cases };
    match cases {
        None => (one_failure(Cases::default()), Some("it broke off without a result")),
        Some(cases) if cases.passed + cases.failed == 0 => (one_failure(cases), Some("it ran no case")),
        Some(cases) if cases.failed == 0 && !finished.success => {
            (one_failure(cases), Some("no case failed, but the suite did"))
        }
        Some(cases) => (cases, None),
    }
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Packet => "packet",
            Self::System => "system",
            Self::Fuzz => "fuzz",
            Self::Kernels => "kernels",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Packet | Self::System | Self::Fuzz)
    }

    fn purposes(self) -> &'static [Purpose] {
        match self {
            Self::Unit => &[],
            Self::Packet | Self::Fuzz => &[Purpose::Build],
            Self::System => &[Purpose::Build, Purpose::Lab],
            Self::Kernels => &[Purpose::Build, Purpose::Kernels],
        }
    }

    fn command(self, workspace: &Workspace) -> Command {
        let names = match self {
            Self::Unit => {
                let mut command = workspace.cargo();
                // After a failure in one package the others still have something to say.
                command.args(["test", "--no-fail-fast"]).args(build::HOST_PACKAGES);
                return command;
            }
            Self::Packet => "packet",
            Self::System => "network,lab,system",
            Self::Fuzz => "fuzz",
            Self::Kernels => "kernels",
        };
        let mut command = test_binary(workspace);
        command.args(["--", "--suite", names]);
        if self == Self::Kernels {
            let kernels = kernels::directory(workspace);
            // The emulator's own directory first, for machines that have none installed.
            let path = env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", kernels.display())).env("LOADBALANCER_KERNELS", kernels);
            // An emulator alone keeps two processors busy.
            command.arg("--test-threads=1");
        }
        command
    }
}

/// The test binary of all suites but the unit tests.
fn test_binary(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["test", "--test", "suites"]).args(build::HOST_PACKAGES);
    command
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_suite_passes_only_if_cases_ran_and_none_failed_and_it_says_so() {
        for (output, success, passed, failed) in [
            ("test result: ok. 3 passed; 0 failed", true, 3, 0),
            ("test result: FAILED. 3 passed; 2 failed", false, 3, 2),
            ("test result: FAILED. 3 passed; 2 failed", true, 3, 2),
            ("test result: ok. 0 passed; 0 failed", true, 0, 1),
            ("thread 'main' panicked", false, 0, 1),
            ("", true, 0, 1),
            ("test result: ok. 4 passed; 0 failed; 0 ignored", true, 4, 0),
            ("test result: ok. 4 passed; 0 failed; 0 ignored", false, 4, 1),
            ("error: could not compile `loadbalancer`", false, 0, 1),
        ] {
            let finished = Finished { success, output: output.to_owned(), took: Duration::ZERO };
            let (cases, complaint) = judge(&finished);
            assert_eq!((cases.passed, cases.failed), (passed, failed), "{output}");
            assert_eq!(complaint.is_some(), failed == 1, "{output}");
        }
    }
}
