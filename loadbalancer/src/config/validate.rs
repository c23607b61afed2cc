//! What only the whole tells: names and addresses that clash, and what a mode cannot do.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use super::channel::ChannelPlaces;
use super::error::Errors;
use super::model::{Config, Listen, Mode, Protocol, Server, Service, Through};
use super::parse::{MOST_BACKENDS, MOST_RINGS, MOST_SERVICES};
use super::queue::QueuePlaces;
use super::standby::PoolPlaces;
use super::walk::Span;
use crate::health::{Asks, CheckKind};

/// Where things stand in the file.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub interfaces: Vec<Span>,
    /// The value of `probe_ports`, if it is set.
    pub probe_ports: Option<Span>,
    /// The values of `[limits]` that are set, by key.
    pub limits: HashMap<&'static str, Span>,
    pub channels: Vec<ChannelPlaces>,
    pub standby: PoolPlaces,
    pub services: Vec<ServicePlaces>,
}

#[derive(Debug, Default)]
pub(super) struct ServicePlaces {
    /// The service's name.
    pub service: Span,
    /// What follows from the mode is not known.
    pub wrong_mode: bool,
    pub listens: Vec<Span>,
    /// Some addresses were told wrong already: that one is missing needs not be told.
    pub wrong_listens: bool,
    pub nat_sources: Vec<Span>,
    pub check: Span,
    pub monitors: Vec<Span>,
    pub tiers: Span,
    pub queue: QueuePlaces,
    /// The servers' addresses.
    pub servers: Vec<Span>,
    /// Their names, where not given their addresses.
    pub server_names: Vec<Span>,
    /// Where their channels are named.
    pub server_channels: Vec<Span>,
    /// Servers that were told wrong already.
    pub broken_servers: Vec<Span>,
}

pub(super) fn validate(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    interfaces(config, places, errors);
    names(config, places, errors);
    listens(config, places, errors);
    for (service, place) in config.services.iter().zip(&places.services) {
        servers(service, place, errors);
        families(service, place, errors);
        ports(service, place, errors);
        vips_to_ask(config, service, place, errors);
        channels(config, places, (service, place), errors);
        super::tiers::validate(service, &place.tiers, errors);
        super::queue::validate(service, place, errors);
    }
    super::standby::validate(config, places, errors);
    addresses(config, places, errors);
    replies(config, places, errors);
    probe_ports(config, places, errors);
    limits(config, places, errors);
}

fn interfaces(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let mut seen = HashMap::new();
    for (interface, span) in config.gateway.interfaces.iter().zip(&places.interfaces) {
        if let Some(first) = seen.insert(&interface.name, span) {
            let message =
                format!("interface {} is named twice, first in line {}", interface.name, errors.line(first.start));
            errors.add(span.clone(), message, "remove one of them");
        }
    }
}

/// A service in a message: its name may be what is wrong with it.
pub(super) fn title(service: &Service) -> String {
    if service.name.is_empty() { "a service without a name".to_owned() } else { format!("service {}", service.name) }
}

fn names(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let mut seen: HashMap<&str, &Span> = HashMap::new();
    for (service, place) in config.services.iter().zip(&places.services) {
        if service.name.is_empty() {
            continue;
        }
        if let Some(first) = seen.get(service.name.as_str()) {
            let message = format!("there is a service {} already, in line {}", service.name, errors.line(first.start));
            errors.add(place.service.clone(), message, "give each service a name of its own");
        } else {
            seen.insert(&service.name, &place.service);
        }
    }
}

fn listens(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let mut seen: HashMap<Listen, (String, &Span)> = HashMap::new();
    for (service, place) in config.services.iter().zip(&places.services) {
        for (listen, span) in service.listen.iter().zip(&place.listens) {
            if let Some((other, first)) = seen.get(listen) {
                let line = errors.line(first.start);
                let message = format!("{listen} is taken already, by {other} in line {line}");
                errors.add(span.clone(), message, "give it another port or address, or merge the services");
            } else {
                seen.insert(*listen, (title(service), span));
            }
        }
    }
}

