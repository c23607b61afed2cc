//! Network namespaces: making them, running code and processes in them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// Where `ip netns` keeps the names of namespaces.
pub const NAMES: &str = "/run/netns";

#[derive(Debug, Error)]
pub enum NetnsError {
    #[error("cannot start `{program}` in {place}: {source}; is it installed? (Debian: apt-get install {package})")]
    Start { program: &'static str, package: &'static str, place: String, source: io::Error },
    #[error("`ip {line}` failed in {place}: {message}")]
    Ip { line: String, place: String, message: String },
    #[error("cannot open the network namespace {name}: {source}; was it removed?")]
    Open { name: String, source: io::Error },
    #[error("cannot enter the network namespace {name}: {source}; root is needed")]
    Enter { name: String, source: io::Error },
    #[error("cannot start a thread in the network namespace {name}: {source}")]
    Thread { name: String, source: io::Error },
    #[error("cannot set {path} to `{value}` in the network namespace {name}: {source}")]
    Sysctl { name: String, path: String, value: String, source: io::Error },
}

/// An open network namespace. Clones share it; the name is removed by the [`crate::lab::run::Run`] that made it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<OwnedFd>,
}

impl Namespace {
    /// Opens a namespace that `ip netns` knows.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let file = File::open(Path::new(NAMES).join(name))
            .map_err(|source| NetnsError::Open { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file.into()) })
    }

    /// The name that `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it. A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map_err(|source| NetnsError::Thread { name: self.name.clone(), source })?;
            thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        })
    }

    /// A process that will run in the namespace. It keeps the machine's mounts, so `/sys` shows the machine's own
    /// devices. What still runs in the namespace when the run ends is killed.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec only the system call setns is made, which is async-signal-safe.
        unsafe { command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)) };
        command
    }

    /// Runs lines of `ip` commands (without the word `ip`), up to the first that fails.
    pub fn ip<L: AsRef<str>>(&self, lines: &[L]) -> Result<(), NetnsError> {
        batch(self.command("ip"), &self.name, lines)
    }

    /// Sets kernel parameters, given as paths below `/proc/sys/net`.
    pub fn sysctl(&self, parameters: &[(&str, &str)]) -> Result<(), NetnsError> {
        self.run(|| {
            parameters.iter().try_for_each(|(path, value)| {
                std::fs::write(Path::new("/proc/sys/net").join(path), value).map_err(|source| NetnsError::Sysctl {
                    name: self.name.clone(),
                    path: (*path).to_owned(),
                    value: (*value).to_owned(),
                    source,
                })
            })
        })?
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> Result<(), NetnsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { name: self.name.clone(), source: errno.into() })
    }
}

/// Runs lines of `ip` commands in the machine's own namespace.
pub(super) fn ip_on_host<L: AsRef<str>>(lines: &[L]) -> Result<(), NetnsError> {
    batch(Command::new("ip"), "the machine's own network namespace", lines)
}

fn batch<L: AsRef<str>>(mut ip: Command, place: &str, lines: &[L]) -> Result<(), NetnsError> {
    let start = |source| NetnsError::Start { program: "ip", package: "iproute2", place: place.to_owned(), source };
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let input = lines.iter().fold(String::new(), |input, line| input + line.as_ref() + "\n");
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return written.map_err(start);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetnsError::Ip { line: failed_line(&message, lines), place: place.to_owned(), message })
}

/// `ip` names the line that failed by its number: `Command failed -:3`.
fn failed_line<L: AsRef<str>>(message: &str, lines: &[L]) -> String {
    message
        .rsplit_once("-:")
        .and_then(|(_, number)| number.trim().parse::<usize>().ok())
        .and_then(|number| lines.get(number.checked_sub(1)?))
        .map_or_else(|| "-batch".to_owned(), |line| line.as_ref().to_owned())
}
