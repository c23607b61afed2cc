//! The check that is a command of the operator's.
//!
//! It runs with an empty standard input and this environment: `PATH`, `LB_SERVICE` and `LB_SERVER` (their names),
//! `LB_ADDRESS`, `LB_PORT` (if there is one), and of the way to take `LB_SOURCE`, `LB_INTERFACE` and `LB_MARK`, each only
//! if it is set: the command itself has to take it. Exit code 0 is a success; else the first line of what it wrote, to
//! standard output or error, is the reason. At the time-out its whole process group is killed.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::{Duration, timeout};

use crate::health::error::{Phase, ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::target::Target;

/// What is kept of the output; the rest is read and dropped, so that a command which writes much does not hang.
const OUTPUT_LIMIT: usize = 1_024;
/// Longest reason, in characters.
const REASON_LIMIT: usize = 120;
/// How long after its end a command's output is waited for: a child of its own may hold the pipe open.
const LINGER: Duration = Duration::from_millis(100);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments; no shell is involved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandCheck {
    command: Vec<String>,
}

impl CommandCheck {
    /// # Errors
    /// No program, one without an absolute path, or what cannot be an argument.
    pub fn new(command: &[&str]) -> Result<Self, SpecError> {
        match command.first() {
            None => Err(SpecError::NoCommand),
            _ if command.iter().any(|part| part.contains('\0')) => Err(SpecError::ZeroByte),
            Some(program) if !program.starts_with('/') => Err(SpecError::Command((*program).to_owned())),
            Some(_) => Ok(Self { command: command.iter().map(|part| (*part).to_owned()).collect() }),
        }
    }
}

/// Runs the command to its end.
pub(in crate::health) async fn ask(target: &Target, check: &CommandCheck, limit: &TimeLimit) -> Result<(), ProbeError> {
    let (mut group, mut output) = start(target, check)?;
    let mut kept = Vec::new();
    let ended = async {
        let mut open = true;
        let status = loop {
            tokio::select! {
                status = group.child.wait() => break status,
                more = read(&mut output, &mut kept), if open => open = more?,
            }
        };
        group.ended = true;
        let rest = async {
            while open && read(&mut output, &mut kept).await? {}
            io::Result::Ok(())
        };
        match timeout(LINGER, rest).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => status,
        }
    };
    let ended = async { ended.await.map_err(|error| ProbeError::from_io(&error)) };
    let status = limit.within(Phase::Run, ended).await?;
    if status.success() { Ok(()) } else { Err(ProbeError::Command { end: end_of(status), reason: reason(&kept) }) }
}

/// A command under way. Dropped before its end, it is killed with all that it started.
struct Group {
    child: Child,
    /// Its number may belong to another process.
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Err(error) = killpg(Pid::from_raw(pid), Signal::SIGKILL)
        {
            tracing::warn!(pid, %error, "cannot kill the command of a check");
        }
    }
}

fn start(target: &Target, check: &CommandCheck) -> Result<(Group, Receiver), ProbeError> {
    let program = &check.command[0];
    let cannot_run = |error: io::Error| match ProbeError::from_io(&error) {
        out @ ProbeError::OutOf(_) => out,
        _ => ProbeError::CannotRun { program: program.clone(), error: error.to_string() },
    };
    let (ours, theirs) = io::pipe().map_err(cannot_run)?;
    let mut command = Command::new(program);
    command
        .args(&check.command[1..])
        .env_clear()
        .env("PATH", PATH)
        .env("LB_SERVICE", &target.service)
        .env("LB_SERVER", &target.server)
        .env("LB_ADDRESS", target.address.ip().to_string())
        .stdin(Stdio::null())
        .stdout(theirs.try_clone().map_err(cannot_run)?)
        .stderr(theirs)
        .process_group(0)
        .kill_on_drop(true);
    let port = Some(target.address.port()).filter(|port| *port != 0);
    for (name, value) in [
        ("LB_PORT", port.map(|port| port.to_string())),
        ("LB_SOURCE", target.via.source.map(|source| source.to_string())),
        ("LB_INTERFACE", target.via.interface.clone()),
        ("LB_MARK", target.via.mark.map(|mark| mark.to_string())),
    ] {
        command.envs(value.map(|value| (name, value)));
    }
    let child = command.spawn().map_err(cannot_run)?;
    let output = Receiver::from_owned_fd(ours.into()).map_err(cannot_run)?;
    Ok((Group { child, ended: false }, output))
}

/// Reads once and keeps what fits. False: there is no more.
async fn read(output: &mut Receiver, kept: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = [0; OUTPUT_LIMIT];
    let length = output.read(&mut part).await?;
    kept.extend_from_slice(&part[..length.min(OUTPUT_LIMIT - kept.len())]);
    Ok(length > 0)
}

fn end_of(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The first line that has something in it, fit for a table.
fn reason(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_LIMIT).collect()
}

#[cfg(test)]
mod tests;
