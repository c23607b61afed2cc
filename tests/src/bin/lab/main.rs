//! The lab as a demonstration: every mode in turn, with a server that stops and comes back, and a verdict.

mod show;
mod verdict;

use std::cell::RefCell;
use std::fs;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use loadbalancer::api::types::snapshot::{self, Snapshot};
use loadbalancer::controller::status::ServerState;
use loadbalancer_tests::lab::gateway::{Gateway, binary};
use loadbalancer_tests::lab::plan::{LabConfig, Topology};
use loadbalancer_tests::lab::{Lab, vip4, vip6};
use loadbalancer_tests::report;
use loadbalancer_tests::traffic::load::{Load, LoadReport, Pace, RunningLoad};
use loadbalancer_tests::traffic::server::{Live, Ports, Server};
use show::Screen;
use verdict::{ModeResult, Phase};

const MODES: [&str; 5] = ["nat", "dnat", "dsr-l2", "dsr-ipip", "dsr-gue"];
/// Keys of each server. The last one stands by in a lower tier.
const SERVERS: [&str; 4] = ["weight = 1", "weight = 1", "weight = 2", "weight = 1\ntier = 1"];
/// The server that stops half way.
const STOPPED: usize = 1;
/// Its share while all servers are up.
const SHARE: f64 = 0.25;
/// Requests a second of each client.
const RATE: f64 = 500.0;
/// How often the table is drawn.
const REFRESH: Duration = Duration::from_millis(500);
/// Time for a check to notice, with interval 200 ms and a fall of two, and for what is under way to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// With less, a phase has too few requests to judge shares by.
const MIN_TIME: Duration = Duration::from_secs(30);

/// Drives real HTTP traffic through a gateway between network namespaces, in every mode.
#[derive(Parser)]
#[command(name = "cargo xtask run", bin_name = "cargo xtask run")]
struct Arguments {
    /// Time of traffic, over all modes: 30s at least
    #[arg(long, default_value = "60s", value_parser = parse_time)]
    duration: Duration,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the last lab up, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Only these modes
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(MODES))]
    modes: Vec<String>,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs);
    let time =
        seconds.or_else(|_| humantime::parse_duration(text)).map_err(|error| format!("{error}; as in 60s, 2m"))?;
    if time < MIN_TIME { Err("the modes need 30s at least".to_owned()) } else { Ok(time) }
}

fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    let modes: Vec<&str> = match arguments.modes.as_slice() {
        [] => MODES.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let each = arguments.duration / modes.len() as u32;
    let screen = Screen::new(std::io::stdout().is_terminal());
    screen.line("two clients - gateway with XDP on all its interfaces - four servers, each in a network namespace");
    screen.line("weights 1, 1 and 2; server4 stands by in a lower tier; server2 stops half way and comes back\n");
    let mut results = Vec::new();
    let mut last = None;
    for (number, mode) in modes.iter().enumerate() {
        drop(last.take());
        let world = World::up(mode).with_context(|| format!("mode {mode}"))?;
        results.push(world.drive(each, &screen, &format!("[{}/{}] {mode}", number + 1, modes.len()))?);
        last = Some(world);
    }
    screen.clear();
    verdict::print(&results);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&results)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("the result is in {}", path.display());
    }
    if let Some(world) = last.filter(|_| arguments.keep) {
        world.explain();
        loop {
            // A signal ends the process and removes the lab.
            thread::park();
        }
    }
    Ok(results.iter().all(|result| result.complaints.is_empty()))
}

struct World {
    mode: String,
    gateway: Gateway,
    servers: RefCell<Vec<Server>>,
    lab: Lab,
}

impl World {
    fn up(mode: &str) -> Result<Self> {
        let topology = if mode == "dsr-l2" { Topology::Segment } else { Topology::Routed };
        let lab = Lab::up(&LabConfig { topology, ..LabConfig::default() })?;
        if mode.starts_with("dsr") {
            for vip in [IpAddr::from(vip4(1)), vip6(1).into()] {
                lab.add_vip_to_servers(vip)?;
            }
        }
        if matches!(mode, "dsr-ipip" | "dsr-gue") {
            lab.servers.iter().try_for_each(|host| host.set_decap())?;
        }
        let start =
            |host: &loadbalancer_tests::lab::host::Host| Server::start(host.namespace(), &host.name, Ports::default());
        let servers: Vec<Server> = lab.servers.iter().map(start).collect::<Result<_, _>>()?;
        let gateway = Gateway::start(&lab, &services(mode, &lab))?;
        let world = Self { mode: mode.to_owned(), gateway, servers: RefCell::new(servers), lab };
        let names: Vec<String> = world.snapshot().services[0].servers.iter().map(|s| s.name.clone()).collect();
        for name in names {
            world.gateway.wait_server(&name, "up")?;
        }
        Ok(world)
    }

    fn snapshot(&self) -> Snapshot {
        self.gateway.snapshot()
    }

    fn load(&self, client: usize, vip: IpAddr, time: Duration) -> Result<RunningLoad> {
        let mut load = Load::new(SocketAddr::new(vip, 80));
        load.query.close = true;
        load.pace = Pace::Open { per_second: RATE, max_in_flight: 256 };
        load.max_time = time + PATIENCE * 3;
        Ok(load.start(self.lab.clients[client].namespace())?)
    }

