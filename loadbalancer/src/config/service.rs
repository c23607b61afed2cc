//! `[[service]]`: what clients connect to, and who serves them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;

use loadbalancer_common::net::GUE_PORT;
use loadbalancer_common::signal::MOST_FLOWS_PER_SAMPLE;

use super::document::{self, Agent, Check, Monitor, Service};
use super::forms::{check_name, gateway_address, is_usable, ports, repeated_families, write_as};
use super::queue::PlacedQueue;
use super::schema::table::{Keys, Table};
use super::schema::value::{At, Given, List, Rejection};
use super::schema::walk::Section;
use super::server::PlacedServer;
use super::{agent, channel, check, quality, queue, server, standby, tiers};
use crate::health::CheckKind;
use decide::plan::topology::Server;
use decide::quality::Settings as QualitySettings;
use decide::sampling::PassiveShare;
use decide::standby::settings::ServiceSettings as StandbySettings;
use decide::tiers::Settings as TierSettings;
use model::address::{Listen, Protocol};
use model::mode::{Affinity, Mode, OnServerDown, Refuse};

/// Fewer source ports than this per address and server run out at once.
const MIN_NAT_PORTS: u16 = 64;
/// Of a service. Each asks every server, so more would be a mistake.
const MOST_MONITORS: usize = 16;
const NAT_PORTS: RangeInclusive<u16> = 10_000..=32_767;

#[derive(Clone, Debug)]
pub(super) struct ServiceKeys {
    /// Without a name, where the service begins.
    pub name: At<String>,
    pub listen: List<At<Listen>>,
    pub mode: Given<Mode>,
    affinity: Affinity,
    refuse: Refuse,
    on_server_down: OnServerDown,
    pub nat_source: List<At<IpAddr>>,
    pub nat_ports: RangeInclusive<u16>,
    gue_port: u16,
    passive: PassiveShare,
    pub check: Option<At<Check>>,
    pub monitors: List<At<Monitor>>,
    agent: Option<Agent>,
    quality: QualitySettings,
    pub standby: Option<StandbySettings>,
    pub tiers: Option<At<TierSettings>>,
    pub queue: Option<PlacedQueue>,
    channels: List<At<String>>,
    pub servers: List<PlacedServer>,
}

impl ServiceKeys {
    fn new(quality: QualitySettings) -> Self {
        Self {
            name: At::default(),
            listen: List::default(),
            mode: Given::default(),
            affinity: Affinity::default(),
            refuse: Refuse::default(),
            on_server_down: OnServerDown::default(),
            nat_source: List::default(),
            nat_ports: NAT_PORTS,
            gue_port: GUE_PORT,
            passive: PassiveShare::Auto,
            check: None,
            monitors: List::default(),
            agent: None,
            quality,
            standby: None,
            tiers: None,
            queue: None,
            channels: List::default(),
            servers: List::default(),
        }
    }

    /// In a message: its name may be what is wrong with it.
    pub fn title(&self) -> String {
        let name = &self.name.value;
        if name.is_empty() { "a service without a name".to_owned() } else { format!("service {name}") }
    }

    /// See [`Service::port_of`].
    pub fn port_of(&self, server: &Server, kind: &CheckKind, own: Option<u16>) -> Option<u16> {
        document::port_of(self.listen.values(), server, kind, own)
    }

    /// See [`Service::vip_of`].
    pub fn vip_of(&self, server: IpAddr, kind: &CheckKind, own: Option<u16>) -> Option<SocketAddr> {
        document::vip_of((self.listen.values(), self.mode.value), server, kind, own)
    }

    /// The gateway itself answers who has waited for too long.
    pub fn responds(&self) -> bool {
        self.queue.as_ref().is_some_and(|placed| placed.queue.responder.is_some())
    }