fn servers(service: &Service, place: &ServicePlaces, errors: &mut Errors<'_>) {
    if service.servers.is_empty() && place.broken_servers.is_empty() {
        let help = "add [[service.server]] with address = \"10.0.0.11\"";
        errors.add(place.service.clone(), format!("{} has no servers", title(service)), help);
    }
    let mut addresses: HashMap<(IpAddr, Option<u16>), &Span> = HashMap::new();
    let mut names: HashMap<&str, &Span> = HashMap::new();
    for ((server, span), name_span) in service.servers.iter().zip(&place.servers).zip(&place.server_names) {
        if let Some(first) = addresses.get(&(server.addr, server.port)) {
            let line = errors.line(first.start);
            let message = format!("{} is a server of this service already, in line {line}", server.name);
            errors.add(span.clone(), message, "remove one of them, or give it a larger weight");
            continue;
        }
        addresses.insert((server.addr, server.port), span);
        if let Some(first) = names.get(server.name.as_str()) {
            let line = errors.line(first.start);
            let message = format!("there is a server {} in this service already, in line {line}", server.name);
            errors.add(name_span.clone(), message, "give each server of a service a name of its own");
        } else {
            names.insert(&server.name, name_span);
        }
    }
}

/// `nat` and `dnat` keep the packet's family.
fn families(service: &Service, place: &ServicePlaces, errors: &mut Errors<'_>) {
    let mode = service.mode.label();
    if service.mode.is_dsr() || place.wrong_mode {
        return;
    }
    let name = |ipv6: bool| if ipv6 { "IPv6" } else { "IPv4" };
    for (server, span) in service.servers.iter().zip(&place.servers) {
        let ipv6 = server.addr.is_ipv6();
        let listened = service.listen.iter().any(|listen| listen.addr.is_ipv6() == ipv6);
        if !service.listen.is_empty() && !listened && !place.wrong_listens {
            let message =
                format!("server {} has {}, on which {} does not listen", server.name, name(ipv6), title(service));
            let help = format!(
                "{mode} keeps a packet's family: listen on an {} address, or use dsr-ipip or dsr-gue",
                name(ipv6)
            );
            errors.add(span.clone(), message, help);
        }
    }
    let mut told = HashSet::new();
    for (listen, span) in service.listen.iter().zip(&place.listens) {
        let ipv6 = listen.addr.is_ipv6();
        let served = service.servers.iter().any(|server| server.addr.is_ipv6() == ipv6);
        if !served && !service.servers.is_empty() && place.broken_servers.is_empty() && told.insert(ipv6) {
            let message = format!("{} listens on {}, but no server has it", title(service), name(ipv6));
            let help = format!(
                "{mode} keeps a packet's family: add a server with an {} address, or use dsr-ipip or dsr-gue",
                name(ipv6)
            );
            errors.add(span.clone(), message, help);
        }
    }
}

/// Every channel of a server must be able to lead there, and have a port to ask at.
fn channels(config: &Config, places: &Places, (service, place): (&Service, &ServicePlaces), errors: &mut Errors<'_>) {
    let mut told = HashSet::new();
    for (server, span) in service.servers.iter().zip(&place.server_channels) {
        for position in &server.channels {
            let (Some(channel), Some(channel_place)) =
                (config.channels.get(usize::from(*position)), places.channels.get(usize::from(*position)))
            else {
                continue;
            };
            if channel_place.wrong {
                continue;
            }
            if let Some((message, help)) = super::channel::misfit(channel, service, server.addr) {
                if told.insert((span.start, message.clone())) {
                    errors.add(span.clone(), message, help);
                }
            } else if service.port_of(server, &channel.probe.kind, channel.probe.port).is_none()
                && told.insert((span.start, channel.name.clone()))
            {
                let message =
                    format!("the probe of channel {} has no port to ask server {} at", channel.name, server.name);
                errors.add(span.clone(), message, "add `port` to [channel.probe], or use type = \"icmp\"");
            }
        }
        let of_family = |addresses: &[IpAddr]| addresses.iter().any(|addr| addr.is_ipv6() == server.addr.is_ipv6());
        let first = server.channels.first().and_then(|position| config.channels.get(usize::from(*position)));
        if service.mode == Mode::Nat
            && let Some(first) = first
            && !of_family(&first.source)
            && !of_family(&service.nat_source)
            && told.insert((span.start, "source".to_owned()))
        {
            let message = format!("nat over channels has no source address for server {}", server.name);
            let help = "add `nat_source` to the service, an address of the gateway to which servers answer whatever channel \
                        is used, or `source` to its first channel";
            errors.add(span.clone(), message, help);
        }
    }
}

