//! `[[channel]]`: ways to servers, and which server is reached by which.

use std::net::IpAddr;
use std::time::Duration;

use super::check;
use super::model::{Channel, ChannelProbe, Service, Tunnel};
use super::parse::{interface_name, is_name, is_usable, set};
use super::walk::{At, Section, Span};
use crate::health::CheckKind;

/// A channel is known by 8 bits in the packet path.
pub(super) const MOST_CHANNELS: usize = 64;
/// A server has as many slots for paths.
pub(super) const MOST_OF_A_SERVER: usize = loadbalancer_common::backend::PATH_SLOTS;

/// Where things of a channel stand.
#[derive(Clone, Debug, Default)]
pub(super) struct ChannelPlaces {
    pub name: Span,
    /// Some of its addresses were told wrong already.
    pub wrong: bool,
}

pub(super) fn channels(root: &Section<'_, '_>) -> (Vec<Channel>, Vec<ChannelPlaces>) {
    let sections = root.sections("channel", "[[channel]]");
    if let Some(first_too_many) = sections.get(MOST_CHANNELS) {
        let message = format!("there are {} channels, but room for {MOST_CHANNELS}", sections.len());
        root.error(first_too_many.span.clone(), message, "give some servers to another gateway");
    }
    let mut channels: Vec<Channel> = Vec::new();
    let mut places: Vec<ChannelPlaces> = Vec::new();
    for section in sections {
        let (channel, place) = channel(section);
        if let Some(position) = channels.iter().position(|other| !other.name.is_empty() && other.name == channel.name) {
            let first = places[position].name.clone();
            let message = format!("there is a channel {} already, in line {}", channel.name, root.line(&first));
            root.error(place.name.clone(), message, "give each channel a name of its own");
        }
        let same = |other: &&Channel| {
            other.name != channel.name
                && (&other.interface, &other.next_hop, other.tunnel)
                    == (&channel.interface, &channel.next_hop, channel.tunnel)
        };
        if let Some(other) = channels.iter().find(same).filter(|_| !channel.interface.is_empty() && !place.wrong) {
            let message = format!("channel {} is the same way as channel {}", channel.name, other.name);
            let help = "give it another interface, next hop or tunnel, or remove it and add up the capacities: two names for \
                        one way would be taken for two ways that fail independently";
            root.error(place.name.clone(), message, help);
        }
        channels.push(channel);
        places.push(place);
    }
    (channels, places)
}

fn channel(section: Section<'_, '_>) -> (Channel, ChannelPlaces) {
    let mut place = ChannelPlaces { name: section.span.clone(), wrong: false };
    let mut channel = Channel {
        name: String::new(),
        interface: String::new(),
        next_hop: Vec::new(),
        source: Vec::new(),
        tunnel: None,
        capacity: 100,
        probe: ChannelProbe {
            kind: CheckKind::Icmp,
            port: None,
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(300),
        },
    };
    if let Some(name) = section.required("name", "name = \"fibre\"", section.string("name", "fibre")) {
        if !is_name(name.value) {
            let help = "use 1 to 63 letters, digits, `.`, `_` or `-`";
            section.error(name.span.clone(), format!("`{}` is no name of a channel", name.value), help);
        }
        channel.name = name.value.to_owned();
        place.name = name.span;
    }
    let interface = section.required("interface", "interface = \"eth1\"", section.string("interface", "eth1"));
    if let Some(name) = interface.and_then(|name| interface_name(&section, name)) {
        channel.interface = name.value;
    } else {
        place.wrong = true;
    }
    let mut addresses = |key: &'static str, what: &str| {
        let mut found: Vec<IpAddr> = Vec::new();
        for text in section.strings(key, "192.0.2.1").into_iter().flat_map(|list| list.value) {
            match address(&section, &text, key) {
                Some(addr) if found.iter().any(|other| other.is_ipv4() == addr.is_ipv4()) => {
                    place.wrong = true;
                    let message = format!("a second {what} of the same family");
                    section.error(text.span, message, "give one per family, and another [[channel]] for another way");
                }
                Some(addr) => found.push(addr),
                None => place.wrong = true,
            }
        }
        found
    };
    channel.next_hop = addresses("next_hop", "next hop");
    channel.source = addresses("source", "source");
    let tunnels = [("none", None), ("ipip", Some(Tunnel::Ipip)), ("gue", Some(Tunnel::Gue))];
    set(&mut channel.tunnel, section.choice("tunnel", &tunnels));
    set(&mut channel.capacity, section.number("capacity", 1..=1_000_000));
    if let Some(section) = section.section("probe", "[channel.probe]")
        && let Some(monitor) = check::probe(section, channel.probe.interval, channel.probe.timeout)
    {
        channel.probe = ChannelProbe {
            kind: monitor.kind,
            port: monitor.port,
            interval: monitor.interval,
            timeout: monitor.timeout,
        };
    }
    section.finish();
    (channel, place)
}

