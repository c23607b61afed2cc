//! Requests per second through the gateway, against what else could do its work, on the same hosts and in the same run.
//!
//! One client with wrk, four servers with nginx, and on the gateway in turn: kernel routing over several paths, nftables
//! DNAT, nginx and HAProxy as TCP proxies, and each of our modes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::Signal;

use super::plot::{self, Column};
use super::report::{self, Bar, Figure};
use crate::support::client::{Query, fetch};
use crate::support::events::wait_until;
use crate::support::gateway::Gateway;
use crate::support::lab::{Lab, vip4};
use crate::support::netns::Namespace;
use crate::support::plan::LabConfig;

const PATIENCE: Duration = Duration::from_secs(10);

/// Compares our modes with other ways to balance HTTP.
#[derive(Parser)]
#[command(name = "cargo xtask bench system", bin_name = "cargo xtask bench system")]
struct Arguments {
    /// Rounds, in each of which every way has its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Connections of the client
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots: FILE with `-keepalive` and `-connections` before its end
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A way to balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Routing,
    Nftables,
    Nginx,
    Haproxy,
    Ours(&'static str),
}

const WAYS: [Way; 9] = [
    Way::Routing,
    Way::Nftables,
    Way::Nginx,
    Way::Haproxy,
    Way::Ours("nat"),
    Way::Ours("dnat"),
    Way::Ours("dsr-l2"),
    Way::Ours("dsr-ipip"),
    Way::Ours("dsr-gue"),
];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Nftables => "nftables",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Ours(mode) => mode,
        }
    }

    /// Of its own, because the proxies leave connections in TIME_WAIT on the gateway, and its kernel forwards no packet
    /// that seems to belong to one of them.
    fn vip(self) -> Ipv4Addr {
        vip4(1 + WAYS.iter().position(|way| *way == self).unwrap_or(0) as u8)
    }
}

/// What was measured of a way, one entry per round.
#[derive(Clone, Debug, Default)]
struct Measured {
    rate: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

pub fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    let lab = Lab::up(&LabConfig { clients: 1, ..LabConfig::default() })?;
    WAYS.iter().try_for_each(|way| lab.add_vip_to_servers(way.vip().into()))?;
    lab.servers.iter().try_for_each(|host| host.set_decap())?;
    let _servers = start_servers(&lab)?;
    let mut keep = vec![Measured::default(); WAYS.len()];
    let mut close = vec![Measured::default(); WAYS.len()];
    for round in 0..arguments.rounds {
        for (index, way) in WAYS.into_iter().enumerate() {
            eprint!("\r\x1b[2Kround {}/{}: {}", round + 1, arguments.rounds, way.name());
            let running = Running::start(way, &lab).with_context(|| way.name())?;
            running.wait(&lab).with_context(|| way.name())?;
            measure(&lab, arguments, way, false, &mut keep[index]).with_context(|| way.name())?;
            measure(&lab, arguments, way, true, &mut close[index]).with_context(|| way.name())?;
            running.stop(&lab)?;
        }
    }
    eprint!("\r\x1b[2K");
    let figures =
        [figures("keep-alive", "requests/s", &keep), figures("connections", "connections/s", &close)].concat();
    print(arguments, &keep, &close);
    if let Some(path) = &arguments.json {
        report::write_json(path, &figures)?;
    }
    if let Some(path) = &arguments.svg {
        draw(path, "keepalive", "Requests per second, kept connections", "requests/s", &keep)?;
        draw(path, "connections", "One connection a request", "connections/s", &close)?;
    }
    Ok(report::verdict(&figures))
}

fn of<'a>(measured: &'a [Measured], way: &str) -> &'a Measured {
    let index = WAYS.iter().position(|candidate| candidate.name() == way).unwrap_or(0);
    &measured[index]
}

fn figures(name: &str, unit: &'static str, measured: &[Measured]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (way, measured) in WAYS.iter().zip(measured) {
        figures.push(Figure::new(format!("{name}, {}", way.name()), unit, measured.rate.clone()));
        figures.push(Figure::new(format!("{name}, {}: p50", way.name()), "us", measured.p50_us.clone()));
        figures.push(Figure::new(format!("{name}, {}: p99", way.name()), "us", measured.p99_us.clone()));
    }
    // Of each round the best of our modes against another way in the same round.
    let best_against = |other: &str| -> Vec<f64> {
        let other = &of(measured, other).rate;
        let ours = || WAYS.iter().zip(measured).filter(|(way, _)| matches!(way, Way::Ours(_)));
        (0..other.len())
            .map(|round| ours().map(|(_, measured)| measured.rate[round]).fold(0.0, f64::max) / other[round])
            .collect()
    };
    let ratio = |other: &str| Figure::new(format!("{name}: best of our modes / {other}"), "", best_against(other));
    if name == "keep-alive" {
        figures.push(ratio("routing").with_bar(Bar::AtLeast(1.0)));
        figures.push(ratio("haproxy").with_bar(Bar::AtLeast(1.3)));
    } else {
        figures.push(ratio("routing"));
        figures.push(ratio("haproxy").with_bar(Bar::AtLeast(1.15)));
    }
    figures
}

