//! `[[service.queue.class]]`: which connections wait in which ring, and for how long.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use ipnet::IpNet;

use super::error::Errors;
use super::files::Files;
use super::model::{Protocol, Service};
use super::parse::{is_name, set};
use super::queue::{ServiceQueue, before_overload, deadline, ring};
use super::validate::title;
use super::walk::{Section, Span};

/// With no class, their numbers are to fit 8 bits, and the last of these stays free.
const MOST_CLASSES: usize = 254;
const MOST_LINES: usize = 1_000_000;
/// Room for the lines, with a short comment each.
const MOST_FILE: u64 = 64 << 20;
/// Of the same kind in a class: a list of another form has as many errors as lines.
const MOST_TOLD: usize = 10;
/// Characters of a line that are repeated in its error; prefixes are shorter.
const MOST_SHOWN: usize = 60;

/// Connections that wait in the same way. Of a client in prefixes of several classes the longest decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueClass {
    /// Unique in the service.
    pub name: String,
    /// 0 to 4, for priorities 1 (most urgent) to 5.
    pub ring: u8,
    pub deadline: Duration,
    /// Without host bits; no two classes have the same.
    pub clients: Vec<IpNet>,
    pub dscp: Vec<u8>,
    /// Destination ports.
    pub ports: Vec<u16>,
}

/// The classes of a service in the order of the file, with tables for the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    all: Vec<QueueClass>,
    /// Number of the class by DSCP; zero: none. Values beyond 63 there are not.
    by_dscp: [u8; 64],
    /// Number of the class by port, sorted by port.
    by_port: Vec<(u16, u8)>,
}

impl Default for Classes {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<QueueClass>> for Classes {
    fn from(all: Vec<QueueClass>) -> Self {
        let mut classes = Self { all, by_dscp: [0; 64], by_port: Vec::new() };
        for (number, class) in (1..=u8::MAX).zip(&classes.all) {
            for dscp in &class.dscp {
                if let Some(slot) = classes.by_dscp.get_mut(usize::from(*dscp)).filter(|slot| **slot == 0) {
                    *slot = number;
                }
            }
            classes.by_port.extend(class.ports.iter().map(|port| (*port, number)));
        }
        classes.by_port.sort_unstable();
        classes.by_port.dedup_by_key(|(port, _)| *port);
        classes
    }
}

impl Deref for Classes {
    type Target = [QueueClass];

    fn deref(&self) -> &[QueueClass] {
        &self.all
    }
}

impl Classes {
    /// The class of a connection and its number, which is its position plus one. `by_prefix` is passed over if there is
    /// no such position.
    pub(super) fn find(&self, by_prefix: Option<u16>, dscp: u8, port: u16) -> Option<(u16, &QueueClass)> {
        let by_prefix = by_prefix
            .filter(|position| usize::from(*position) < self.all.len().min(MOST_CLASSES))
            .map(|position| position + 1);
        let by_dscp =
            || self.by_dscp.get(usize::from(dscp)).filter(|number| **number > 0).map(|number| u16::from(*number));
        let by_port = || {
            let found = self.by_port.binary_search_by_key(&port, |(port, _)| *port).ok()?;
            Some(u16::from(self.by_port[found].1))
        };
        let number = by_prefix.or_else(by_dscp).or_else(by_port)?;
        Some((number, self.all.get(usize::from(number) - 1)?))
    }
}

/// Where things of a class stand.
#[derive(Debug, Default)]
pub(super) struct ClassPlaces {
    pub name: Span,
    /// Name of the file with clients.
    file: String,
    clients: Vec<Place>,
    dscp: Vec<Place>,
    ports: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    /// Of the value, or of the name of the file.
    span: Span,
    /// In the file with clients; zero: it stands in the configuration itself.
    line: usize,
}

impl Place {
    fn here(span: Span) -> Self {
        Self { span, line: 0 }
    }

