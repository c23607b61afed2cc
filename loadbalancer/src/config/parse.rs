//! From text to a configuration: every key with its type, its range and its default.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use loadbalancer_common::clock::{MAX_TICKS, seconds_of_ticks};
use loadbalancer_common::net::GUE_PORT;
use loadbalancer_common::service::MAX_TIERS;
use loadbalancer_common::signal::MOST_FLOWS_PER_SAMPLE;
use toml::de::DeTable;

use super::channel;
use super::check;
use super::error::{ConfigErrors, Errors};
use super::files::Files;
use super::model::{
    Admin, Affinity, Channel, Config, Gateway, Interface, Listen, Mode, OnIncompatible, OnServerDown, OnStop,
    PassiveShare, Protocol, Refuse, Server, Service, Timeouts, XdpMode,
};
use super::validate::{self, Places, ServicePlaces};
use super::walk::{At, Element, Section, Span};
use super::{quality, queue, standby, tiers};
use crate::dataplane::kernel::Sizes;
use crate::quality::Settings as QualitySettings;

/// Longest name of an interface (IFNAMSIZ without the final zero).
const MAX_INTERFACE: usize = 15;
/// Longest path of a Unix socket (`sun_path` without the final zero).
const MAX_SOCKET: usize = 107;
/// Bounds of what `[limits]` takes.
pub(super) const MOST_SERVICES: u32 = 4_096;
/// Numbers of servers have 16 bits; zero is none, and the count with it is to fit as well.
pub(super) const MOST_BACKENDS: u32 = 65_534;
pub(super) const MOST_RINGS: u32 = 4_096;
/// Fewer source ports than this per address and server run out at once.
const MIN_NAT_PORTS: u16 = 64;
/// Of a service. Each asks every server, so more would be a mistake.
const MOST_MONITORS: usize = 16;
pub(super) const DEFAULT_NAT_PORTS: RangeInclusive<u16> = 10_000..=32_767;
/// Beyond those that Linux gives to others (`ip_local_port_range`).
const DEFAULT_PROBE_PORTS: RangeInclusive<u16> = 61_000..=65_535;

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors::unreadable(&name, &error))?;
        Self::parse_with(&name, &text, Files { directory: path.parent() })
    }

    /// Reads a text; `name` stands for it in messages. Names of files are taken as they are.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::parse_with(name, text, Files::default())
    }

    fn parse_with(name: &str, text: &str, files: Files<'_>) -> Result<Self, ConfigErrors> {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let errors = RefCell::new(Errors::new(name, text));
        if !syntax.is_empty() {
            for error in syntax {
                let span = error.span().unwrap_or(text.len()..text.len());
                errors.borrow_mut().add(span, error.message().trim(), "see https://toml.io for the syntax");
            }
            // What the rest means is not known.
            return Err(errors.into_inner().finish().unwrap_or(ConfigErrors(Vec::new())));
        }
        let root = Section::new(table.get_ref(), 0..0, "the configuration", &errors);
        let (config, places) = configuration(&root, files);
        root.finish();
        validate::validate(&config, &places, &mut errors.borrow_mut());
        match errors.into_inner().finish() {
            None => Ok(config),
            Some(errors) => Err(errors),
        }
    }
}