fn print(arguments: &Arguments, keep: &[Measured], close: &[Measured]) {
    println!(
        "wrk with {} connections, {} s each, medians of {} rounds in turn; ratios to kernel routing and to HAProxy\n",
        arguments.connections, arguments.seconds, arguments.rounds
    );
    let line = |measured: &[Measured], way: Way| {
        let own = of(measured, way.name());
        let median = report::median;
        format!(
            "{:>9.0} {:>6.2} {:>6.2} {:>8.2} {:>8.2}",
            median(&own.rate),
            median(&own.rate) / median(&of(measured, "routing").rate),
            median(&own.rate) / median(&of(measured, "haproxy").rate),
            median(&own.p50_us) / 1e3,
            median(&own.p99_us) / 1e3
        )
    };
    println!("{:10} {:^41}   {:^41}", "", "kept connections", "one connection a request");
    println!(
        "{:10} {:>9} {:>6} {:>6} {:>8} {:>8}   {:>9} {:>6} {:>6} {:>8} {:>8}",
        "", "requests/s", "/rout", "/hapr", "p50 ms", "p99 ms", "conns/s", "/rout", "/hapr", "p50 ms", "p99 ms"
    );
    for way in WAYS {
        println!("{:10} {}   {}", way.name(), line(keep, way), line(close, way));
    }
    println!();
}

fn draw(path: &Path, suffix: &str, title: &str, unit: &str, measured: &[Measured]) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let columns: Vec<Column> = WAYS
        .iter()
        .zip(measured)
        .map(|(way, measured)| Column { name: way.name().to_owned(), value: report::median(&measured.rate) })
        .collect();
    plot::columns(&path.with_file_name(format!("{stem}-{suffix}.svg")), title, unit, &columns)
}

/// Something that runs in a namespace until it is dropped.
pub struct Process(Child);

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("bench: a process had ended by itself");
        }
    }
}

