//! The gateway under test: the `loadbalancer` binary, running in the lab's gateway namespace.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use loadbalancer::api::types::Snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

use super::Lab;
use super::events::{WaitError, wait_until};
use super::netns::Namespace;

/// Time for a start or a stop, on a machine that does other things as well: the verifier takes seconds of a processor.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum GatewayError {
    #[error("cannot run {}: {source}; build it with `cargo xtask build`", path.display())]
    Binary { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the gateway ended ({status}) instead of starting:\n{log}")]
    Ended { status: String, log: String },
    #[error("{error}; the gateway's log:\n{log}")]
    Late { error: WaitError, log: String },
}

/// A gateway. Dropping it kills the controller; its pins go with the lab.
#[derive(Debug)]
pub struct Gateway {
    child: Option<Child>,
    namespace: Namespace,
    pub config: PathBuf,
    pub socket: PathBuf,
    pub pins: PathBuf,
    log: PathBuf,
    head: String,
}

impl Gateway {
    /// Starts a gateway on all of the lab's gateway interfaces, with these services, in TOML.
    pub fn start(lab: &Lab, services: &str) -> Result<Self, GatewayError> {
        let devices: Vec<String> = lab.gateway.links.iter().map(|link| format!("{:?}", link.device)).collect();
        Self::start_with(lab, &format!("interfaces = [{}]", devices.join(", ")), services)
    }

    /// Starts a gateway with these keys in `[gateway]`.
    pub fn start_with(lab: &Lab, keys: &str, services: &str) -> Result<Self, GatewayError> {
        let mut gateway = Self::prepare(lab, keys, services)?;
        gateway.spawn()?;
        Ok(gateway)
    }

    /// Everything but the start.
    pub fn prepare(lab: &Lab, keys: &str, services: &str) -> Result<Self, GatewayError> {
        let directory = lab.run().directory();
        let pins = lab.run().pin_dir();
        let socket = directory.join("admin.sock");
        let head = format!(
            "[gateway]\n{keys}\npin_directory = {:?}\n[admin]\nsocket = {:?}\n[limits]\nflows = 100000\nnat_flows = 100000\n",
            pins.display(),
            socket.display()
        );
        let gateway = Self {
            child: None,
            namespace: lab.gateway.namespace.clone(),
            config: directory.join("gateway.toml"),
            socket,
            pins,
            log: directory.join("gateway.log"),
            head,
        };
        gateway.write(services)?;
        Ok(gateway)
    }

    /// Writes the configuration with other services; `reload` takes it.
    pub fn write(&self, services: &str) -> Result<(), GatewayError> {
        let text = format!("{}\n{services}", self.head);
        fs::write(&self.config, text).map_err(|source| GatewayError::Write { path: self.config.clone(), source })
    }

    /// Starts the controller (again) and waits until it forwards.
    pub fn spawn(&mut self) -> Result<(), GatewayError> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|source| GatewayError::Write { path: self.log.clone(), source })?;
        let written = self.log().len();
        let mut command = self.namespace.command(&binary().to_string_lossy());
        command.arg("run").arg("--config").arg(&self.config).stdout(Stdio::null()).stderr(log);
        // It must not outlive the tests, however they end.
        // SAFETY: prctl is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        let child = command.spawn().map_err(|source| GatewayError::Binary { path: binary(), source })?;
        self.child = Some(child);
        let mut ended = None;
        let forwards = wait_until("the gateway forwards", PATIENCE, || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                ended = Some(status.to_string());
            }
            ended.is_some() || self.log()[written..].contains("the gateway forwards")
        });
        match (ended, forwards) {
            (Some(status), _) => Err(GatewayError::Ended { status, log: self.log() }),
            (None, Err(error)) => Err(GatewayError::Late { error, log: self.log() }),
            (None, Ok(())) => Ok(()),
        }
    }

    /// What the controller has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The number of the controller's process; none if it was stopped.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child
            && let Err(error) = kill(Pid::from_raw(child.id() as i32), signal)
        {
            eprintln!("lab: cannot signal the gateway: {error}");
        }
    }

    /// Sends a signal that ends the controller, and waits for that. Gives its exit code.
    pub fn stop(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.child.take().and_then(|mut child| child.wait().ok()).and_then(|status| status.code())
    }

    /// Has the controller read its configuration anew, and waits until it has.
    pub fn reload(&self) -> Result<(), WaitError> {
        let written = self.log().len();
        self.signal(Signal::SIGHUP);
        wait_until("the gateway reloads", PATIENCE, || self.log()[written..].contains("configuration"))
    }

    /// Runs a command of the command line against this gateway.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.namespace.command(&binary().to_string_lossy());
        command.args(arguments).output().unwrap_or_else(|error| panic!("{}: {error}", binary().display()))
    }

    /// As [`Self::cli`], with the socket of this gateway; gives what it prints.
    ///
    /// # Panics
    /// If the command fails.
    pub fn ask(&self, arguments: &[&str]) -> String {
        let socket = self.socket.display().to_string();
        let output = self.cli(&[arguments, &["--socket", &socket]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The state of the gateway.
    ///
    /// # Panics
    /// If the command fails.
    pub fn snapshot(&self) -> Snapshot {
        let pins = self.pins.display().to_string();
        serde_json::from_str(&self.ask(&["stats", "--json", "--pins", &pins])).expect("stats --json gives a snapshot")
    }

    /// Waits for a state of the gateway.
    pub fn wait(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Result<(), GatewayError> {
        wait_until(what, PATIENCE, || condition(&self.snapshot()))
            .map_err(|error| GatewayError::Late { error, log: format!("{}\n{:#?}", self.log(), self.snapshot()) })
    }

    /// Waits until a server is in a state.
    pub fn wait_server(&self, server: &str, state: &str) -> Result<(), GatewayError> {
        self.wait(&format!("{server} is {state}"), |snapshot| {
            let mut servers = snapshot.services.iter().flat_map(|service| &service.servers);
            servers.any(|candidate| candidate.name == server && candidate.state.label() == state)
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop(Signal::SIGKILL);
        }
    }
}

/// The binary under test: beside the test's own, or as told by the environment.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LOADBALANCER_BINARY") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let mut directories = own.ancestors().skip(1);
    directories.find_map(beside).unwrap_or_else(|| "loadbalancer".into())
}

fn beside(directory: &Path) -> Option<PathBuf> {
    let path = directory.join("loadbalancer");
    path.is_file().then_some(path)
}

/// A command of the command line without a gateway.
pub fn command() -> Command {
    Command::new(binary())
}