fn configuration(root: &Section<'_, '_>, files: Files<'_>) -> (Config, Places) {
    let mut places = Places::default();
    let gateway = match root.section("gateway", "[gateway]") {
        Some(section) => gateway(section, &mut places),
        None => {
            root.required::<()>("gateway", "[gateway] with `interfaces = [\"eth0\"]`", None);
            gateway_defaults()
        }
    };
    let limits = root.section("limits", "[limits]").map(|section| limits(section, &mut places));
    let timeouts = root.section("timeouts", "[timeouts]").map(timeouts);
    let admin = root.section("admin", "[admin]").map(admin);
    let metrics = root.section("metrics", "[metrics]").map(metrics);
    let (channels, channel_places) = channel::channels(root);
    places.channels = channel_places;
    let (pool, pool_places) = match root.section("standby", "[standby]") {
        Some(section) => standby::pool(section, &channels),
        None => Default::default(),
    };
    places.standby = pool_places;
    let quality = root.section("quality", "[quality]").map(quality::of_all).unwrap_or_default();
    let queue = root.section("queue", "[queue]").map(queue::of_all).unwrap_or_default();
    let mut services = Vec::new();
    for section in root.sections("service", "[[service]]") {
        let (service, place) = service(section, &channels, &quality.settings, files);
        services.push(service);
        places.services.push(place);
    }
    let config = Config {
        gateway,
        limits: limits.unwrap_or_default(),
        timeouts: timeouts.unwrap_or_default(),
        admin: admin.unwrap_or_default(),
        metrics,
        channels,
        standby: pool,
        quality,
        queue,
        services,
    };
    (config, places)
}

fn gateway_defaults() -> Gateway {
    Gateway {
        interfaces: Vec::new(),
        on_stop: OnStop::default(),
        on_incompatible: OnIncompatible::default(),
        pin_directory: "/sys/fs/bpf/loadbalancer".into(),
        hash_seed: None,
        channel_marks: 0x4c42_0000,
        probe_source: Vec::new(),
        probe_ports: DEFAULT_PROBE_PORTS,
        vip_interface: None,
    }
}

fn gateway(section: Section<'_, '_>, places: &mut Places) -> Gateway {
    let mut gateway = gateway_defaults();
    let example = "interfaces = [\"eth0\"]";
    let elements = section.required("interfaces", example, section.elements("interfaces", example));
    if let Some(elements) = elements {
        if section.is_empty_list("interfaces") {
            section.error(elements.span, "`interfaces` is empty", format!("name one at least: {example}"));
        }
        for element in elements.value {
            let (name, xdp) = match element {
                Element::Text(name) => (interface_name(&section, name), XdpMode::Auto),
                Element::Table(table) => {
                    let name = table.required("name", "name = \"eth0\"", table.string("name", "eth0"));
                    let name = name.and_then(|name| interface_name(&table, name));
                    let modes = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
                    let xdp = table.choice("xdp", &modes).map_or(XdpMode::Auto, |mode| mode.value);
                    table.finish();
                    (name, xdp)
                }
            };
            if let Some(name) = name {
                places.interfaces.push(name.span.clone());
                gateway.interfaces.push(Interface { name: name.value, xdp });
            }
        }
    }
    set(&mut gateway.on_stop, section.choice("on_stop", &[("keep", OnStop::Keep), ("remove", OnStop::Remove)]));
    set(
        &mut gateway.on_incompatible,
        section.choice("on_incompatible", &[("refuse", OnIncompatible::Refuse), ("replace", OnIncompatible::Replace)]),
    );
    if let Some(path) = section.string("pin_directory", "/sys/fs/bpf/loadbalancer") {
        let parsed = Path::new(path.value);
        let below = parsed
            .strip_prefix("/sys/fs/bpf")
            .is_ok_and(|rest| rest.components().count() > 0 && !path.value.contains('.') && !path.value.ends_with('/'));
        if below {
            gateway.pin_directory = parsed.to_owned();
        } else {
            let help = "name a directory below /sys/fs/bpf, without dots: /sys/fs/bpf/loadbalancer";
            section.error(path.span, format!("`{}` cannot hold pins", path.value), help);
        }
    }
    gateway.hash_seed = section.number::<i64>("hash_seed", 1..=i64::MAX).map(|seed| seed.value as u64);
    set(&mut gateway.channel_marks, section.number("channel_marks", 256..=0xffff_ff00));
    for text in section.strings("probe_source", "10.0.0.1").map(|sources| sources.value).unwrap_or_default() {
        match text.value.parse::<IpAddr>() {
            Ok(addr) if is_usable(addr) => {
                if gateway.probe_source.iter().any(|other| other.is_ipv4() == addr.is_ipv4()) {
                    section.error(text.span, "a second source of the same family", "give one address per family");
                }
                gateway.probe_source.push(addr);
            }
            _ => {
                let message = format!("`{}` is no address of a host", text.value);
                section.error(text.span, message, "give an address of the gateway, such as \"10.0.0.1\"");
            }
        }
    }
    let ports = section.parsed("probe_ports", "61000-65535", |text| {
        port_range(text, 1, "it is to be the first and the last port, within 1024-65535")
    });
    places.probe_ports = ports.as_ref().map(|ports| ports.span.clone());
    set(&mut gateway.probe_ports, ports);
    gateway.vip_interface =
        section.string("vip_interface", "eth0").and_then(|name| interface_name(&section, name)).map(|name| name.value);
    section.finish();
    gateway
}

