//! What only the whole tells: names and addresses that clash, and what a mode cannot do.
//!
//! Rules see tables as they were read, values with their places.

mod servers;
mod channels;
mod probes;
mod queue;
mod standby;
mod limits;
mod family;

use std::collections::HashMap;
use std::net::IpAddr;

use super::root::Root;
use super::schema::error::Errors;
use super::schema::value::Span;
use super::service::ServiceKeys;
use model::address::{Listen, Protocol};
use model::mode::Mode;

/// Tells all that is against a rule.
pub(super) fn check(root: &Root, errors: &mut Errors<'_>) {
    channels::names(root, errors);
    interfaces(root, errors);
    names(root, errors);
    listens(root, errors);
    for service in &root.services.all {
        servers::names(service, errors);
        servers::families(service, errors);
        servers::ports(service, errors);
        probes::vips(root, service, errors);
        channels::fit(root, service, errors);
        servers::tiers(service, errors);
        queue::check(service, errors);
    }
    standby::check(root, errors);
    addresses(root, errors);
    replies(root, errors);
    probes::ports(root, errors);
    limits::check(root, errors);
}

fn interfaces(root: &Root, errors: &mut Errors<'_>) {
    let mut seen = HashMap::new();
    for at in &root.gateway.interfaces.all {
        let name = &at.value.name;
        if let Some(first) = seen.insert(name, &at.span) {
            let message = format!("interface {name} is named twice, first in line {}", errors.line(first.start));
            errors.add(at.span.clone(), message, "remove one of them");
        }
    }
}

fn names(root: &Root, errors: &mut Errors<'_>) {
    let mut seen: HashMap<&str, &Span> = HashMap::new();
    for ServiceKeys { name, .. } in root.services.all.iter().filter(|service| !service.name.value.is_empty()) {
        if let Some(first) = seen.get(name.value.as_str()) {
            let line = errors.line(first.start);
            let message = format!("there is a service {} already, in line {line}", name.value);
            errors.add(name.span.clone(), message, "give each service a name of its own");
        } else {
            seen.insert(&name.value, &name.span);
        }
    }
}

fn listens(root: &Root, errors: &mut Errors<'_>) {
    let mut seen: HashMap<Listen, (String, &Span)> = HashMap::new();
    for service in &root.services.all {
        for at in &service.listen.all {
            if let Some((other, first)) = seen.get(&at.value) {
                let line = errors.line(first.start);
                let message = format!("{} is taken already, by {other} in line {line}", at.value);
                errors.add(at.span.clone(), message, "give it another port or address, or merge the services");
            } else {
                seen.insert(at.value, (service.title(), &at.span));
            }
        }
    }
}

/// VIPs, servers and sources are different machines.
fn addresses(root: &Root, errors: &mut Errors<'_>) {
    let mut vips: HashMap<IpAddr, &Span> = HashMap::new();
    for at in root.services.all.iter().flat_map(|service| &service.listen.all) {
        vips.entry(at.value.addr).or_insert(&at.span);
    }
    for service in &root.services.all {
        for placed in &service.servers.all {
            if let Some(vip) = vips.get(&placed.server.addr) {
                let line = errors.line(vip.start);
                let message = format!("server {} has the virtual address of line {line}", placed.server.name);
                let help = "give the server's own address: packets to it would come back here";
                errors.add(placed.address.clone(), message, help);
            }
        }
        for source in &service.nat_source.all {
            if let Some(vip) = vips.get(&source.value) {
                let line = errors.line(vip.start);
                let message = format!("the source {} is the virtual address of line {line}", source.value);
                let help = "use another address of the gateway: replies could not be told apart";
                errors.add(source.span.clone(), message, help);
            }
        }
    }
}

/// The replies of a `dnat` server are told by its address and port alone, so these stand behind one VIP only.
fn replies(root: &Root, errors: &mut Errors<'_>) {
    // Per server address and protocol: port (none: any), VIP, and where.
    type Taken<'a> = (Option<u16>, Listen, String, &'a Span);
    let mut taken: HashMap<(IpAddr, Protocol), Vec<Taken<'_>>> = HashMap::new();
    for service in root.services.all.iter().filter(|service| service.mode.value == Mode::Dnat) {
        for placed in &service.servers.all {
            let server = &placed.server;
            for listen in service.listen.values().filter(|listen| listen.addr.is_ipv4() == server.addr.is_ipv4()) {
                let port = server.port.or(listen.port);
                let others = taken.entry((server.addr, listen.protocol)).or_default();
                let clash = others.iter().find(|(other, ..)| *other == port || other.is_none() || port.is_none());
                if let Some((_, vip, name, first)) = clash {
                    let line = errors.line(first.start);
                    let message = format!(
                        "server {} stands behind {listen} and behind {vip} of {name} (line {line})",
                        server.name
                    );
                    let help = "in dnat the gateway tells the VIP of a reply by the server's address and port alone: give it \
                                a port of its own per VIP, or use nat";
                    errors.add(placed.address.clone(), message, help);
                    break;
                }
                others.push((port, *listen, service.title(), &placed.address));
            }
        }
    }
}
