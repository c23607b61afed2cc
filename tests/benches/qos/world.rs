//! Labs with servers that have a capacity, and with a gateway whose reports are read over its socket.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loadbalancer::api::client;
use loadbalancer::api::types::quality::ServerQuality;
use loadbalancer::api::types::{Change, ChannelsReport, QualityReport, QueueReport, StandbyReport};
use loadbalancer_tests::lab::gateway::Gateway;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::lab::{Lab, vip4};
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::hold::{Held, Hold, Protocol};
use loadbalancer_tests::traffic::load::{Load, Pace, RunningLoad};
use loadbalancer_tests::traffic::server::{Ports, Server};
use loadbalancer_tests::traffic::span::Span;
use tokio::runtime::Runtime;

/// Of a request, as of a client that then gives up.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Until something is up.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks at a report.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const WORKERS: u32 = 4;

/// Asks what clients ask.
pub const MEASURED: &str = "check = { type = \"http\", interval = \"100ms\", timeout = \"1s\", port = 80 }\n";
/// The same check, which then only tells whether the server is there.
pub const FIXED: &str = "check = { type = \"http\", interval = \"100ms\", timeout = \"1s\", port = 80 }\n\
                         quality = { weights = \"configured\" }\n";

/// What a `nat` service behind channels takes: the address of the return link.
pub const NAT_SOURCE: &str = "nat_source = [\"10.77.200.1\"]\n";

/// A server with four workers that need this time for a request, on average.
pub fn behaviour(mean: Duration) -> Behaviour {
    Behaviour::workers(WORKERS, mean)
}

/// Servers in a lab. They go before it.
pub struct Site {
    pub servers: Vec<Server>,
    pub lab: Lab,
}

impl Site {
    pub fn up(config: &LabConfig, behaviour: Behaviour) -> Result<Self> {
        let lab = Lab::up(config)?;
        let start = |host: &Host| {
            let server = Server::start(host.namespace(), &host.name, Ports::default())?;
            server.set_behaviour(behaviour);
            Ok(server)
        };
        let servers = lab.servers.iter().map(start).collect::<Result<_>>()?;
        Ok(Self { servers, lab })
    }

    /// Requests a second that all servers can serve.
    pub fn capacity(&self) -> f64 {
        self.servers.iter().map(|server| server.behaviour().capacity()).sum()
    }
}

/// A site with a gateway, which goes first.
pub struct World {
    pub gateway: Gateway,
    pub site: Site,
    runtime: Runtime,
}

impl World {
    pub fn up(site: Site, text: &str) -> Result<Self> {
        let gateway = Gateway::start(&site.lab, text)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { gateway, site, runtime })
    }

    pub fn quality(&self) -> Result<QualityReport> {
        Ok(self.runtime.block_on(client::quality(&self.gateway.socket))?)
    }

    pub fn channels(&self) -> Result<ChannelsReport> {
        Ok(self.runtime.block_on(client::channels(&self.gateway.socket))?)
    }

    pub fn standby(&self) -> Result<StandbyReport> {
        Ok(self.runtime.block_on(client::standby(&self.gateway.socket))?)
    }

    pub fn queue(&self) -> Result<QueueReport> {
        Ok(self.runtime.block_on(client::queue(&self.gateway.socket))?)
    }

    pub fn set_weight(&self, server: &str, weight: u16) -> Result<()> {
        self.runtime.block_on(client::change(&self.gateway.socket, server, &Change::Weight(weight)))?;
        Ok(())
    }

    pub fn server(&self, name: &str) -> Result<ServerQuality> {
        let servers = self.quality()?.services.into_iter().flat_map(|service| service.servers);
        servers.into_iter().find(|server| server.name == name).with_context(|| format!("there is no {name}"))
    }

    /// Waits until all servers are up and measured.
    pub fn wait_ready(&self) -> Result<()> {
        let ready = || {
            let report = self.quality()?;
            let mut servers = report.services.iter().flat_map(|service| &service.servers).peekable();
            Ok(servers.peek().is_some() && servers.all(|server| server.up && server.serving))
        };
        match until(PATIENCE, ready)? {
            Some(_) => Ok(()),
            None => bail!("not all servers came up:\n{}\n{}", self.gateway.ask(&["quality"]), self.gateway.log()),
        }
    }
}

/// Time until a condition holds; none if that takes longer than `at_most`.
pub fn until(at_most: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Option<Duration>> {
    let begun = Instant::now();
    while !condition()? {
        if begun.elapsed() > at_most {
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(Some(begun.elapsed()))
}

/// The time as a figure, in seconds; infinite if there is none.
pub fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |time| time.as_secs_f64())
}

pub fn vip(number: u8) -> IpAddr {
    vip4(number).into()
}

/// A service in TOML, with HTTP and echo at a virtual address, and hosts with keys of their own.
pub fn service(name: &str, mode: &str, vip: IpAddr, keys: &str, hosts: &[(&Host, String)]) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "[[service]]\nname = {name:?}\nmode = {mode:?}")?;
    writeln!(text, "listen = [\"{vip}:80/tcp\", \"{vip}:7/tcp\", \"{vip}:7/udp\"]\n{keys}")?;
    for (host, keys) in hosts {
        let address = host.addresses.ipv4;
        writeln!(text, "[[service.server]]\nname = {:?}\naddress = \"{address}\"\n{keys}", host.name)?;
    }
    Ok(text)
}

/// All channels of a lab in TOML.
pub fn channels(lab: &Lab) -> Result<String> {
    let mut text = String::new();
    for channel in &lab.channels {
        let source = channel.source.ipv4;
        writeln!(text, "[[channel]]\nname = {0:?}\ninterface = {0:?}\nsource = \"{source}\"", channel.name)?;
        // In a segment there is none.
        if let Some(router) = &channel.next_hop {
            writeln!(text, "next_hop = \"{}\"", router.ipv4)?;
        }
    }
    Ok(text)
}

/// Hosts without keys of their own.
pub fn plain(hosts: &[Host]) -> Vec<(&Host, String)> {
    hosts.iter().map(|host| (host, String::new())).collect()
}

/// Clients that come at random times, each with a connection and a request.
pub fn clients(from: &Namespace, vip: IpAddr, per_second: f64, seed: u64, time: Duration) -> Result<RunningLoad> {
    let mut load = Load::new(SocketAddr::new(vip, 80));
    load.query.close = true;
    load.pace = Pace::Poisson { per_second, max_in_flight: 8_000, seed };
    load.timeout = TIMEOUT;
    load.max_time = time;
    Ok(load.start(from)?)
}

/// In milliseconds, of all requests, where those without an answer took the time-out.
pub fn p99_ms(span: &Span) -> f64 {
    span.latency_of_all(0.99).unwrap_or(TIMEOUT).as_secs_f64() * 1e3
}

/// Flows that stay open.
pub fn hold(from: &Namespace, vip: IpAddr, protocol: Protocol, flows: usize, every: Duration) -> Result<Held> {
    let hold = Hold {
        target: SocketAddr::new(vip, 7),
        protocol,
        flows,
        every,
        timeout: if protocol == Protocol::Udp { Duration::from_millis(500) } else { Duration::from_secs(10) },
        max_time: Duration::from_secs(3_600),
    };
    let held = hold.start(from)?;
    held.wait_exchanges(2, PATIENCE)?;
    Ok(held)
}

/// Flows that broke or went to another server.
pub fn harmed(held: &Held) -> f64 {
    let flows = held.reports();
    flows.iter().filter(|flow| flow.broken.is_some() || !flow.moves.is_empty()).count() as f64
}
