//! The commands, and what they exit with: 0 done, 1 failed, 2 wrong usage or configuration.

mod common;
mod channels;
mod decap;
mod doctor;
mod flows;
mod quality;
mod queue;
mod run;
mod show;
mod standby;
mod table;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use loadbalancer::api::client::{self, ClientError};
use loadbalancer::api::offline;
use loadbalancer::api::types::config::ConfigProblem;
use loadbalancer::api::types::{Change, Snapshot};
use loadbalancer::config::{self, Config, ConfigErrors};
use loadbalancer::dataplane::pins::{lock_pins, remove_pin_root, remove_pins};
use loadbalancer::network::Network;
use loadbalancer::network::prober::interface_name;
use model::weight::MAX_WEIGHT;
use serde::Serialize;

use common::{PINS, ReportArgs, ShowArgs, SocketArgs, WatchArgs, block_on, need_root};

/// Balances connections over servers in the kernel, with XDP.
#[derive(Parser)]
#[command(name = "loadbalancer", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway: attach to its interfaces, check servers, forward
    Run(run::RunArgs),
    /// Check a configuration without root, and without changing anything
    Check {
        /// The configuration
        file: PathBuf,
        /// Errors as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what a configuration can say
    Config {
        #[arg(value_enum)]
        form: ConfigForm,
    },
    /// Look for what would keep a gateway from working on this machine; exits with 1 if there is a problem
    Doctor(doctor::DoctorArgs),
    /// Show the state of the controller, its interfaces and what is wrong
    Status(ShowArgs),
    /// Show servers with their traffic, and what became of all frames
    Stats {
        #[command(flatten)]
        show: ShowArgs,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Explain the weight of every server: what was measured, the score, the reason for the last change
    Quality(ReportArgs),
    /// Show the ways to each server: round-trip time, loss, score, and how many flows take them
    Channels(ReportArgs),
    /// Show the pool of standby servers, who has which, and why
    Standby(ReportArgs),
    /// Show what waits for a server: how many, for how long, and what became of those before
    Queue(ReportArgs),
    /// List services
    Services(ShowArgs),
    /// List servers with their state
    Backends(ShowArgs),
    /// Change a server: stop new flows to it, take it back, set its weight
    #[command(subcommand)]
    Backend(BackendCommand),
    /// List the flows of nat services; count all others per server, or find one
    Flows(flows::FlowsArgs),
    /// Read the configuration anew, as SIGHUP does
    Reload(SocketArgs),
    /// End forwarding that a stopped controller has left in place
    Detach {
        /// Where the state is pinned
        #[arg(long, default_value = PINS)]
        pins: PathBuf,
    },
    /// On a server: take packets of dsr-ipip and dsr-gue out of their tunnel, until stopped
    Decap(decap::DecapArgs),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Clone, Copy, ValueEnum)]
enum ConfigForm {
    /// A file with every key: its default, else an example in a comment
    Example,
    /// Every key in Markdown: what it takes, its default and what it does
    Reference,
    /// The JSON schema, for editors
    Schema,
}