/// A share such as `1/16`, or `auto`, or `off`.
fn passive_share(text: &str) -> Result<PassiveShare, String> {
    match (text, text.strip_prefix("1/").map(str::parse::<u16>)) {
        ("auto", _) => Ok(PassiveShare::Auto),
        ("off", _) => Ok(PassiveShare::OneIn(0)),
        (_, Some(Ok(flows))) if flows.is_power_of_two() && flows <= MOST_FLOWS_PER_SAMPLE => {
            Ok(PassiveShare::OneIn(flows))
        }
        _ => {
            Err(format!("`{text}` is not \"auto\", \"off\" or 1/N with N a power of two up to {MOST_FLOWS_PER_SAMPLE}"))
        }
    }
}

pub(super) fn interface_name(section: &Section<'_, '_>, name: At<&str>) -> Option<At<String>> {
    let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
    if name.value.is_empty() || name.value.len() > MAX_INTERFACE || name.value.contains(bad) {
        let help = format!("use a name that `ip link` shows, of 1 to {MAX_INTERFACE} bytes");
        section.error(name.span, format!("`{}` is no name of an interface", name.value), help);
        return None;
    }
    Some(name.map(str::to_owned))
}

fn limits(section: Section<'_, '_>, places: &mut Places) -> Sizes {
    let mut sizes = Sizes::default();
    for (key, field, least, most) in [
        ("services", &mut sizes.services, 1, MOST_SERVICES),
        ("backends", &mut sizes.backends, 1, MOST_BACKENDS),
        ("rings", &mut sizes.rings, 2, MOST_RINGS),
    ] {
        let size = section.number(key, least..=i64::from(most));
        if let Some(size) = &size {
            places.limits.insert(key, size.span.clone());
        }
        set(field, size);
    }
    set(&mut sizes.flows, section.number("flows", 1_000..=64_000_000));
    set(&mut sizes.nat_flows, section.number("nat_flows", 1_000..=16_000_000));
    sizes.vips = sizes.vips.max(sizes.services * 4);
    section.finish();
    sizes
}

impl Default for Timeouts {
    /// TCP established: RFC 5382, REQ-5. UDP: RFC 4787, REQ-5. TCP after both FINs: it covers what is still under way.
    fn default() -> Self {
        Self {
            tcp_syn: Duration::from_secs(20),
            tcp_established: Duration::from_secs(7_440),
            tcp_fin: Duration::from_secs(120),
            tcp_closed: Duration::from_secs(10),
            udp: Duration::from_secs(300),
            client: Duration::from_secs(600),
        }
    }
}

