//! The servers of one service.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::family::family;
use super::probes::asked;
use crate::config::document::Through;
use crate::config::schema::error::Errors;
use crate::config::schema::value::Span;
use crate::config::service::ServiceKeys;
use crate::health::Asks;

pub(super) fn names(service: &ServiceKeys, errors: &mut Errors<'_>) {
    if service.servers.all.is_empty() && !service.servers.rejected {
        let help = "add [[service.server]] with address = \"10.0.0.11\"";
        errors.add(service.name.span.clone(), format!("{} has no servers", service.title()), help);
    }
    let mut addresses: HashMap<(IpAddr, Option<u16>), &Span> = HashMap::new();
    let mut names: HashMap<&str, &Span> = HashMap::new();
    for placed in &service.servers.all {
        let server = &placed.server;
        if let Some(first) = addresses.get(&(server.addr, server.port)) {
            let line = errors.line(first.start);
            let message = format!("{} is a server of this service already, in line {line}", server.name);
            errors.add(placed.address.clone(), message, "remove one of them, or give it a larger weight");
            continue;
        }
        addresses.insert((server.addr, server.port), &placed.address);
        if let Some(first) = names.get(server.name.as_str()) {
            let line = errors.line(first.start);
            let message = format!("there is a server {} in this service already, in line {line}", server.name);
            errors.add(placed.name.clone(), message, "give each server of a service a name of its own");
        } else {
            names.insert(&server.name, &placed.name);
        }
    }
}

/// `nat` and `dnat` keep the packet's family.
pub(super) fn families(service: &ServiceKeys, errors: &mut Errors<'_>) {
    if service.mode.value.is_dsr() || service.mode.rejected {
        return;
    }
    let mode = service.mode.value.label();
    let servers = &service.servers;
    for placed in &servers.all {
        let ipv6 = placed.server.addr.is_ipv6();
        let listened = service.listen.values().any(|listen| listen.addr.is_ipv6() == ipv6);
        if !service.listen.all.is_empty() && !listened && !service.listen.rejected {
            let (name, family) = (&placed.server.name, family(ipv6));
            let message = format!("server {name} has {family}, on which {} does not listen", service.title());
            let help =
                format!("{mode} keeps a packet's family: listen on an {family} address, or use dsr-ipip or dsr-gue");
            errors.add(placed.address.clone(), message, help);
        }
    }
    let mut told = HashSet::new();
    for at in &service.listen.all {
        let ipv6 = at.value.addr.is_ipv6();
        let served = servers.all.iter().any(|placed| placed.server.addr.is_ipv6() == ipv6);
        if !served && !servers.all.is_empty() && !servers.rejected && told.insert(ipv6) {
            let family = family(ipv6);
            let message = format!("{} listens on {family}, but no server has it", service.title());
            let help = format!(
                "{mode} keeps a packet's family: add a server with an {family} address, or use dsr-ipip or dsr-gue"
            );
            errors.add(at.span.clone(), message, help);
        }
    }
}

/// Servers have ports where the mode permits it, and one to be asked at where something asks.
pub(super) fn ports(service: &ServiceKeys, errors: &mut Errors<'_>) {
    let servers = || service.servers.all.iter().map(|placed| &placed.server);
    for placed in &service.servers.all {
        let mode = service.mode.value;
        if mode.is_dsr() && placed.server.port.is_some() {
            let message =
                format!("server {} has a port, but {} does not rewrite packets", placed.server.name, mode.label());
            let help = "remove the port: the server must listen on the service's own";
            errors.add(placed.address.clone(), message, help);
        }
    }
    if service.listen.all.is_empty() || service.listen.rejected {
        return;
    }
    for asked in asked(service, Through::Server) {
        if let Some(server) = servers().find(|server| service.port_of(server, asked.kind, asked.port).is_none()) {
            // A listener of another protocol says nothing about where.
            let protocol = if asked.kind.asks() == Asks::Udp { "UDP" } else { "TCP" };
            let message = format!(
                "{} of server {} has no port to ask: neither it nor a {protocol} listener of {} has one",
                asked.what,
                server.name,
                service.title()
            );
            errors.add(asked.span.clone(), message, format!("add `port` to {}", asked.section));
        }
    }
}

/// There is someone who can help.
pub(super) fn tiers(service: &ServiceKeys, errors: &mut Errors<'_>) {
    let mut tiers = service.servers.all.iter().map(|placed| placed.server.tier);
    let first = tiers.next();
    if let Some(at) = &service.tiers
        && first.is_some()
        && tiers.all(|tier| Some(tier) == first)
    {
        let name = &service.name.value;
        let message = format!("all servers of service {name} are in the same tier, so there is none to help");
        let help = "add `tier = 1` to those that are to help, or remove [service.tiers]";
        errors.add(at.span.clone(), message, help);
    }
}
