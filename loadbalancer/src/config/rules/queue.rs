//! Connections can come to wait, each in one class at most, and there is a way to tell their clients.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::hash::Hash;

use super::family::family;
use crate::config::class::{ClassKeys, MOST_TOLD, Origin, placed};
use crate::config::queue::PlacedQueue;
use crate::config::schema::error::Errors;
use crate::config::schema::value::Span;
use crate::config::service::ServiceKeys;
use decide::queue::settings::AtDeadline;
use model::address::{Listen, Protocol};

pub(super) fn check(service: &ServiceKeys, errors: &mut Errors<'_>) {
    let Some(placed) = &service.queue else {
        return;
    };
    if !placed.marked && !service.servers.all.is_empty() {
        let message =
            format!("no server of {} has a mark, so none ever fills up and nothing would wait", service.title());
        let help =
            "set `high_water` on the servers, add [service.agent], which may set it, or set marks = \"adaptive\"";
        errors.add(placed.span.clone(), message, help);
    }
    classes(&placed.classes, errors);
    if service.listen.all.is_empty() || service.listen.rejected || placed.udp_rejected {
        return;
    }
    listeners(service, placed, errors);
    reached(service, placed, errors);
}

/// There is a listener for what is to wait.
fn listeners(service: &ServiceKeys, placed: &PlacedQueue, errors: &mut Errors<'_>) {
    let (queue, title) = (&placed.queue, service.title());
    let listens = |protocol| service.listen.values().any(|listen| listen.protocol == protocol);
    if queue.udp_memory > 0 && !listens(Protocol::Udp) {
        let message = format!("{title} has no UDP listener, so no datagram can wait");
        errors.add(placed.udp.clone(), message, "remove `udp`, or add an address with /udp to `listen`");
    }
    if queue.udp_memory == 0 && !listens(Protocol::Tcp) {
        let message = format!("{title} has no TCP listener, so no connection can wait");
        let help = "remove [service.queue], or set udp = true, so that the first datagrams of flows wait";
        errors.add(placed.span.clone(), message, help);
    } else if queue.at_deadline == AtDeadline::Respond {
        let help = "set at_deadline = \"reset\" or \"drop\"";
        let any_port = |listen: &&Listen| listen.protocol == Protocol::Tcp && listen.port.is_none();
        if !listens(Protocol::Tcp) {
            let message = format!("{title} has no TCP listener, and a response needs a connection");
            errors.add(placed.at_deadline.clone(), message, help);
        } else if let Some(listen) = service.listen.values().find(any_port) {
            let message = format!("{title} cannot respond on any port, as in {listen}");
            let help = format!("name the ports where clients speak HTTP in `listen`, or {help}");
            errors.add(placed.at_deadline.clone(), message, help);
        }
    }
}

/// Each connection is of one class at most.
fn classes(classes: &[ClassKeys], errors: &mut Errors<'_>) {
    let mut names: HashMap<&str, &Span> = HashMap::new();
    for ClassKeys { name, .. } in classes.iter().filter(|class| !class.name.value.is_empty()) {
        if let Some(first) = names.get(name.value.as_str()) {
            let line = errors.line(first.start);
            let message = format!("there is a class {} in this service already, in line {line}", name.value);
            errors.add(name.span.clone(), message, "give each class of a service a name of its own");
        } else {
            names.insert(&name.value, &name.span);
        }
    }
    let help = "remove one of them: of prefixes the longest decides, and these are the same";
    unique(("", help), classes, ClassKeys::clients, errors);
    let help = "remove one of them: a connection is of one class at most";
    unique(("DSCP ", help), classes, |class| placed(&class.dscp), errors);
    unique(("port ", help), classes, |class| placed(&class.ports), errors);
}

/// No value stands twice in what `values` gives.
fn unique<'a, T, I>(
    (what, help): (&str, &str),
    classes: &'a [ClassKeys],
    values: impl Fn(&'a ClassKeys) -> I,
    errors: &mut Errors<'_>,
) where
    T: Copy + Display + Eq + Hash,
    I: Iterator<Item = (T, Origin<'a>)>,
{
    let mut seen: HashMap<T, (&ClassKeys, Origin<'_>)> = HashMap::new();
    for class in classes {
        let mut repeated = 0;
        let mut last = None;
        for (value, place) in values(class) {
            last = Some(place);
            let (first, first_place) = match seen.entry(value) {
                Entry::Vacant(entry) => {
                    entry.insert((class, place));
                    continue;
                }
                Entry::Occupied(entry) => *entry.get(),
            };
            repeated += 1;
            if repeated > MOST_TOLD {
                continue;
            }
            let own = in_file(place, class, errors);
            let (title, line) = (class.title(), line(first_place, first, errors));
            let message = if std::ptr::eq(first, class) {
                format!("{title} has {what}{value}{own} twice, first in {line}")
            } else {
                let other = first.title();
                format!("{title} has {what}{value}{own}, which {other} has already, in {line}")
            };
            errors.add(place.span.clone(), message, help);
        }
        if let Some(last) = last.filter(|_| repeated > MOST_TOLD) {
            let message = format!("{} more are repeated in {}", repeated - MOST_TOLD, class.title());
            errors.add(last.span.clone(), message, "mend those that are told first");
        }
    }
}

fn line(place: Origin<'_>, class: &ClassKeys, errors: &Errors<'_>) -> String {
    match place.line {
        0 => format!("line {}", errors.line(place.span.start)),
        line => format!("line {line} of {}", class.file()),
    }
}

fn in_file(place: Origin<'_>, class: &ClassKeys, errors: &Errors<'_>) -> String {
    if place.line == 0 { String::new() } else { format!(" in {}", line(place, class, errors)) }
}

/// There is a listener for each prefix and each port.
fn reached(service: &ServiceKeys, placed_queue: &PlacedQueue, errors: &mut Errors<'_>) {
    let datagrams = placed_queue.queue.udp_memory > 0;
    let waiting: Vec<&Listen> =
        service.listen.values().filter(|listen| listen.protocol == Protocol::Tcp || datagrams).collect();
    let listener = if datagrams { "listener" } else { "TCP listener" };
    if waiting.is_empty() {
        // Told already.
        return;
    }
    for class in &placed_queue.classes {
        for ipv6 in [false, true] {
            let first = class.clients().find(|(net, _)| net.addr().is_ipv6() == ipv6);
            let listened = waiting.iter().any(|listen| listen.addr.is_ipv6() == ipv6);
            if let Some((net, place)) = first.filter(|_| !listened) {
                let (family, own) = (family(ipv6), in_file(place, class, errors));
                let (class, title) = (class.title(), service.title());
                let message = format!("{class} has {net}{own}, but {title} has no {family} {listener}");
                let help = format!("remove its {family} prefixes, or listen on an {family} address");
                errors.add(place.span.clone(), message, help);
            }
        }
        for at in &class.ports.all {
            let port = at.value;
            if !waiting.iter().any(|listen| listen.port.is_none_or(|listened| listened == port)) {
                let (class, title) = (class.title(), service.title());
                let message = format!("{class} has port {port}, on which {title} has no {listener}");
                let help = "remove it, or add it to `listen`: these are ports that clients connect to";
                errors.add(at.span.clone(), message, help);
            }
        }
    }
}