fn timeouts(section: Section<'_, '_>) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let longest = Duration::from_secs(seconds_of_ticks(u64::from(MAX_TICKS)));
    for (key, field) in [
        ("tcp_syn", &mut timeouts.tcp_syn),
        ("tcp_established", &mut timeouts.tcp_established),
        ("tcp_fin", &mut timeouts.tcp_fin),
        ("tcp_closed", &mut timeouts.tcp_closed),
        ("udp", &mut timeouts.udp),
        ("client", &mut timeouts.client),
    ] {
        let why = "an affinity entry has 13 bits for its age";
        set(field, section.duration(key, Duration::from_secs(1)..=longest, why));
    }
    section.finish();
    timeouts
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/loadbalancer.sock".into(), mode: 0o600 }
    }
}

fn admin(section: Section<'_, '_>) -> Admin {
    let mut admin = Admin::default();
    if let Some(path) = section.string("socket", "/run/loadbalancer.sock") {
        if path.value.starts_with('/') && !path.value.ends_with('/') && path.value.len() <= MAX_SOCKET {
            admin.socket = PathBuf::from(path.value);
        } else {
            let help = format!("give an absolute path of at most {MAX_SOCKET} bytes: /run/loadbalancer.sock");
            section.error(path.span, format!("`{}` cannot be a socket", path.value), help);
        }
    }
    let mode = section.parsed("mode", "0600", |text| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("`{text}` are no permission bits")),
    });
    set(&mut admin.mode, mode);
    section.finish();
    admin
}

fn metrics(section: Section<'_, '_>) -> SocketAddr {
    let example = "127.0.0.1:9077";
    let mut address: SocketAddr = ([127, 0, 0, 1], 9077).into();
    set(
        &mut address,
        section
            .parsed("listen", example, |text| text.parse().map_err(|_| format!("`{text}` is no address with a port"))),
    );
    section.finish();
    address
}

pub(super) fn set<T>(field: &mut T, value: Option<At<T>>) {
    if let Some(value) = value {
        *field = value.value;
    }
}

