//! What scenarios are made of.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use loadbalancer_tests::chance;
use loadbalancer_tests::lab::gateway::Gateway;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::{Addresses, LabConfig, Topology};
use loadbalancer_tests::lab::{Lab, vip4, vip6};
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::hold::{Held, Hold, Protocol};
use loadbalancer_tests::traffic::http::Seen;
use loadbalancer_tests::traffic::load::{Load, LoadReport, RunningLoad};
use loadbalancer_tests::traffic::server::{Ports, Server};

pub const SOON: Duration = Duration::from_secs(10);

/// A lab with its servers and a gateway; they go in the right order.
pub struct World {
    pub gateway: Gateway,
    pub servers: Vec<Server>,
    pub lab: Lab,
}

/// How servers are set up for a mode.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: &'static str,
    /// Family of the servers' addresses.
    pub outer_v6: bool,
    /// Families of the VIPs.
    pub vips: Vec<IpAddr>,
    /// Keys of the service.
    pub keys: String,
    /// Keys of each server.
    pub server_keys: [&'static str; 4],
    pub ports: Ports,
    /// Added to each server's address, as `:8080`.
    pub server_port: Option<u16>,
    pub lab: LabConfig,
    /// Keys of `[quality.channels]`.
    pub channel_quality: &'static str,
    /// So many of the last servers are standby servers.
    pub standby: usize,
    /// Keys of `[standby]`.
    pub standby_keys: String,
    pub http_only: bool,
}

impl Setup {
    pub fn new(mode: &'static str) -> Self {
        let topology = if mode == "dsr-l2" { Topology::Segment } else { Topology::Routed };
        Self {
            mode,
            outer_v6: false,
            vips: vec![vip4(1).into()],
            keys: String::new(),
            server_keys: [""; 4],
            ports: Ports::default(),
            server_port: None,
            lab: LabConfig { topology, ..LabConfig::default() },
            channel_quality: "",
            standby: 0,
            standby_keys: String::new(),
            http_only: false,
        }
    }