fn ports(service: &Service, place: &ServicePlaces, errors: &mut Errors<'_>) {
    for (server, span) in service.servers.iter().zip(&place.servers) {
        if service.mode.is_dsr() && server.port.is_some() {
            let message =
                format!("server {} has a port, but {} does not rewrite packets", server.name, service.mode.label());
            errors.add(span.clone(), message, "remove the port: the server must listen on the service's own");
        }
    }
    if service.listen.is_empty() || place.wrong_listens {
        return;
    }
    for Asked { what, kind, port, span, section, .. } in asked(service, place, Through::Server) {
        let portless = |server: &&Server| service.port_of(server, kind, port).is_none();
        if let Some(server) = service.servers.iter().find(portless) {
            // A listener of another protocol says nothing about where.
            let protocol = if kind.asks() == Asks::Udp { "UDP" } else { "TCP" };
            let message = format!(
                "{what} of server {} has no port to ask: neither it nor a {protocol} listener of {} has one",
                server.name,
                title(service)
            );
            errors.add(span.clone(), message, format!("add `port` to {section}"));
        }
    }
}

/// A check or a monitor.
struct Asked<'a> {
    what: &'static str,
    kind: &'a CheckKind,
    port: Option<u16>,
    timeout: Duration,
    span: &'a Span,
    section: &'static str,
}

fn asked<'a>(
    service: &'a Service,
    place: &'a ServicePlaces,
    through: Through,
) -> impl Iterator<Item = Asked<'a>> + use<'a> {
    let check = service.check.iter().filter(move |check| check.through == through).map(|check| Asked {
        what: "the check",
        kind: &check.kind,
        port: check.port,
        timeout: check.timeout,
        span: &place.check,
        section: "[service.check]",
    });
    let monitors = service.monitors.iter().zip(&place.monitors);
    let monitors = monitors.filter(move |(monitor, _)| monitor.through == through).map(|(monitor, span)| Asked {
        what: "this monitor",
        kind: &monitor.kind,
        port: monitor.port,
        timeout: monitor.timeout,
        span,
        section: "[[service.monitors]]",
    });
    check.chain(monitors)
}

