//! The pool fits all services that may get servers of it.

use super::family::family;
use crate::config::root::Root;
use crate::config::schema::error::Errors;
use crate::config::schema::value::Span;
use crate::config::service::ServiceKeys;
use decide::plan::topology::Server;
use model::mode::Mode;

pub(super) fn check(root: &Root, errors: &mut Errors<'_>) {
    let pool = &root.standby.servers.all;
    let users: Vec<&ServiceKeys> = root.services.all.iter().filter(|service| service.standby.is_some()).collect();
    for (position, placed) in pool.iter().enumerate() {
        let server = &placed.server;
        let mut earlier = pool[..position].iter().map(|other| &other.server);
        if earlier.clone().any(|other| (other.addr, other.port) == (server.addr, server.port)) {
            let message = format!("{} is in the pool already", server.name);
            errors.add(placed.address.clone(), message, "remove one of them");
        } else if earlier.any(|other| other.name == server.name) {
            let message = format!("there is a server {} in the pool already", server.name);
            errors.add(placed.name.clone(), message, "give each server of the pool a name of its own");
        }
        for service in &users {
            incompatibilities(service, server, &placed.address, errors);
        }
    }
    if users.is_empty() && !pool.is_empty() {
        let help = "add [service.standby] with a level, such as p90 = \"200ms\", to those that may";
        errors.add(root.standby.span.clone(), "no service may get servers of the pool", help);
    }
    if let Some(service) = users.first().filter(|_| pool.is_empty()) {
        let help = "add [[standby.server]] with address = \"10.0.0.91\"";
        let message = format!("service {} may get standby servers, but there are none", service.name.value);
        errors.add(service.name.span.clone(), message, help);
    }
}

/// Why a service cannot get a server.
fn incompatibilities(service: &ServiceKeys, server: &Server, span: &Span, errors: &mut Errors<'_>) {
    let (mode, name) = (service.mode.value, &service.name.value);
    let own = |other: &Server| other.addr == server.addr || other.name == server.name;
    if service.servers.all.iter().any(|placed| own(&placed.server)) {
        let message = format!("{} is a server of service {name} already", server.name);
        let help = "a standby server belongs to the pool alone: give it another address and name";
        errors.add(span.clone(), message, help);
    }
    let listened = service.listen.values().any(|listen| listen.addr.is_ipv6() == server.addr.is_ipv6());
    if !mode.is_dsr() && !listened {
        let family = family(server.addr.is_ipv6());
        let message =
            format!("{} has {family}, on which service {name}, which may get it, does not listen", server.name);
        let help = format!("{} keeps a packet's family: give the pool servers of that family only", mode.label());
        errors.add(span.clone(), message, help);
    }
    if mode.is_dsr() && server.port.is_some() {
        let message = format!(
            "{} has a port, but service {name}, which may get it, is {} and does not rewrite packets",
            server.name,
            mode.label()
        );
        errors.add(span.clone(), message, "remove the port: the server must listen on the services' own");
    }
    if mode == Mode::Nat && !server.channels.is_empty() && service.nat_source.all.is_empty() {
        let message =
            format!("{} has channels, but service {name}, which may get it, has no `nat_source`", server.name);
        errors.add(span.clone(), message, "add `nat_source` to the service");
    }
}