    /// On both families, where each server has both.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn check(self) -> Self {
        let check =
            "check = { type = \"tcp\", interval = \"100ms\", timeout = \"300ms\", rise = 2, fall = 2, port = 80 }\n";
        self.with(|setup| setup.keys += check)
    }

    /// The configuration of the service for the servers of a lab.
    pub fn services(&self, lab: &Lab) -> String {
        let (own, pool) = lab.servers.split_at(lab.servers.len() - self.standby);
        let services = self.services_of(&own.iter().collect::<Vec<_>>());
        let mut text = String::new();
        if self.standby > 0 {
            writeln!(text, "[standby]\n{}", self.standby_keys).expect("written");
            for host in pool {
                let address = self.addresses(host)[0];
                writeln!(text, "[[standby.server]]\nname = {:?}\naddress = \"{address}\"\nweight = 20", host.name)
                    .expect("written");
            }
        }
        for channel in &lab.channels {
            let both = |addresses: &Addresses| format!("[\"{}\", \"{}\"]", addresses.ipv4, addresses.ipv6);
            // In a segment there is none.
            let next_hop = channel.next_hop.as_ref().map(|router| format!("next_hop = {}\n", both(router)));
            writeln!(
                text,
                "[[channel]]\nname = {0:?}\ninterface = {0:?}\n{1}source = {2}",
                channel.name,
                next_hop.unwrap_or_default(),
                both(&channel.source)
            )
            .expect("written");
        }
        // Two services of one file may not both bring the table.
        let quality = match self.channel_quality {
            "" => String::new(),
            keys => format!("\n[quality.channels]\n{keys}\n"),
        };
        format!("{text}{services}{quality}")
    }

    pub fn services_of(&self, hosts: &[&Host]) -> String {
        let mut text = String::new();
        let listens: Vec<String> = self
            .vips
            .iter()
            .flat_map(|vip| {
                let ports: &[&str] = if self.http_only { &["80/tcp"] } else { &["80/tcp", "7/tcp", "7/udp"] };
                ports.iter().map(move |port| match vip {
                    IpAddr::V4(vip) => format!("\"{vip}:{port}\""),
                    IpAddr::V6(vip) => format!("\"[{vip}]:{port}\""),
                })
            })
            .collect();
        writeln!(
            text,
            "[[service]]\nname = \"web\"\nmode = {:?}\nlisten = [{}]\n{}",
            self.mode,
            listens.join(", "),
            self.keys
        )
        .expect("written");
        if self.lab.channels > 0 {
            let names: Vec<String> = (1..=self.lab.channels).map(|n| format!("\"channel{n}\"")).collect();
            writeln!(text, "channels = [{}]", names.join(", ")).expect("written");
        }
        for host in hosts {
            let number: usize = host.name.trim_start_matches("server").parse().expect("servers are numbered");
            for addr in self.addresses(host) {
                let address = match self.server_port {
                    Some(port) => SocketAddr::new(addr, port).to_string(),
                    None => addr.to_string(),
                };
                let suffix = if self.addresses(host).len() > 1 && addr.is_ipv6() { "-v6" } else { "" };
                writeln!(
                    text,
                    "[[service.server]]\nname = \"{}{suffix}\"\naddress = \"{address}\"\n{}",
                    host.name,
                    self.server_keys[number - 1]
                )
                .expect("written");
            }
        }
        text
    }

    /// The addresses by which a service knows a server.
    fn addresses(&self, host: &Host) -> Vec<IpAddr> {
        let (v4, v6) = (host.addresses.ipv4.into(), host.addresses.ipv6.into());
        if self.mode.starts_with("dsr") {
            return vec![if self.outer_v6 { v6 } else { v4 }];
        }
        let has = |ipv6: bool| self.vips.iter().any(|vip| vip.is_ipv6() == ipv6);
        [(has(false), v4), (has(true), v6)].into_iter().filter(|(has, _)| *has).map(|(_, addr)| addr).collect()
    }

    pub fn up(self) -> World {
        self.up_with("")
    }

    /// For HTTP alone, on servers that may have another port for it.
    pub fn up_http_only(mut self) -> World {
        self.http_only = true;
        self.up()
    }

    /// With more keys in `[gateway]`.
    pub fn up_with(self, keys: &str) -> World {
        let lab = Lab::up(&self.lab).unwrap_or_else(|error| panic!("{error}"));
        if self.mode.starts_with("dsr") {
            self.vips.iter().for_each(|vip| lab.add_vip_to_servers(*vip).expect("VIP added"));
        }
        if matches!(self.mode, "dsr-ipip" | "dsr-gue") {
            lab.servers.iter().for_each(|host| host.set_decap().unwrap_or_else(|error| panic!("{error}")));
        }
        let start = |host: &Host| Server::start(host.namespace(), &host.name, self.ports);
        let servers = lab.servers.iter().map(|host| start(host).unwrap_or_else(|error| panic!("{error}"))).collect();
        let devices: Vec<String> = lab.gateway.links.iter().map(|link| format!("{:?}", link.device)).collect();
        let keys = format!("interfaces = [{}]\n{keys}", devices.join(", "));
        let gateway = Gateway::start_with(&lab, &keys, &self.services(&lab)).unwrap_or_else(|error| panic!("{error}"));
        World { gateway, servers, lab }
    }
}

/// Both families of VIPs.
pub fn both() -> Vec<IpAddr> {
    vec![vip4(1).into(), vip6(1).into()]
}

impl World {
    /// Which server answers, and what it sees.
    pub fn seen(&self, client: usize, vip: IpAddr) -> Seen {
        self.try_seen(client, vip).unwrap_or_else(|error| panic!("{error}\n{}", self.tell()))
    }