pub(super) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn service(
    section: Section<'_, '_>,
    channels: &[Channel],
    usual: &QualitySettings,
    files: Files<'_>,
) -> (Service, ServicePlaces) {
    let mut place = ServicePlaces { service: section.span.clone(), ..ServicePlaces::default() };
    let mut service = Service {
        name: String::new(),
        listen: Vec::new(),
        mode: Mode::default(),
        affinity: Affinity::default(),
        refuse: Refuse::default(),
        on_server_down: OnServerDown::default(),
        nat_source: Vec::new(),
        nat_ports: DEFAULT_NAT_PORTS,
        gue_port: GUE_PORT,
        passive: PassiveShare::Auto,
        check: None,
        monitors: Vec::new(),
        agent: None,
        quality: usual.clone(),
        standby: None,
        tiers: None,
        queue: None,
        servers: Vec::new(),
    };
    if let Some(name) = section.required("name", "name = \"web\"", section.string("name", "web")) {
        if !is_name(name.value) {
            let help = "use 1 to 63 letters, digits, `.`, `_` or `-`";
            section.error(name.span.clone(), format!("`{}` is no name of a service", name.value), help);
        }
        service.name = name.value.to_owned();
        place.service = name.span;
    }
    let example = "listen = [\"192.0.2.1:80/tcp\"]";
    if let Some(listen) = section.required("listen", example, section.strings("listen", "192.0.2.1:80/tcp")) {
        if section.is_empty_list("listen") {
            section.error(listen.span, "`listen` is empty", format!("name one address at least: {example}"));
        }
        for text in listen.value {
            match parse_listen(text.value) {
                Ok(parsed) => {
                    service.listen.push(parsed);
                    place.listens.push(text.span);
                }
                Err((message, help)) => {
                    place.wrong_listens = true;
                    section.error(text.span, message, help);
                }
            }
        }
    }
    let modes = Mode::ALL.map(|mode| (mode.label(), mode));
    let mode = section.choice("mode", &modes);
    place.wrong_mode = mode.is_none() && section.has("mode");
    set(&mut service.mode, mode);
    set(&mut service.affinity, section.choice("affinity", &[("flow", Affinity::Flow), ("client", Affinity::Client)]));
    set(&mut service.refuse, section.choice("refuse", &[("reset", Refuse::Reset), ("drop", Refuse::Drop)]));
    set(
        &mut service.on_server_down,
        section.choice("on_server_down", &[("keep", OnServerDown::Keep), ("reset", OnServerDown::Reset)]),
    );
    nat_keys(&section, &mut service, &mut place);
    if let Some(port) = section.number::<u16>("gue_port", 1..=65_535) {
        useless(&section, "gue_port", &service, &place, Mode::DsrGue);
        service.gue_port = port.value;
    }
    set(&mut service.passive, section.parsed("passive", "1/16", passive_share));
    if let Some(check) = section.section("check", "[service.check]") {
        place.check = check.span.clone();
        service.check = check::check(check);
    }
    let monitors = section.sections("monitors", "[[service.monitors]]");
    if let Some(first_too_many) = monitors.get(MOST_MONITORS) {
        let message = format!("there are {} monitors, but room for {MOST_MONITORS}", monitors.len());
        section.error(first_too_many.span.clone(), message, "remove those that tell least");
    }
    for monitor in monitors {
        let span = monitor.span.clone();
        if let Some(monitor) = check::monitor(monitor) {
            service.monitors.push(monitor);
            place.monitors.push(span);
        }
    }
    service.agent = section.section("agent", "[service.agent]").and_then(check::agent);
    if let Some(section) = section.section("quality", "[service.quality]") {
        service.quality = quality::of_service(section, usual);
    }
    service.standby = section.section("standby", "[service.standby]").map(standby::of_service);
    if let Some(tiers) = section.section("tiers", "[service.tiers]") {
        place.tiers = tiers.span.clone();
        service.tiers = Some(tiers::of_service(tiers));
    }
    if let Some(section) = section.section("queue", "[service.queue]") {
        let (queue, queue_place) = queue::of_service(section, service.refuse, files);
        service.queue = Some(Arc::new(queue));
        place.queue = queue_place;
    }
    place.queue.marked |= section.has("agent");
    let usual_channels = channel::named(&section, channels);
    for server in section.sections("server", "[[service.server]]") {
        let span = server.span.clone();
        let own_channels = channel::named(&server, channels);
        place.queue.marked |= server.has("high_water");
        if let Some((mut parsed, address, name)) = self::server(server) {
            if let Some(named) = own_channels.as_ref().or(usual_channels.as_ref()) {
                parsed.channels = named.value.clone();
                place.server_channels.push(named.span.clone());
            } else {
                place.server_channels.push(span.clone());
            }
            service.servers.push(parsed);
            place.servers.push(address);
            place.server_names.push(name);
        } else {
            place.broken_servers.push(span);
        }
    }
    section.finish();
    (service, place)
}

/// A key that another mode uses.
fn useless(section: &Section<'_, '_>, key: &str, service: &Service, place: &ServicePlaces, used_by: Mode) {
    if service.mode != used_by && !place.wrong_mode {
        let help = format!("remove it, or set mode = \"{}\"", used_by.label());
        section.error(section.key_span(key), format!("`{key}` means nothing in mode {}", service.mode.label()), help);
    }
}

fn nat_keys(section: &Section<'_, '_>, service: &mut Service, place: &mut ServicePlaces) {
    if let Some(sources) = section.strings("nat_source", "10.0.0.1") {
        useless(section, "nat_source", service, place, Mode::Nat);
        for text in sources.value {
            match text.value.parse::<IpAddr>() {
                Ok(addr) if is_usable(addr) => {
                    if service.nat_source.iter().any(|other| other.is_ipv4() == addr.is_ipv4()) {
                        let help = "give one address per family: its ports are taken per server, 22,768 by default";
                        section.error(text.span.clone(), "a second source of the same family", help);
                    }
                    service.nat_source.push(addr);
                    place.nat_sources.push(text.span);
                }
                _ => {
                    let message = format!("`{}` is no address of a host", text.value);
                    section.error(text.span, message, "give an address of the gateway, such as \"10.0.0.1\"");
                }
            }
        }
    }
    let ports = section.parsed("nat_ports", "10000-32767", |text| {
        port_range(text, MIN_NAT_PORTS, "it is to be at least 64 ports within 1024-65535")
    });
    if ports.is_some() {
        useless(section, "nat_ports", service, place, Mode::Nat);
    }
    set(&mut service.nat_ports, ports);
}