fn address(section: &Section<'_, '_>, text: &At<&str>, key: &str) -> Option<IpAddr> {
    // Routers have link-local addresses in IPv6, which mean something together with the interface.
    let usable = |addr: &IpAddr| {
        is_usable(*addr) || matches!(addr, IpAddr::V6(addr) if key == "next_hop" && addr.is_unicast_link_local())
    };
    let found = text.value.parse().ok().filter(usable);
    if found.is_none() {
        let message =
            format!("`{}` is no address of a {}", text.value, if key == "source" { "host" } else { "router" });
        let help = if key == "source" {
            "give an address of the gateway, such as \"192.0.2.10\""
        } else {
            "give the router's address on that interface, such as \"192.0.2.1\""
        };
        section.error(text.span.clone(), message, help);
    }
    found
}

/// The channels that a server or a service names, by their positions.
pub(super) fn named(section: &Section<'_, '_>, channels: &[Channel]) -> Option<At<Vec<u8>>> {
    let names = section.strings("channels", "fibre")?;
    let mut found: Vec<u8> = Vec::new();
    if section.is_empty_list("channels") {
        let help = "name one at least, or remove the key: the routing table then gives the way";
        section.error(names.span.clone(), "`channels` is empty", help);
    }
    for name in names.value {
        let Some(position) = channels.iter().position(|channel| channel.name == name.value) else {
            let near = channels
                .iter()
                .map(|channel| (strsim::jaro_winkler(name.value, &channel.name), &channel.name))
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let help = match near {
                Some((_, name)) => format!("did you mean `{name}`?"),
                None if channels.is_empty() => {
                    format!("add [[channel]] with name = \"{}\" and interface = \"eth1\"", name.value)
                }
                None => {
                    let known: Vec<&str> = channels.iter().map(|channel| channel.name.as_str()).collect();
                    format!("choose from {}", known.join(", "))
                }
            };
            section.error(name.span, format!("there is no channel `{}`", name.value), help);
            continue;
        };
        let position = position as u8;
        if found.contains(&position) {
            section.error(name.span, format!("channel {} is named twice", name.value), "remove one of them");
        } else {
            found.push(position);
        }
    }
    if found.len() > MOST_OF_A_SERVER {
        let message = format!("{} channels lead to one server, but there is room for {MOST_OF_A_SERVER}", found.len());
        section.error(names.span.clone(), message, "remove some of them");
        found.truncate(MOST_OF_A_SERVER);
    }
    Some(At { value: found, span: names.span })
}

/// Why a channel cannot lead to a server of a service, and the mend.
pub(super) fn misfit(channel: &Channel, service: &Service, server: IpAddr) -> Option<(String, String)> {
    let family = if server.is_ipv6() { "IPv6" } else { "IPv4" };
    let lacks = |addresses: &[IpAddr]| {
        !addresses.is_empty() && !addresses.iter().any(|addr| addr.is_ipv6() == server.is_ipv6())
    };
    for (key, addresses) in [("next_hop", &channel.next_hop), ("source", &channel.source)] {
        if lacks(addresses) {
            let message = format!("channel {} has no `{key}` for {family}, which the server has", channel.name);
            return Some((message, format!("add an {family} address to `{key}` of [[channel]] {}", channel.name)));
        }
    }
    if service.mode == super::model::Mode::DsrL2 && channel.tunnel.is_none() && !channel.next_hop.is_empty() {
        let message = format!(
            "channel {} leads over a router, but dsr-l2 reaches only servers on the gateway's own segments",
            channel.name
        );
        return Some((message, "use mode = \"dsr-ipip\" or \"dsr-gue\", or a channel without `next_hop`".to_owned()));
    }
    None
}
