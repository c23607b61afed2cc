//! `cargo xtask run`, `bench` and `doctor`: build a program, then become it.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::build;
use crate::need::Purpose;
use crate::workspace::{Profile, Workspace, need_root};

#[derive(Args)]
pub struct Run {
    /// How long the lab drives traffic: 30s at least [default: 60s]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,

    /// Write the lab's result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Leave the lab up until Ctrl-C, and say how to look around
    #[arg(long)]
    keep: bool,

    /// Run the gateway instead of the lab, with these arguments of `loadbalancer run`
    #[arg(last = true, value_name = "--config FILE", conflicts_with_all = ["duration", "json", "keep"])]
    gateway: Vec<String>,
}

impl Run {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        if !self.gateway.is_empty() {
            build::everything(workspace, Profile::Dist, &[Purpose::Build], &[])?;
            let arguments = ["run".to_owned()].into_iter().chain(self.gateway);
            return become_program(workspace, Profile::Dist, "loadbalancer", arguments);
        }
        need_root("the lab makes network namespaces and attaches XDP programs")?;
        build::everything(workspace, Profile::Dev, &[Purpose::Build, Purpose::Lab], &["lab"])?;
        let mut arguments = Vec::new();
        if let Some(duration) = self.duration {
            arguments.extend(["--duration".to_owned(), duration]);
        }
        if let Some(json) = self.json {
            arguments.extend(["--json".to_owned(), json.display().to_string()]);
        }
        if self.keep {
            arguments.push("--keep".to_owned());
        }
        become_program(workspace, Profile::Dev, "lab", arguments)
    }
}

#[derive(Args)]
pub struct Bench {
    /// What to measure [default: one after the other]
    subject: Option<Subject>,

    /// Arguments of the bench: `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, requires = "subject")]
    arguments: Vec<String>,
}

/// The program of all benches, which takes the subject first.
const PROGRAM: &str = "bench";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Cost per packet, by mode and number of flows
    Packet,
    /// Time to build a ring and to publish it
    Ring,
    /// Requests per second against kernel routing, nftables, nginx and HAProxy
    System,
    /// What measured quality decides, in the lab; `-- --simulate`: with synthetic servers
    Qos,
    /// What the queue does under overload and floods, in the lab
    Queue,
}

impl Bench {
    pub fn run(mut self, workspace: &Workspace) -> Result<()> {
        if self.subject == Some(Subject::Qos) && self.simulates() {
            build::everything(workspace, Profile::Release, &[Purpose::Build], &[PROGRAM])?;
            return become_program(
                workspace,
                Profile::Release,
                PROGRAM,
                ["qos-simulate".to_owned()].into_iter().chain(self.arguments),
            );
        }
        need_root("benches load XDP programs")?;
        let subjects = self.subject.as_ref().map_or(Subject::value_variants(), std::slice::from_ref);
        let mut purposes = vec![Purpose::Build];
        if subjects.iter().any(|subject| matches!(subject, Subject::System | Subject::Qos | Subject::Queue)) {
            purposes.extend([Purpose::Lab, Purpose::Bench]);
        }
        build::everything(workspace, Profile::Release, &purposes, &[PROGRAM])?;
        if let Some(subject) = self.subject {
            return become_program(
                workspace,
                Profile::Release,
                PROGRAM,
                [subject.name().to_owned()].into_iter().chain(self.arguments),
            );
        }
        for subject in subjects {
            let path = workspace.binary(Profile::Release, PROGRAM);
            let status = workspace.program(&path).arg(subject.name()).status();
            let status = status.with_context(|| format!("cannot run {}", path.display()))?;
            if !status.success() {
                bail!("the {} bench failed ({status}); what it printed is above", subject.name());
            }
        }
        Ok(())
    }

    /// Takes `--simulate` out of the arguments.
    fn simulates(&mut self) -> bool {
        let before = self.arguments.len();
        self.arguments.retain(|argument| argument != "--simulate");
        self.arguments.len() < before
    }
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Ring => "ring",
            Self::System => "system",
            Self::Qos => "qos",
            Self::Queue => "queue",
        }
    }
}

#[derive(Args)]
pub struct Doctor {
    /// Arguments of `loadbalancer doctor`: `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Doctor {
    pub fn run(self, workspace: &Workspace) -> Result<()> {
        build::everything(workspace, Profile::Dev, &[Purpose::Build], &[])?;
        become_program(workspace, Profile::Dev, "loadbalancer", ["doctor".to_owned()].into_iter().chain(self.arguments))
    }
}

/// Signals and exit code are the program's own from here on.
fn become_program(
    workspace: &Workspace,
    profile: Profile,
    binary: &str,
    arguments: impl IntoIterator<Item = String>,
) -> Result<()> {
    let path = workspace.binary(profile, binary);
    let error = workspace.program(&path).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", path.display()))
}
