//! `[[channel]]`: ways to servers, and which server is reached by which.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use super::check;
use super::document::{Channel, ChannelProbe};
use super::forms::{check_name, gateway_address, interface, is_usable, repeated_families};
use super::schema::table::{Keys, Table};
use super::schema::value::{At, List, Rejection};
use super::schema::walk::Section;
use crate::health::CheckKind;
use model::mode::Tunnel;

/// A channel is known by 8 bits in the packet path.
pub(super) const MOST_CHANNELS: usize = 64;
/// A server has as many slots for paths.
const MOST_OF_A_SERVER: usize = loadbalancer_common::backend::PATH_SLOTS;

#[derive(Clone, Debug)]
pub(super) struct ChannelKeys {
    pub name: At<String>,
    /// None: told wrong already, as are addresses that are missing.
    pub interface: Option<String>,
    pub next_hop: List<At<IpAddr>>,
    pub source: List<At<IpAddr>>,
    pub tunnel: Option<Tunnel>,
    capacity: u32,
    pub probe: ChannelProbe,
}

impl Default for ChannelKeys {
    fn default() -> Self {
        Self {
            name: At::default(),
            interface: None,
            next_hop: List::default(),
            source: List::default(),
            tunnel: None,
            capacity: 100,
            probe: ChannelProbe {
                kind: CheckKind::Icmp,
                port: None,
                interval: Duration::from_millis(100),
                timeout: Duration::from_millis(300),
            },
        }
    }
}

impl ChannelKeys {
    /// What follows from its interface and addresses is not known.
    pub fn rejected(&self) -> bool {
        self.interface.is_none() || self.next_hop.rejected || self.source.rejected
    }

    pub fn document(self) -> Channel {
        Channel {
            name: self.name.value,
            interface: self.interface.unwrap_or_default(),
            next_hop: self.next_hop.into_values(),
            source: self.source.into_values(),
            tunnel: self.tunnel,
            capacity: self.capacity,
            probe: self.probe,
        }
    }
}

pub(super) fn table() -> Table<ChannelKeys> {
    let doc = "A way to servers, whose quality is measured. A server that names channels is reached over them.";
    Keys::new("[[channel]]", doc, ChannelKeys::default())
        .optional()
        .string("name", |it| &mut it.name, "fibre", "By which servers and services refer to it.")
        .required("name = \"fibre\"")
        .text("interface", |it| &mut it.interface, interface, "eth1", "By which it leaves the gateway.")
        .required("interface = \"eth1\"")
        .texts(
            "next_hop",
            |it| &mut it.next_hop,
            router,
            "192.0.2.1",
            "The router on that interface, at most one per family. Without: servers are on its segment.",
        )
        .shown("[\"198.51.100.1\"]")
        .texts(
            "source",
            |it| &mut it.source,
            source,
            "192.0.2.1",
            "Address of the gateway that probes and tunnels come from, at most one per family. Without: as the kernel \
             chooses.",
        )
        .shown("[\"198.51.100.10\"]")
        .choice(
            "tunnel",
            |it| &mut it.tunnel,
            &[("none", None), ("ipip", Some(Tunnel::Ipip)), ("gue", Some(Tunnel::Gue))],
            "\"none\": as the service's mode has it; \"ipip\" or \"gue\": in a tunnel to the server.",
        )
        .number::<u32>(
            "capacity",
            |it| &mut it.capacity,
            1..=1_000_000,
            "Beside that of the other channels: only ratios matter.",
        )
        .table("probe", |it| &mut it.probe, |it| check::probe(&it.probe))
        .build(build)
}

fn build(section: &Section<'_, '_>, mut it: ChannelKeys) -> Option<ChannelKeys> {
    if !it.name.span.is_empty() {
        check_name(section, &it.name, "channel");
    }
    it.name = it.name.or_at(&section.span);
    for (list, what) in [(&mut it.next_hop, "next hop"), (&mut it.source, "source")] {
        let repeated: Vec<_> = repeated_families(&list.all).map(|at| at.span.clone()).collect();
        list.all.retain(|at| !repeated.contains(&at.span));
        list.rejected |= !repeated.is_empty();
        for span in repeated {
            let message = format!("a second {what} of the same family");
            section.error(span, message, "give one per family, and another [[channel]] for another way");
        }
    }
    Some(it)
}

/// Routers have link-local addresses in IPv6, which mean something together with the interface.
fn router(text: &str) -> Result<IpAddr, Rejection> {
    let usable = |addr: &IpAddr| is_usable(*addr) || matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
    text.parse().ok().filter(usable).ok_or_else(|| {
        let help = "give the router's address on that interface, such as \"192.0.2.1\"".to_owned();
        (format!("`{text}` is no address of a router"), help)
    })
}

fn source(text: &str) -> Result<IpAddr, Rejection> {
    let help = "give an address of the gateway, such as \"192.0.2.10\"";
    gateway_address(text).map_err(|(message, _)| (message, help.to_owned()))
}

/// The key `channels` of what is reached over channels.
pub(super) fn channels_key<T: Clone + 'static>(
    keys: Keys<T>,
    list: fn(&mut T) -> &mut List<At<String>>,
    doc: &'static str,
) -> Keys<T> {
    keys.texts("channels", list, super::forms::any, "fibre", doc)
}

/// The channels that a server or a service names, by their positions. None: it names none.
pub(super) fn positions(
    section: &Section<'_, '_>,
    names: &List<At<String>>,
    known: &Rc<[String]>,
) -> Option<At<Vec<u8>>> {
    let span = names.span.clone()?;
    let mut found: Vec<u8> = Vec::new();
    if section.is_empty_list("channels") {
        let help = "name one at least, or remove the key: the routing table then gives the way";
        section.error(span.clone(), "`channels` is empty", help);
    }
    for name in &names.all {
        let Some(position) = known.iter().position(|channel| *channel == name.value) else {
            let message = format!("there is no channel `{}`", name.value);
            section.error(name.span.clone(), message, instead(&name.value, known));
            continue;
        };
        let position = position as u8;
        if found.contains(&position) {
            let message = format!("channel {} is named twice", name.value);
            section.error(name.span.clone(), message, "remove one of them");
        } else {
            found.push(position);
        }
    }
    if found.len() > MOST_OF_A_SERVER {
        let message = format!("{} channels lead to one server, but there is room for {MOST_OF_A_SERVER}", found.len());
        section.error(span.clone(), message, "remove some of them");
        found.truncate(MOST_OF_A_SERVER);
    }
    Some(At { value: found, span })
}

/// What to do about a name that no channel has.
fn instead(name: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|channel| (strsim::jaro_winkler(name, channel), channel))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("add [[channel]] with name = \"{name}\" and interface = \"eth1\""),
        None => format!("choose from {}", known.join(", ")),
    }
}