    /// Traffic for a time: all servers, one stopped, all again.
    fn drive(&self, time: Duration, screen: &Screen, title: &str) -> Result<ModeResult> {
        let begun = Instant::now();
        let loads = [self.load(0, vip4(1).into(), time)?, self.load(1, vip6(1).into(), time)?];
        let report = || {
            let mut sum: LoadReport = loads[0].report();
            sum.merge(&loads[1].report());
            sum
        };
        let mut before = self.snapshot();
        let mut until = |end: Duration, what: &str| {
            while begun.elapsed() < end {
                thread::sleep(REFRESH.min(end.saturating_sub(begun.elapsed())));
                let now = self.snapshot();
                screen.draw(title, what, begun.elapsed(), time, &before, &now, &report());
                before = now;
            }
        };
        until(time.mul_f64(0.4), "all servers");
        let first = report();
        let stopped = self.lab.servers[STOPPED].name.as_str();
        self.servers.borrow_mut()[STOPPED].stop(Live::Reset);
        self.wait_for(stopped, "down", |server| server.state == ServerState::Down)?;
        // What was under way to the stopped server ends one way or the other.
        until(time.mul_f64(0.4 + 0.05), "server2 is stopped");
        thread::sleep(Duration::from_millis(500));
        let noticed = report();
        until(time.mul_f64(0.6), "server2 is stopped");
        let second = report();
        self.servers.borrow_mut()[STOPPED].restart()?;
        self.wait_for(stopped, "up", |server| server.state == ServerState::Up)?;
        self.wait_for(stopped, "back at its share", |server| (server.share - SHARE).abs() < 0.01)?;
        let back = report();
        // On a slow machine it may have taken most of the time.
        until(time.max(begun.elapsed() + time.mul_f64(0.2)), "server2 is back");
        let third = report();
        for load in loads {
            drop(load.stop());
        }
        let phases = [
            Phase::between("all servers", None, &first),
            Phase::between("server2 stopped", Some(&noticed), &second),
            Phase::between("server2 back", Some(&back), &third),
        ];
        Ok(verdict::judge(&self.mode, &phases, &third, &self.snapshot()))
    }

    /// Waits until something holds for all backends of a server.
    fn wait_for(&self, server: &str, what: &str, holds: impl Fn(&snapshot::Server) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.snapshot();
            let mut of_server = snapshot.services[0]
                .servers
                .iter()
                .filter(|candidate| candidate.name.trim_end_matches("-v6") == server);
            if of_server.all(&holds) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let shares = snapshot.services.iter().flat_map(|service| &service.servers);
                let shares: Vec<String> =
                    shares.map(|it| format!("{} {} {:.3}", it.name, it.state.label(), it.share)).collect();
                bail!("{server} is not {what} after {PATIENCE:?}: {}\n{}", shares.join(", "), self.gateway.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn explain(&self) {
        let client = self.lab.clients[0].namespace().name();
        let gateway = self.lab.gateway.namespace.name();
        let binary = binary().display().to_string();
        let (socket, pins) = (self.gateway.socket.display(), self.gateway.pins.display());
        println!("\nThe lab in mode {} is up. Look around from another terminal, as root:", self.mode);
        println!("  ip netns exec {client} wget -qO- http://{}/", vip4(1));
        println!("  {binary} stats --watch --socket {socket}");
        println!("  {binary} status --socket {socket}");
        println!("  {binary} backend drain web/server1 --socket {socket}");
        let what = if self.mode == "nat" { "" } else { " --count" };
        println!("  {binary} flows{what} --pins {pins}");
        println!("  ip netns exec {gateway} ip -details link");
        println!("The configuration is {}.", self.gateway.config.display());
        println!("Ctrl-C removes everything.");
    }
}

fn services(mode: &str, lab: &Lab) -> String {
    let listen = [IpAddr::from(vip4(1)), vip6(1).into()].map(|vip| format!("\"{}\"", SocketAddr::new(vip, 80)));
    let mut text = format!("[[service]]\nname = \"web\"\nmode = {mode:?}\nlisten = [{}]\n", listen.join(", "));
    text += "check = { type = \"http\", path = \"/\", interval = \"200ms\", timeout = \"500ms\", rise = 2, fall = 2, port = 80 }\n";
    // Shares are judged against these weights. What is measured of servers that share two processors with the load moves
    // them by more than a fifth now and then.
    text += "quality = { weights = \"configured\", slow_start = { ramp = \"1s\" } }\n";
    for (host, keys) in lab.servers.iter().zip(SERVERS) {
        let mut server = |name: &str, addr: IpAddr| {
            text += &format!("[[service.server]]\nname = \"{name}\"\naddress = \"{addr}\"\n{keys}\n");
        };
        server(&host.name, host.addresses.ipv4.into());
        if !mode.starts_with("dsr") {
            server(&format!("{}-v6", host.name), host.addresses.ipv6.into());
        }
    }
    text
}