    pub fn document(self) -> Service {
        Service {
            name: self.name.value,
            listen: self.listen.into_values(),
            mode: self.mode.value,
            affinity: self.affinity,
            refuse: self.refuse,
            on_server_down: self.on_server_down,
            nat_source: self.nat_source.into_values(),
            nat_ports: self.nat_ports,
            gue_port: self.gue_port,
            passive: self.passive,
            check: self.check.map(|at| at.value),
            monitors: self.monitors.into_values(),
            agent: self.agent,
            quality: self.quality,
            standby: self.standby,
            tiers: self.tiers.map(|at| at.value),
            queue: self.queue.map(|placed| Arc::new(placed.document())),
            servers: self.servers.all.into_iter().map(|placed| placed.server).collect(),
        }
    }
}

/// With the constants of all services, and the names of all channels.
pub(super) fn table(usual: &QualitySettings, channels: Rc<[String]>) -> Table<ServiceKeys> {
    let doc = "What clients connect to, and who serves them.";
    let keys = Keys::new("[[service]]", doc, ServiceKeys::new(usual.clone()))
        .string("name", |it| &mut it.name, "web", "In reports and commands.")
        .required("name = \"web\"")
        .texts(
            "listen",
            |it| &mut it.listen,
            listen,
            "192.0.2.1:80/tcp",
            "ADDRESS:PORT/PROTOCOL: \"*\" is any port, and without a protocol it is tcp.",
        )
        .required("listen = [\"192.0.2.1:80/tcp\"]")
        .shown("[\"192.0.2.10:80/tcp\"]")
        .choice(
            "mode",
            |it| &mut it.mode,
            &Mode::ALL.map(|mode| (mode.label(), mode)),
            "What becomes of a packet on its way to a server.",
        );
    let keys = nat_keys(flow_keys(keys))
        .number::<u16>("gue_port", |it| &mut it.gue_port, 1..=65_535, "UDP port of servers that the tunnels lead to.")
        .only("mode", &["dsr-gue"])
        .text(
            "passive",
            |it| &mut it.passive,
            passive_share,
            "1/16",
            "Which share of the flows is watched for latency, losses and refusals of servers: \"auto\" (all of a quiet \
             service, fewer of a busy one), 1/1, 1/2, 1/4 to 1/4096, or \"off\".",
        )
        .shown("\"auto\"")
        .table("check", |it| &mut it.check, |_| check::check())
        .tables("monitors", |it| &mut it.monitors, |_| check::monitor())
        .most(MOST_MONITORS, "monitors", "remove those that tell least")
        .table("agent", |it| &mut it.agent, |_| agent::table())
        .table("quality", |it| &mut it.quality, |it| quality::of_service(&it.quality))
        .table("standby", |it| &mut it.standby, |_| standby::of_service())
        .table("tiers", |it| &mut it.tiers, |_| tiers::table())
        .table("queue", |it| &mut it.queue, |it| queue::of_service(it.refuse));
    let doc = "Channels that lead to all servers that name none themselves. Without: the routing table gives the way.";
    let of_server = Rc::clone(&channels);
    channel::channels_key(keys, |it| &mut it.channels, doc)
        .tables("server", |it| &mut it.servers, move |_| server::of_service(Rc::clone(&of_server)))
        .build(move |section, it| Some(build(section, it, &channels)))
}

/// How flows are told apart, and what becomes of those that cannot be served.
fn flow_keys(keys: Keys<ServiceKeys>) -> Keys<ServiceKeys> {
    keys.choice(
        "affinity",
        |it| &mut it.affinity,
        &[("flow", Affinity::Flow), ("client", Affinity::Client)],
        "\"flow\": each connection by itself; \"client\": all of a client on one server.",
    )
    .choice(
        "refuse",
        |it| &mut it.refuse,
        &[("reset", Refuse::Reset), ("drop", Refuse::Drop)],
        "What clients get when no server takes them: \"reset\" or \"drop\".",
    )
    .choice(
        "on_server_down",
        |it| &mut it.on_server_down,
        &[("keep", OnServerDown::Keep), ("reset", OnServerDown::Reset)],
        "Live connections of a server that fails its checks: \"keep\" or \"reset\".",
    )
}