/// Whether a host may have the address.
pub(super) fn is_usable(addr: IpAddr) -> bool {
    let special = match addr {
        IpAddr::V4(addr) => addr.is_broadcast() || addr.is_link_local() || addr.octets()[0] == 0,
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some(),
    };
    !special && !addr.is_unspecified() && !addr.is_multicast() && !addr.is_loopback()
}

/// So many ports at least, as in `10000-32767`; `rule` says what else is wrong.
fn port_range(text: &str, fewest: u16, rule: &'static str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once('-').ok_or("it is no range")?;
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first >= 1024 && last >= first && last - first >= fewest - 1 => Ok(first..=last),
        _ => Err(rule),
    }
}

fn parse_listen(text: &str) -> Result<Listen, (String, String)> {
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
        number => {
            if number == "0" {
                return Err(("there is no port 0".to_owned(), "name a port, or * for any".to_owned()));
            }
            let number: NonZeroU16 = number.parse().map_err(|_| bad())?;
            Some(number.get())
        }
    };
    Ok(Listen { addr, port, protocol })
}

/// With the places of its address and of its name.
pub(super) fn server(section: Section<'_, '_>) -> Option<(Server, Span, Span)> {
    let example = "address = \"10.0.0.11:8080\"";
    let address = section.required("address", example, section.string("address", "10.0.0.11:8080"));
    let parsed = address.as_ref().and_then(|text| {
        let parsed = match text.value.parse::<SocketAddr>() {
            // A scope is for link-local addresses only, and would be lost.
            Ok(_) if text.value.contains('%') => None,
            Ok(address) if address.port() != 0 => Some((address.ip(), Some(address.port()))),
            Ok(_) => None,
            Err(_) => text.value.parse::<IpAddr>().ok().map(|addr| (addr, None)),
        };
        match parsed {
            Some((addr, _)) if !is_usable(addr) => {
                let help = "give the server's own unicast address, as the gateway reaches it";
                section.error(text.span.clone(), format!("{addr} cannot be a server"), help);
                None
            }
            None => {
                let help =
                    format!("write {example}, or without a port to keep the service's; IPv6: \"[fd00::11]:8080\"");
                section.error(text.span.clone(), format!("`{}` is no address", text.value), help);
                None
            }
            parsed => parsed,
        }
    });
    let name = section.string("name", "web1");
    if let Some(name) = &name
        && !is_name(name.value)
    {
        let help = "use 1 to 63 letters, digits, `.`, `_` or `-`";
        section.error(name.span.clone(), format!("`{}` is no name of a server", name.value), help);
    }
    let mut weight = 1;
    let mut tier = 0;
    set(&mut weight, section.number("weight", 0..=1_000));
    set(&mut tier, section.number("tier", 0..=MAX_TIERS as i64 - 1));
    let high_water =
        section.number::<u32>("high_water", 1..=1_000_000_000).and_then(|mark| NonZeroU32::new(mark.value));
    section.finish();
    let (addr, port) = parsed?;
    let span = address.map(|address| address.span)?;
    let default_name = match port {
        Some(port) => SocketAddr::new(addr, port).to_string(),
        None => addr.to_string(),
    };
    let (name, name_span) = name.map_or((default_name, span.clone()), |name| (name.value.to_owned(), name.span));
    Some((Server { name, addr, port, weight, tier, high_water, channels: Vec::new() }, span, name_span))
}