/// What asks through a VIP needs one to ask, and an address to ask from.
fn vips_to_ask(config: &Config, service: &Service, place: &ServicePlaces, errors: &mut Errors<'_>) {
    if service.listen.is_empty() || place.wrong_listens || place.wrong_mode {
        return;
    }
    let family = |ipv6: bool| if ipv6 { "IPv6" } else { "IPv4" };
    for Asked { what, kind, port, timeout, span, section } in asked(service, place, Through::Vip) {
        if kind.asks() == Asks::Any {
            // Told already.
            continue;
        }
        let kept = config.timeouts.tcp_closed;
        if service.mode == Mode::Nat && timeout >= kept {
            let message =
                format!("{what} waits {timeout:?}, but `nat` keeps the flow of a probe for {kept:?} of silence");
            let help = format!("set `timeout` in {section} below `tcp_closed` of [timeouts], or raise that");
            errors.add(span.clone(), message, help);
        }
        let protocol = if kind.asks() == Asks::Udp { "UDP" } else { "TCP" };
        for server in &service.servers {
            let Some(vip) = service.vip_of(server.addr, kind, port) else {
                let at = port.map_or_else(|| "with a port".to_owned(), |port| format!("on port {port}"));
                let message = format!(
                    "{what} of server {} has no VIP to go through: {} has no {protocol} listener {at} for it",
                    server.name,
                    title(service)
                );
                errors.add(
                    span.clone(),
                    message,
                    format!("set `port` in {section} to a {protocol} port on which the service listens"),
                );
                break;
            };
            if config.gateway.probe_source.contains(&vip.ip()) {
                let message = format!("{what} goes through {vip}, which is also its `probe_source`");
                errors.add(span.clone(), message, "set `probe_source` in [gateway] to an address of the gateway's own");
                break;
            }
            let has_source = config.gateway.probe_source.iter().any(|source| source.is_ipv6() == vip.is_ipv6());
            if vip.is_ipv6() != server.addr.is_ipv6() && !has_source {
                let wanted = family(vip.is_ipv6());
                let message = format!(
                    "{what} goes through {vip}, but the way to server {} has {} only",
                    server.name,
                    family(server.addr.is_ipv6())
                );
                let help = format!(
                    "add `probe_source` to [gateway]: an {wanted} address of the gateway that its servers answer to"
                );
                errors.add(span.clone(), message, help);
                break;
            }
        }
    }
}

/// Each probe through a VIP has a source port of its own, which `nat` must not give to a client.
fn probe_ports(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let probes = |service: &Service, place: &ServicePlaces| asked(service, place, Through::Vip).count();
    let services = || config.services.iter().zip(&places.services);
    let of_servers: usize = services().map(|(service, place)| probes(service, place) * service.servers.len()).sum();
    let most_of_pool =
        services().filter(|(service, _)| service.standby.is_some()).map(|(s, place)| probes(s, place)).max();
    let used = of_servers + most_of_pool.unwrap_or(0) * config.standby.servers.len();
    let Some((_, first)) = services().find(|(service, place)| probes(service, place) > 0) else {
        return;
    };
    let ports = &config.gateway.probe_ports;
    let span = places.probe_ports.as_ref().unwrap_or(&first.service);
    if used > ports.len() {
        let message = format!("there are {used} probes through VIPs, but {} source ports for them", ports.len());
        errors.add(span.clone(), message, "set a wider `probe_ports` in [gateway]");
    }
    for (service, _) in services().filter(|(service, _)| service.mode == Mode::Nat) {
        if ports.start() <= service.nat_ports.end() && service.nat_ports.start() <= ports.end() {
            let message = format!(
                "the source ports {}-{} of probes through VIPs are also in `nat_ports` of {}",
                ports.start(),
                ports.end(),
                title(service)
            );
            errors.add(span.clone(), message, "set other `probe_ports` in [gateway], or other `nat_ports`");
            break;
        }
    }
}

/// VIPs, servers and sources are different machines.
fn addresses(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let mut vips: HashMap<IpAddr, &Span> = HashMap::new();
    for (service, place) in config.services.iter().zip(&places.services) {
        for (listen, span) in service.listen.iter().zip(&place.listens) {
            vips.entry(listen.addr).or_insert(span);
        }
    }
    for (service, place) in config.services.iter().zip(&places.services) {
        for (server, span) in service.servers.iter().zip(&place.servers) {
            if let Some(vip) = vips.get(&server.addr) {
                let message =
                    format!("server {} has the virtual address of line {}", server.name, errors.line(vip.start));
                errors.add(span.clone(), message, "give the server's own address: packets to it would come back here");
            }
        }
        for (source, span) in service.nat_source.iter().zip(&place.nat_sources) {
            if let Some(vip) = vips.get(source) {
                let message = format!("the source {source} is the virtual address of line {}", errors.line(vip.start));
                errors.add(
                    span.clone(),
                    message,
                    "use another address of the gateway: replies could not be told apart",
                );
            }
        }
    }
}