#[derive(Subcommand)]
enum BackendCommand {
    /// No new flows; live ones go on
    Drain {
        /// SERVICE/SERVER, or the server's name if only one service has it
        name: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// New flows again, and the weight of the configuration
    Enable {
        /// SERVICE/SERVER, or the server's name if only one service has it
        name: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Set the weight until `enable`, or until the configuration changes it
    Weight {
        /// SERVICE/SERVER, or the server's name if only one service has it
        name: String,
        /// 0 to 1000; 0: no new flows
        #[arg(value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_WEIGHT)), allow_negative_numbers = true)]
        weight: u16,
        #[command(flatten)]
        socket: SocketArgs,
    },
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads our output may have stopped reading: that is no error of ours.
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
                return ExitCode::SUCCESS;
            }
            if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
                eprintln!("{errors}");
                return ExitCode::from(2);
            }
            eprintln!("error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but those that the text has already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Check { file, json } => check(&file, json),
        Command::Config { form } => {
            let text = match form {
                ConfigForm::Example => config::example(),
                ConfigForm::Reference => config::reference(),
                ConfigForm::Schema => config::json_schema(),
            };
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Status(args) => print(&args, show::status),
        Command::Stats { show, watch: args } => watch(&args, show.json, async || snapshot(&show).await, show::stats),
        Command::Quality(args) => report(&args, client::quality, quality::quality),
        Command::Channels(args) => report(&args, client::channels, channels::channels),
        Command::Standby(args) => report(&args, client::standby, standby::standby),
        Command::Queue(args) => report(&args, client::queue, queue::queue),
        Command::Services(args) => print(&args, show::services),
        Command::Backends(args) => print(&args, show::backends),
        Command::Backend(command) => change(command),
        Command::Flows(args) => flows::flows(&args),
        Command::Reload(args) => block_on(async { Ok(client::reload(&args.socket).await?) }),
        Command::Detach { pins } => detach(&pins),
        Command::Decap(args) => decap::decap(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "loadbalancer", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn check(file: &Path, json: bool) -> Result<()> {
    match Config::load(file) {
        Ok(config) => {
            let servers: usize = config.services.iter().map(|service| service.servers.len()).sum();
            let services = config.services.len();
            if json {
                println!("[]");
            } else {
                println!("{}: nothing is wrong; services: {services}, servers: {servers}", file.display());
            }
            Ok(())
        }
        Err(errors) => {
            if json {
                let problems: Vec<ConfigProblem<'_>> = errors.0.iter().map(ConfigProblem::from).collect();
                println!("{}", serde_json::to_string_pretty(&problems)?);
            }
            Err(errors.into())
        }
    }
}

/// The state of the gateway: from its controller, else from the pinned maps.
async fn snapshot(args: &ShowArgs) -> Result<Snapshot> {
    match client::snapshot(&args.socket.socket).await {
        Ok(snapshot) => Ok(snapshot),
        Err(error @ ClientError::Connect { .. }) => match offline::snapshot(&args.pins) {
            Ok(snapshot) => Ok(snapshot),
            Err(pins) => Err(anyhow::anyhow!("{error}\n{pins}")),
        },
        Err(error) => Err(error.into()),
    }
}

fn print(args: &ShowArgs, table: impl Fn(&Snapshot) -> String) -> Result<()> {
    let snapshot = block_on(snapshot(args))?;
    let text = if args.json { serde_json::to_string_pretty(&snapshot)? } else { table(&snapshot) };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

fn report<T: Serialize>(
    args: &ReportArgs,
    ask: impl AsyncFn(&Path) -> Result<T, ClientError>,
    text: impl Fn(&T) -> String,
) -> Result<()> {
    watch(&args.watch, args.json, async || Ok(ask(&args.socket.socket).await?), |now, _| text(now))
}

/// Shows something once, or again and again beside what it was before.
fn watch<T: Serialize>(
    args: &WatchArgs,
    json: bool,
    fetch: impl AsyncFn() -> Result<T>,
    text: impl Fn(&T, Option<&T>) -> String,
) -> Result<()> {
    block_on(async {
        let mut before: Option<T> = None;
        let mut shown = 0;
        loop {
            let now = fetch().await?;
            let mut out = std::io::stdout();
            match (json, args.watch) {
                (true, None) => writeln!(out, "{}", serde_json::to_string_pretty(&now)?)?,
                (true, Some(_)) => writeln!(out, "{}", serde_json::to_string(&now)?)?,
                (false, _) => {
                    if args.watch.is_some() && out.is_terminal() {
                        // To the upper left, and nothing below.
                        write!(out, "\x1b[H\x1b[J")?;
                    }
                    writeln!(out, "{}", text(&now, before.as_ref()).trim_end())?;
                }
            }
            out.flush()?;
            shown += 1;
            let Some(seconds) = args.watch.filter(|_| args.count.is_none_or(|count| shown < count)) else {
                return Ok(());
            };
            before = Some(now);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(seconds.max(1))) => {}
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    })
}

fn change(command: BackendCommand) -> Result<()> {
    let (name, socket, change, done) = match command {
        BackendCommand::Drain { name, socket } => (name, socket, Change::Drain, "drained".to_owned()),
        BackendCommand::Enable { name, socket } => (name, socket, Change::Enable, "enabled".to_owned()),
        BackendCommand::Weight { name, weight, socket } => {
            (name, socket, Change::Weight(weight), format!("has weight {weight}"))
        }
    };
    let full = block_on(async { Ok(client::change(&socket.socket, &name, &change).await?) })?;
    println!("{full}: {done}");
    Ok(())
}

fn detach(pins: &Path) -> Result<()> {
    need_root("detaching")?;
    if pins.exists() && {
        // Refused while a controller runs: it would believe that it still forwards.
        let _lock = lock_pins(pins)?;
        remove_pins(pins)?
    } {
        remove_pin_root(pins)?;
        // A controller that was killed may have left them.
        let prober = interface_name(pins);
        block_on(async {
            let (network, _) = Network::open().await?;
            network.remove_policy_routes().await?;
            network.remove_link(&prober).await?;
            Ok(())
        })?;
        println!("forwarding has ended; nothing is left in {}", pins.display());
        Ok(())
    } else {
        anyhow::bail!("nothing is pinned in {}", pins.display())
    }
}