pub(super) fn start(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = namespace.command(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    Ok(Process(
        command
            .spawn()
            .with_context(|| format!("cannot run {program}; `cargo xtask setup --for bench` installs it"))?,
    ))
}

/// nginx on every server: a short answer, and connections that are kept as long as clients like.
fn start_servers(lab: &Lab) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for host in &lab.servers {
        let directory = lab.run().directory();
        let config = directory.join(format!("nginx-{}.conf", host.name));
        let text = format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\npid {dir}/nginx-{name}.pid;\nerror_log /dev/null;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n access_log off;\n keepalive_requests 1000000000;\n \
             server {{ listen 80 backlog=4096; location / {{ return 200 \"{name}\\n\"; }} }}\n}}\n",
            dir = directory.display(),
            name = host.name
        );
        fs::write(&config, text)?;
        servers.push(start(host.namespace(), "nginx", &["-c", &config.display().to_string()])?);
    }
    for host in &lab.servers {
        wait_for(lab, host.addresses.ipv4.into())?;
    }
    Ok(servers)
}

fn wait_for(lab: &Lab, address: IpAddr) -> Result<()> {
    let client = lab.clients[0].namespace();
    // nginx does not name itself as the lab's servers do: that it answers is enough.
    let answers = || fetch(client, (address, 80).into(), &Query::get("/"), Duration::from_secs(1)).is_ok();
    Ok(wait_until(&format!("{address} answers"), PATIENCE, answers)?)
}

/// A way that is set up.
struct Running {
    way: Way,
    gateway: Option<Gateway>,
    process: Option<Process>,
}

impl Running {
    fn start(way: Way, lab: &Lab) -> Result<Self> {
        let namespace = &lab.gateway.namespace;
        let directory = lab.run().directory();
        let vip = way.vip();
        let servers: Vec<String> = lab.servers.iter().map(|host| host.addresses.ipv4.to_string()).collect();
        let mut running = Self { way, gateway: None, process: None };
        match way {
            Way::Routing => {
                // By ports, as otherwise one client would have one server.
                namespace.sysctl(&[("ipv4/fib_multipath_hash_policy", "1")])?;
                let hops: Vec<String> = servers.iter().map(|server| format!("nexthop via {server}")).collect();
                namespace.ip(&[format!("route add {vip}/32 {}", hops.join(" "))])?;
            }
            Way::Nftables => {
                let map: Vec<String> =
                    servers.iter().enumerate().map(|(index, server)| format!("{index} : {server}")).collect();
                let rules = format!(
                    "table ip bench {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  ip daddr {vip} tcp \
                     dport 80 dnat to numgen inc mod {} map {{ {} }}\n }}\n}}\n",
                    servers.len(),
                    map.join(", ")
                );
                let file = directory.join("bench.nft");
                fs::write(&file, rules)?;
                tool(namespace, "nft", &["-f", &file.display().to_string()])?;
            }
            Way::Nginx => {
                namespace.ip(&[format!("addr add {vip}/32 dev lo")])?;
                let upstreams: Vec<String> = servers.iter().map(|server| format!("server {server}:80;")).collect();
                let config = directory.join("stream.conf");
                let text = format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\npid \
                     {dir}/stream.pid;\nerror_log /dev/null;\nevents {{ worker_connections 8192; }}\nstream {{\n upstream \
                     servers {{ {} }}\n server {{ listen {vip}:80 backlog=4096; proxy_pass servers; }}\n}}\n",
                    upstreams.join(" "),
                    dir = directory.display()
                );
                fs::write(&config, text)?;
                running.process = Some(start(namespace, "nginx", &["-c", &config.display().to_string()])?);
            }
            Way::Haproxy => {
                namespace.ip(&[format!("addr add {vip}/32 dev lo")])?;
                let lines: Vec<String> =
                    servers.iter().enumerate().map(|(index, server)| format!(" server s{index} {server}:80")).collect();
                let config = directory.join("haproxy.cfg");
                let text = format!(
                    "global\n maxconn 8192\n nbthread 2\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout \
                     server 30s\nlisten bench\n bind {vip}:80\n balance roundrobin\n{}\n",
                    lines.join("\n")
                );
                fs::write(&config, text)?;
                running.process = Some(start(namespace, "haproxy", &["-f", &config.display().to_string()])?);
            }
            Way::Ours(mode) => {
                let mut services = format!("[[service]]\nname = \"web\"\nmode = {mode:?}\nlisten = [\"{vip}:80\"]\n");
                if mode == "nat" {
                    // Of its own: the proxies before it have left connections in TIME_WAIT, of the address that `nat`
                    // would take by itself and with timestamps of another clock.
                    services += &format!("nat_source = [\"{}\"]\n", lab.gateway.links[0].addresses.ipv4);
                }
                for server in &servers {
                    services += &format!("[[service.server]]\naddress = \"{server}\"\n");
                }
                let devices: Vec<String> = lab.gateway.links.iter().map(|link| format!("{:?}", link.device)).collect();
                let keys = format!("interfaces = [{}]\non_stop = \"remove\"", devices.join(", "));
                running.gateway = Some(Gateway::start_with(lab, &keys, &services)?);
            }
        }
        Ok(running)
    }

    fn wait(&self, lab: &Lab) -> Result<()> {
        wait_for(lab, self.way.vip().into())
    }

    fn stop(mut self, lab: &Lab) -> Result<()> {
        let namespace = &lab.gateway.namespace;
        let vip = self.way.vip();
        drop(self.process.take());
        if let Some(mut gateway) = self.gateway.take() {
            ensure!(gateway.stop(Signal::SIGTERM) == Some(0), "the gateway did not end well:\n{}", gateway.log());
        }
        match self.way {
            Way::Routing => namespace.ip(&[format!("route del {vip}/32")])?,
            Way::Nftables => tool(namespace, "nft", &["delete", "table", "ip", "bench"])?,
            Way::Nginx | Way::Haproxy => namespace.ip(&[format!("addr del {vip}/32 dev lo")])?,
            Way::Ours(_) => {}
        }
        Ok(())
    }
}

fn tool(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<()> {
    let output = namespace
        .command(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}; `cargo xtask setup --for bench` installs it"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn measure(lab: &Lab, arguments: &Arguments, way: Way, close: bool, measured: &mut Measured) -> Result<()> {
    let mut command = lab.clients[0].namespace().command("wrk");
    command.args(["--threads", "1", "--latency", "--duration", &format!("{}s", arguments.seconds)]);
    command.args(["--connections", &arguments.connections.to_string()]);
    if close {
        command.args(["--header", "Connection: close"]);
    }
    let output = command
        .arg(format!("http://{}/", way.vip()))
        .output()
        .context("cannot run wrk; `cargo xtask setup --for bench` installs it")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result =
        parse(&text).with_context(|| format!("wrk said:\n{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    measured.rate.push(result.0);
    measured.p50_us.push(result.1);
    measured.p99_us.push(result.2);
    Ok(())
}

/// Requests a second, p50 and p99 in microseconds.
fn parse(text: &str) -> Result<(f64, f64, f64)> {
    let field = |name: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("there is no `{name}`"))
    };
    if let Ok(errors) = field("Non-2xx or 3xx responses:") {
        bail!("{errors} answers were errors");
    }
    Ok((field("Requests/sec:")?.parse()?, microseconds(field("50%")?)?, microseconds(field("99%")?)?))
}

fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("`{text}` is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "  Latency Distribution\n     50%    1.21ms\n     99%  850.00us\nRequests/sec:  49612.33\nTransfer/sec:      7.71MB\n";
        assert_eq!(parse(text).expect("parsed"), (49612.33, 1210.0, 850.0));
        parse("Non-2xx or 3xx responses: 7\n").expect_err("errors are told");
    }
}