    fn text(&self, class: &ClassPlaces, errors: &Errors<'_>) -> String {
        match self.line {
            0 => format!("line {}", errors.line(self.span.start)),
            line => format!("line {line} of {}", class.file),
        }
    }
}

/// A class in a message: its name may be what is wrong with it.
fn named(class: &QueueClass) -> String {
    if class.name.is_empty() { "a class without a name".to_owned() } else { format!("class {}", class.name) }
}

/// With the deadline and the target of the service.
pub(super) fn classes(
    queue: &Section<'_, '_>,
    usual: (Duration, Duration),
    files: Files<'_>,
) -> (Vec<QueueClass>, Vec<ClassPlaces>) {
    let sections = queue.sections("class", "[[service.queue.class]]");
    if let Some(first_too_many) = sections.get(MOST_CLASSES) {
        let message = format!("there are {} classes, but room for {MOST_CLASSES}", sections.len());
        queue.error(first_too_many.span.clone(), message, "merge those that have the same priority and deadline");
    }
    sections.into_iter().map(|section| class(section, usual, files)).unzip()
}

fn class(section: Section<'_, '_>, usual: (Duration, Duration), files: Files<'_>) -> (QueueClass, ClassPlaces) {
    let mut place = ClassPlaces { name: section.span.clone(), ..ClassPlaces::default() };
    let mut class = QueueClass {
        name: String::new(),
        ring: 0,
        deadline: usual.0,
        clients: Vec::new(),
        dscp: Vec::new(),
        ports: Vec::new(),
    };
    if let Some(name) = section.required("name", "name = \"gold\"", section.string("name", "gold")) {
        if !is_name(name.value) {
            let help = "use 1 to 63 letters, digits, `.`, `_` or `-`";
            section.error(name.span.clone(), format!("`{}` is no name of a class", name.value), help);
        }
        class.name = name.value.to_owned();
        place.name = name.span;
    }
    set(&mut class.ring, section.required("priority", "priority = 1, the most urgent, to 5", ring(&section)));
    if let Some(deadline) = deadline(&section) {
        class.deadline = deadline.value;
        if deadline.value <= usual.1 {
            before_overload(&section, "deadline");
        }
    }
    for text in section.strings("clients", "10.1.0.0/16").map(|clients| clients.value).unwrap_or_default() {
        match prefix(text.value) {
            Ok(prefix) => {
                class.clients.push(prefix);
                place.clients.push(Place::here(text.span));
            }
            Err((message, help)) => section.error(text.span, message, help),
        }
    }
    clients_file(&section, &mut class, &mut place, files);
    for dscp in section.numbers("dscp", 0..=63, "[46]").map(|dscp| dscp.value).unwrap_or_default() {
        class.dscp.push(dscp.value);
        place.dscp.push(Place::here(dscp.span));
    }
    for port in section.numbers("ports", 1..=65_535, "[443]").map(|ports| ports.value).unwrap_or_default() {
        class.ports.push(port.value);
        place.ports.push(Place::here(port.span));
    }
    let says = |key: &&str| section.has(key) && !section.is_empty_list(key);
    if !["clients", "clients_file", "dscp", "ports"].iter().any(says) {
        let help = "add clients = [\"10.1.0.0/16\"], `clients_file`, dscp = [46] or ports = [443]";
        section.error(place.name.clone(), format!("nothing says which connections are of {}", named(&class)), help);
    }
    section.finish();
    (class, place)
}

fn prefix(text: &str) -> Result<IpNet, (String, String)> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(addr) => {
                (format!("`{text}` has no length"), format!("write \"{}\" for this address alone", IpNet::from(addr)))
            }
            Err(_) => (
                format!("`{text}` is no prefix"),
                "write ADDRESS/LENGTH, such as \"10.1.0.0/16\" or \"2001:db8::/32\"".to_owned(),
            ),
        });
    };
    if net.trunc() != net {
        let message = format!("`{text}` has bits set beyond its length");
        let alone = IpNet::from(net.addr());
        return Err((message, format!("write \"{}\", or \"{alone}\" for this address alone", net.trunc())));
    }
    Ok(net)
}

/// One prefix per line; what follows a `#` is a comment.
fn clients_file(section: &Section<'_, '_>, class: &mut QueueClass, place: &mut ClassPlaces, files: Files<'_>) {
    let Some(name) = section.string("clients_file", "gold.txt") else {
        return;
    };
    place.file = name.value.to_owned();
    let bytes = match files.read(name.value, MOST_FILE) {
        Ok(bytes) => bytes,
        Err((message, help)) => return section.error(name.span, message, help),
    };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = format!("line {line} of {} is no UTF-8 text", name.value);
            return section.error(name.span, message, "write one prefix per line, such as 10.1.0.0/16");
        }
    };
    let mut wrong = 0;
    for (number, line) in (1..).zip(text.lines()) {
        if number > MOST_LINES {
            let message = format!("{} has more than {MOST_LINES} lines", name.value);
            section.error(name.span.clone(), message, "merge prefixes into shorter ones");
            break;
        }
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => {
                class.clients.push(net);
                place.clients.push(Place { span: name.span.clone(), line: number });
            }
            _ => {
                wrong += 1;
                let shown: String = line.chars().take(MOST_SHOWN).collect();
                if wrong <= MOST_TOLD
                    && let Err((message, help)) = prefix(&shown)
                {
                    section.error(name.span.clone(), format!("line {number} of {}: {message}", name.value), help);
                }
            }
        }
    }
    if wrong > MOST_TOLD {
        let message = format!("{} more lines of {} are wrong", wrong - MOST_TOLD, name.value);
        section.error(name.span, message, "mend those that are told first");
    }
}