/// The replies of a `dnat` server are told by its address and port alone, so these stand behind one VIP only.
fn replies(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    // Per server address and protocol: port (none: any), VIP, and where.
    type Taken<'a> = (Option<u16>, Listen, String, &'a Span);
    let mut taken: HashMap<(IpAddr, Protocol), Vec<Taken<'_>>> = HashMap::new();
    for (service, place) in config.services.iter().zip(&places.services).filter(|(s, _)| s.mode == Mode::Dnat) {
        for (server, span) in service.servers.iter().zip(&place.servers) {
            for listen in service.listen.iter().filter(|listen| listen.addr.is_ipv4() == server.addr.is_ipv4()) {
                let port = server.port.or(listen.port);
                let others = taken.entry((server.addr, listen.protocol)).or_default();
                let clash = others.iter().find(|(other, ..)| *other == port || other.is_none() || port.is_none());
                if let Some((_, vip, name, first)) = clash {
                    let message = format!(
                        "server {} stands behind {listen} and behind {vip} of {name} (line {})",
                        server.name,
                        errors.line(first.start)
                    );
                    let help = "in dnat the gateway tells the VIP of a reply by the server's address and port alone: give it \
                                a port of its own per VIP, or use nat";
                    errors.add(span.clone(), message, help);
                    break;
                }
                others.push((port, *listen, title(service), span));
            }
        }
    }
}

/// What of each size of the kernel's tables is used.
fn limits(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let limits = &config.limits;
    let responds = config.services.iter().any(|service| service.responder().is_some());
    let servers = if responds { "servers and responders" } else { "servers" };
    // Changes are built beside what is in use, hence two rings. Of VIPs a service has four per unit of `services`.
    let resources: [Resource; 4] = [
        Resource::new("services (one per family in nat and dnat)", limits.services, ("services", MOST_SERVICES), 1),
        Resource::new(servers, limits.backends, ("backends", MOST_BACKENDS), 1),
        Resource::new("rings (two per service and tier)", limits.rings, ("rings", MOST_RINGS), 1),
        Resource::new("addresses to listen on", limits.vips, ("services", MOST_SERVICES), 4),
    ];
    for (position, resource) in resources.iter().enumerate() {
        let mut used = if resource.key.0 == "backends" { config.standby.servers.len() } else { 0 };
        let mut first_without_room = None;
        for (service, place) in config.services.iter().zip(&places.services) {
            used += uses(service)[position];
            if used > resource.limit as usize {
                first_without_room.get_or_insert(&place.service);
            }
        }
        let Some(first) = first_without_room else {
            continue;
        };
        let (key, most) = resource.key;
        let wanted = used.div_ceil(resource.per_unit);
        let help = if wanted <= most as usize {
            format!("set {key} = {wanted} or higher in [limits]")
        } else {
            format!("[limits] takes {key} up to {most}: give some services to another gateway")
        };
        // A default stands nowhere in the file.
        let span = places.limits.get(key).unwrap_or(first).clone();
        errors.add(span, format!("there are {used} {}, but room for {}", resource.what, resource.limit), help);
    }
}

struct Resource {
    what: &'static str,
    limit: u32,
    /// Of `[limits]`, and the most that it takes.
    key: (&'static str, u32),
    per_unit: usize,
}

impl Resource {
    const fn new(what: &'static str, limit: u32, key: (&'static str, u32), per_unit: usize) -> Self {
        Self { what, limit, key, per_unit }
    }
}

/// Services in the kernel, servers with responders, rings and VIPs that a service takes.
fn uses(service: &Service) -> [usize; 4] {
    let split = !service.mode.is_dsr();
    let families: HashSet<bool> = service.listen.iter().map(|listen| split && listen.addr.is_ipv6()).collect();
    let tiers: HashSet<(bool, u8)> =
        service.servers.iter().map(|server| (split && server.addr.is_ipv6(), server.tier)).collect();
    // A listener has its own entry, and one for ICMP and for the source.
    let vips = service.listen.len() * 2 + families.len() * 3;
    let responders = if service.responder().is_some() { families.len() } else { 0 };
    [families.len(), service.servers.len() + responders, tiers.len() * 2, vips]
}