    pub fn try_seen(&self, client: usize, vip: IpAddr) -> Result<Seen, String> {
        let client = &self.lab.clients[client];
        let answer = fetch(client.namespace(), SocketAddr::new(vip, 80), &Query::get("/"), Duration::from_secs(3))
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
    }

    /// Requests with a connection each, by default from the first client.
    pub fn load(&self, vip: IpAddr, change: impl FnOnce(&mut Load)) -> RunningLoad {
        let mut load = Load::new(SocketAddr::new(vip, 80));
        load.query.close = true;
        change(&mut load);
        load.start(self.lab.clients[0].namespace()).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn requests(&self, vip: IpAddr, count: u64) -> LoadReport {
        let report = self.load(vip, |load| load.max_requests = count).wait();
        self.assert_clean(&report);
        assert_eq!(report.ok, count);
        report
    }

    /// The same, when nobody could tell what went wrong.
    pub fn requests_without_controller(&self, vip: IpAddr, count: u64) {
        let report = self.load(vip, |load| load.max_requests = count).wait();
        assert_eq!((report.ok, report.failed()), (count, 0), "{:?}", report.failures);
    }

    /// Flows that stay open and are used all the time.
    pub fn hold(&self, vip: IpAddr, protocol: Protocol, flows: usize) -> Held {
        let hold = Hold {
            target: SocketAddr::new(vip, 7),
            protocol,
            flows,
            // No more than 2,000 a second in all.
            every: Duration::from_millis(10).max(flows as u32 * Duration::from_micros(500)),
            // A flow over a way that loses some is slow, not broken.
            timeout: if protocol == Protocol::Udp { Duration::from_millis(200) } else { 6 * SOON },
            max_time: Duration::from_secs(120),
        };
        let held = hold.start(self.lab.clients[1].namespace()).unwrap_or_else(|error| panic!("{error}"));
        held.wait_exchanges(2, SOON).unwrap_or_else(|error| panic!("{error}\n{}", self.tell()));
        held
    }

    /// How often a client's kernel has sent a first packet again, as nothing had come back for a second (RFC 6298). It tells what
    /// came at once, however busy the machine is.
    pub fn sent_again(&self, client: usize) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
        let text = self.lab.clients[client].namespace().run(read).expect("in the namespace").expect("procfs is there");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut counters = names.split_whitespace().zip(values.split_whitespace());
        let (_, count) = counters.find(|(name, _)| *name == "TCPSynRetrans").expect("the kernel counts them");
        count.parse().expect("a number")
    }

    /// The server answered as many requests as a share of them may be.
    pub fn assert_share(&self, report: &LoadReport, server: &str, share: f64) {
        let count = report.by_server.get(server).copied().unwrap_or_default();
        let likely = chance::counts(report.ok, share);
        assert!(likely.contains(&count), "{server}: {count} of {}, not {likely:?}\n{}", report.ok, self.tell());
    }

    pub fn assert_clean(&self, report: &LoadReport) {
        assert_eq!(report.failed(), 0, "{:?} {:?}\n{}", report.errors, report.failures, self.tell());
        assert!(report.ok > 0);
    }

    /// No held flow is broken or has changed its server, and all go on.
    pub fn assert_held(&self, held: &Held) {
        held.wait_exchanges(3, SOON).unwrap_or_else(|error| panic!("{error}\n{}", self.tell()));
        assert_eq!(held.broken(), [], "{}", self.tell());
        assert_eq!(held.moved(), [], "{}", self.tell());
    }

    /// Frames of an outcome, over all services.
    pub fn outcome(&self, label: &str) -> u64 {
        let snapshot = self.gateway.snapshot();
        snapshot.services.iter().filter_map(|service| service.outcomes.get(label)).sum()
    }

    /// For messages of failed tests.
    pub fn tell(&self) -> String {
        let pins = self.gateway.pins.display().to_string();
        format!("{}\n{}", self.gateway.ask(&["stats", "--pins", &pins]), self.gateway.log())
    }
}