/// Each connection is of one class at most.
pub(super) fn validate(classes: &[QueueClass], places: &[ClassPlaces], errors: &mut Errors<'_>) {
    let mut names: HashMap<&str, &Span> = HashMap::new();
    for (class, place) in classes.iter().zip(places).filter(|(class, _)| !class.name.is_empty()) {
        if let Some(first) = names.get(class.name.as_str()) {
            let line = errors.line(first.start);
            let message = format!("there is a class {} in this service already, in line {line}", class.name);
            errors.add(place.name.clone(), message, "give each class of a service a name of its own");
        } else {
            names.insert(&class.name, &place.name);
        }
    }
    let both = (classes, places);
    let help = "remove one of them: of prefixes the longest decides, and these are the same";
    unique(("", help), both, |class| &class.clients, |place| &place.clients, errors);
    let help = "remove one of them: a connection is of one class at most";
    unique(("DSCP ", help), both, |class| &class.dscp, |place| &place.dscp, errors);
    unique(("port ", help), both, |class| &class.ports, |place| &place.ports, errors);
}

/// No value stands twice in what `values` gives.
fn unique<T: Copy + Display + Eq + Hash>(
    (what, help): (&str, &str),
    (classes, places): (&[QueueClass], &[ClassPlaces]),
    values: impl Fn(&QueueClass) -> &[T],
    places_of: impl Fn(&ClassPlaces) -> &[Place],
    errors: &mut Errors<'_>,
) {
    let mut seen: HashMap<T, (usize, &Place)> = HashMap::new();
    for (position, (class, place)) in classes.iter().zip(places).enumerate() {
        let mut repeated = 0;
        for (value, at) in values(class).iter().zip(places_of(place)) {
            let (first, first_at) = match seen.entry(*value) {
                Entry::Vacant(entry) => {
                    entry.insert((position, at));
                    continue;
                }
                Entry::Occupied(entry) => *entry.get(),
            };
            repeated += 1;
            if repeated > MOST_TOLD {
                continue;
            }
            let own = if at.line == 0 { String::new() } else { format!(" in {}", at.text(place, errors)) };
            let (class, line) = (named(class), first_at.text(&places[first], errors));
            let message = if first == position {
                format!("{class} has {what}{value}{own} twice, first in {line}")
            } else {
                let other = named(&classes[first]);
                format!("{class} has {what}{value}{own}, which {other} has already, in {line}")
            };
            errors.add(at.span.clone(), message, help);
        }
        if let Some(last) = places_of(place).last().filter(|_| repeated > MOST_TOLD) {
            let message = format!("{} more are repeated in {}", repeated - MOST_TOLD, named(class));
            errors.add(last.span.clone(), message, "mend those that are told first");
        }
    }
}

/// There is a listener for each prefix and each port.
pub(super) fn reached(service: &Service, queue: &ServiceQueue, places: &[ClassPlaces], errors: &mut Errors<'_>) {
    let datagrams = queue.udp_memory > 0;
    let waiting: Vec<_> =
        service.listen.iter().filter(|listen| listen.protocol == Protocol::Tcp || datagrams).collect();
    let listener = if datagrams { "listener" } else { "TCP listener" };
    if waiting.is_empty() {
        // Told already.
        return;
    }
    for (class, place) in queue.classes.iter().zip(places) {
        for ipv6 in [false, true] {
            let of_family = |net: &IpNet| matches!(net, IpNet::V6(_)) == ipv6;
            let first = class.clients.iter().zip(&place.clients).find(|(net, _)| of_family(net));
            let listened = waiting.iter().any(|listen| listen.addr.is_ipv6() == ipv6);
            if let Some((net, at)) = first.filter(|_| !listened) {
                let family = if ipv6 { "IPv6" } else { "IPv4" };
                let own = if at.line == 0 { String::new() } else { format!(" in {}", at.text(place, errors)) };
                let message =
                    format!("{} has {net}{own}, but {} has no {family} {listener}", named(class), title(service));
                errors.add(
                    at.span.clone(),
                    message,
                    format!("remove its {family} prefixes, or listen on an {family} address"),
                );
            }
        }
        for (port, at) in class.ports.iter().zip(&place.ports) {
            if !waiting.iter().any(|listen| listen.port.is_none_or(|listened| listened == *port)) {
                let message =
                    format!("{} has port {port}, on which {} has no {listener}", named(class), title(service));
                let help = "remove it, or add it to `listen`: these are ports that clients connect to";
                errors.add(at.span.clone(), message, help);
            }
        }
    }
}
