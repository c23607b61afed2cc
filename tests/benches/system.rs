//! Requests per second through the gateway, against what else could do its work, on the same hosts and in the same run.
//!
//! One client with wrk, four servers with nginx, and on the gateway in turn: kernel routing over several paths, nftables
//! DNAT, nginx and HAProxy as TCP proxies, and each of our modes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::gateway::Gateway;
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::lab::{Lab, vip4};
use loadbalancer_tests::report::{self, Bar, Figure};
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::wrk;
use nix::sys::signal::Signal;

use super::plot::{self, Column};

const PATIENCE: Duration = Duration::from_secs(10);

/// Compares our modes with other ways to balance HTTP.
#[derive(Parser)]
pub struct Arguments {
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

/// What balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balancer {
    Routing,
    Nftables,
    Nginx,
    Haproxy,
    Ours(&'static str),
}

const BALANCERS: [Balancer; 9] = [
    Balancer::Routing,
    Balancer::Nftables,
    Balancer::Nginx,
    Balancer::Haproxy,
    Balancer::Ours("nat"),
    Balancer::Ours("dnat"),
    Balancer::Ours("dsr-l2"),
    Balancer::Ours("dsr-ipip"),
    Balancer::Ours("dsr-gue"),
];

impl Balancer {
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
        vip4(1 + BALANCERS.iter().position(|balancer| *balancer == self).unwrap_or(0) as u8)
    }
}

/// What was measured of a balancer, one entry per round.
#[derive(Clone, Debug, Default)]
struct Measured {
    rate: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

pub fn run(arguments: &Arguments) -> Result<bool> {
    let lab = Lab::up(&LabConfig { clients: 1, ..LabConfig::default() })?;
    BALANCERS.iter().try_for_each(|balancer| lab.add_vip_to_servers(balancer.vip().into()))?;
    lab.servers.iter().try_for_each(|host| host.set_decap())?;
    let _servers = start_servers(&lab)?;
    let mut keep = vec![Measured::default(); BALANCERS.len()];
    let mut close = vec![Measured::default(); BALANCERS.len()];
    for round in 0..arguments.rounds {
        for (index, balancer) in BALANCERS.into_iter().enumerate() {
            eprint!("\r\x1b[2Kround {}/{}: {}", round + 1, arguments.rounds, balancer.name());
            let running = Running::start(balancer, &lab).with_context(|| balancer.name())?;
            running.wait(&lab).with_context(|| balancer.name())?;
            measure(&lab, arguments, balancer, false, &mut keep[index]).with_context(|| balancer.name())?;
            measure(&lab, arguments, balancer, true, &mut close[index]).with_context(|| balancer.name())?;
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

fn of<'a>(measured: &'a [Measured], balancer: &str) -> &'a Measured {
    let index = BALANCERS.iter().position(|candidate| candidate.name() == balancer).unwrap_or(0);
    &measured[index]
}

fn figures(name: &str, unit: &'static str, measured: &[Measured]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (balancer, measured) in BALANCERS.iter().zip(measured) {
        figures.push(Figure::new(format!("{name}, {}", balancer.name()), unit, measured.rate.clone()));
        figures.push(Figure::new(format!("{name}, {}: p50", balancer.name()), "us", measured.p50_us.clone()));
        figures.push(Figure::new(format!("{name}, {}: p99", balancer.name()), "us", measured.p99_us.clone()));
    }
    // Of each round the best of our modes against another way in the same round.
    let best_against = |other: &str| -> Vec<f64> {
        let other = &of(measured, other).rate;
        let ours = || BALANCERS.iter().zip(measured).filter(|(balancer, _)| matches!(balancer, Balancer::Ours(_)));
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
    let line = |measured: &[Measured], balancer: Balancer| {
        let own = of(measured, balancer.name());
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
    for balancer in BALANCERS {
        println!("{:10} {}   {}", balancer.name(), line(keep, balancer), line(close, balancer));
    }
    println!();
}

fn draw(path: &Path, suffix: &str, title: &str, unit: &str, measured: &[Measured]) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let columns: Vec<Column> = BALANCERS
        .iter()
        .zip(measured)
        .map(|(balancer, measured)| Column { name: balancer.name().to_owned(), value: report::median(&measured.rate) })
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

/// A balancer that is set up.
struct Running {
    balancer: Balancer,
    gateway: Option<Gateway>,
    process: Option<Process>,
}

impl Running {
    fn start(balancer: Balancer, lab: &Lab) -> Result<Self> {
        let namespace = &lab.gateway.namespace;
        let directory = lab.run().directory();
        let vip = balancer.vip();
        let servers: Vec<String> = lab.servers.iter().map(|host| host.addresses.ipv4.to_string()).collect();
        let mut running = Self { balancer, gateway: None, process: None };
        match balancer {
            Balancer::Routing => {
                // By ports, as otherwise one client would have one server.
                namespace.sysctl(&[("ipv4/fib_multipath_hash_policy", "1")])?;
                let hops: Vec<String> = servers.iter().map(|server| format!("nexthop via {server}")).collect();
                namespace.ip(&[format!("route add {vip}/32 {}", hops.join(" "))])?;
            }
            Balancer::Nftables => {
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
            Balancer::Nginx => {
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
            Balancer::Haproxy => {
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
            Balancer::Ours(mode) => {
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
        wait_for(lab, self.balancer.vip().into())
    }

    fn stop(mut self, lab: &Lab) -> Result<()> {
        let namespace = &lab.gateway.namespace;
        let vip = self.balancer.vip();
        drop(self.process.take());
        if let Some(mut gateway) = self.gateway.take() {
            ensure!(gateway.stop(Signal::SIGTERM) == Some(0), "the gateway did not end well:\n{}", gateway.log());
        }
        match self.balancer {
            Balancer::Routing => namespace.ip(&[format!("route del {vip}/32")])?,
            Balancer::Nftables => tool(namespace, "nft", &["delete", "table", "ip", "bench"])?,
            Balancer::Nginx | Balancer::Haproxy => namespace.ip(&[format!("addr del {vip}/32 dev lo")])?,
            Balancer::Ours(_) => {}
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

fn measure(lab: &Lab, arguments: &Arguments, balancer: Balancer, close: bool, measured: &mut Measured) -> Result<()> {
    let mut command = lab.clients[0].namespace().command("wrk");
    command.args(["--threads", "1", "--latency", "--duration", &format!("{}s", arguments.seconds)]);
    command.args(["--connections", &arguments.connections.to_string()]);
    if close {
        command.args(["--header", "Connection: close"]);
    }
    let output = command
        .arg(format!("http://{}/", balancer.vip()))
        .output()
        .context("cannot run wrk; `cargo xtask setup --for bench` installs it")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result =
        wrk::parse(&text).with_context(|| format!("wrk said:\n{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    measured.rate.push(result.requests_per_second);
    measured.p50_us.push(result.p50_us);
    measured.p99_us.push(result.p99_us);
    Ok(())
}