fn nat_keys(keys: Keys<ServiceKeys>) -> Keys<ServiceKeys> {
    keys.texts(
        "nat_source",
        |it| &mut it.nat_source,
        gateway_address,
        "10.0.0.1",
        "Source addresses of nat, one per family. Without: the gateway's own on the way to the server.",
    )
    .only("mode", &["nat"])
    .shown("[\"10.0.0.1\", \"fd00::1\"]")
    .text(
        "nat_ports",
        |it| &mut it.nat_ports,
        nat_ports,
        "10000-32767",
        "Source ports of nat: as many flows at a time per server and source address.",
    )
    .only("mode", &["nat"])
}

fn build(section: &Section<'_, '_>, mut it: ServiceKeys, channels: &Rc<[String]>) -> ServiceKeys {
    if !it.name.span.is_empty() {
        check_name(section, &it.name, "service");
    }
    it.name = it.name.or_at(&section.span);
    if section.is_empty_list("listen") {
        let help = "name one address at least: listen = [\"192.0.2.1:80/tcp\"]";
        section.error(section.value_span("listen"), "`listen` is empty", help);
    }
    if !it.mode.rejected {
        let mode = it.mode.value.label();
        section.reject_unused("mode", mode, |key, wanted| {
            (format!("`{key}` means nothing in mode {mode}"), format!("remove it, or set mode = \"{wanted}\""))
        });
    }
    for at in repeated_families(&it.nat_source.all) {
        let help = "give one address per family: its ports are taken per server, 22,768 by default";
        section.error(at.span.clone(), "a second source of the same family", help);
    }
    if let Some(queue) = &mut it.queue {
        queue.marked |= section.has("agent") || section.has_within("server", "high_water");
    }
    let usual = channel::positions(section, &it.channels, channels);
    for server in &mut it.servers.all {
        server.or_channels(usual.as_ref());
    }
    it
}

/// A share such as `1/16`, or `auto`, or `off`.
fn passive_share(text: &str) -> Result<PassiveShare, Rejection> {
    match (text, text.strip_prefix("1/").map(str::parse::<u16>)) {
        ("auto", _) => Ok(PassiveShare::Auto),
        ("off", _) => Ok(PassiveShare::OneIn(0)),
        (_, Some(Ok(flows))) if flows.is_power_of_two() && flows <= MOST_FLOWS_PER_SAMPLE => {
            Ok(PassiveShare::OneIn(flows))
        }
        _ => {
            let rule = format!("not \"auto\", \"off\" or 1/N with N a power of two up to {MOST_FLOWS_PER_SAMPLE}");
            Err(write_as("passive", "1/16", format!("`{text}` is {rule}")))
        }
    }
}

fn nat_ports(text: &str) -> Result<RangeInclusive<u16>, Rejection> {
    ports(text, MIN_NAT_PORTS, "it is to be at least 64 ports within 1024-65535")
        .map_err(|error| write_as("nat_ports", "10000-32767", error))
}

fn listen(text: &str) -> Result<Listen, Rejection> {
    let help = || "write ADDRESS:PORT/PROTOCOL, such as \"192.0.2.1:80/tcp\", \"[2001:db8::1]:*/udp\"".to_owned();
    let bad = || (format!("`{text}` is no address to listen on"), help());
    let (address, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((address, "tcp")) => (address, Protocol::Tcp),
        Some((address, "udp")) => (address, Protocol::Udp),
        Some((_, other)) => {
            return Err((format!("`{other}` is no protocol of a service"), "use tcp or udp".to_owned()));
        }
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let addr: IpAddr = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => IpAddr::V6(v6.parse().map_err(|_| bad())?),
        None => IpAddr::V4(host.parse().map_err(|_| bad())?),
    };
    if !is_usable(addr) {
        let message = format!("{addr} cannot be a virtual address");
        return Err((message, "use a unicast address that is routed to this gateway".to_owned()));
    }
    let port = match port {
        "*" => None,
        "0" => return Err(("there is no port 0".to_owned(), "name a port, or * for any".to_owned())),
        number => {
            let number: NonZeroU16 = number.parse().map_err(|_| bad())?;
            Some(number.get())
        }
    };
    Ok(Listen { addr, port, protocol })
}
