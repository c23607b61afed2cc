//! What asks through VIPs.

use std::time::Duration;

use super::family::family;
use crate::config::document::Through;
use crate::config::root::Root;
use crate::config::schema::error::Errors;
use crate::config::schema::value::{Rejection, Span};
use crate::config::service::ServiceKeys;
use crate::health::{Asks, CheckKind};
use decide::plan::topology::Server;
use model::mode::Mode;

/// A check or a monitor.
pub(super) struct Asked<'a> {
    pub what: &'static str,
    pub kind: &'a CheckKind,
    pub port: Option<u16>,
    timeout: Duration,
    pub span: &'a Span,
    pub section: &'static str,
}

pub(super) fn asked(service: &ServiceKeys, through: Through) -> impl Iterator<Item = Asked<'_>> {
    let check = service.check.iter().filter(move |at| at.value.through == through).map(|at| Asked {
        what: "the check",
        kind: &at.value.kind,
        port: at.value.port,
        timeout: at.value.timeout,
        span: &at.span,
        section: "[service.check]",
    });
    let monitors = service.monitors.all.iter().filter(move |at| at.value.through == through).map(|at| Asked {
        what: "this monitor",
        kind: &at.value.kind,
        port: at.value.port,
        timeout: at.value.timeout,
        span: &at.span,
        section: "[[service.monitors]]",
    });
    check.chain(monitors)
}

/// What asks through a VIP needs one to ask, and an address to ask from.
pub(super) fn vips(root: &Root, service: &ServiceKeys, errors: &mut Errors<'_>) {
    if service.listen.all.is_empty() || service.listen.rejected || service.mode.rejected {
        return;
    }
    for asked in asked(service, Through::Vip) {
        if asked.kind.asks() == Asks::Any {
            // Told already.
            continue;
        }
        let kept = root.timeouts.tcp_closed;
        if service.mode.value == Mode::Nat && asked.timeout >= kept {
            let message = format!(
                "{} waits {:?}, but `nat` keeps the flow of a probe for {kept:?} of silence",
                asked.what, asked.timeout
            );
            let help = format!("set `timeout` in {} below `tcp_closed` of [timeouts], or raise that", asked.section);
            errors.add(asked.span.clone(), message, help);
        }
        let mut servers = service.servers.all.iter().map(|placed| &placed.server);
        if let Some((message, help)) = servers.find_map(|server| unaskable(root, service, &asked, server)) {
            errors.add(asked.span.clone(), message, help);
        }
    }
}

/// Why a server cannot be asked through a VIP, and the fix.
fn unaskable(root: &Root, service: &ServiceKeys, asked: &Asked<'_>, server: &Server) -> Option<Rejection> {
    let Asked { what, section, port, .. } = asked;
    let protocol = if asked.kind.asks() == Asks::Udp { "UDP" } else { "TCP" };
    let Some(vip) = service.vip_of(server.addr, asked.kind, *port) else {
        let at = port.map_or_else(|| "with a port".to_owned(), |port| format!("on port {port}"));
        let message = format!(
            "{what} of server {} has no VIP to go through: {} has no {protocol} listener {at} for it",
            server.name,
            service.title()
        );
        let help = format!("set `port` in {section} to a {protocol} port on which the service listens");
        return Some((message, help));
    };
    let mut sources = root.gateway.probe_source.values();
    if sources.clone().any(|source| *source == vip.ip()) {
        let message = format!("{what} goes through {vip}, which is also its `probe_source`");
        return Some((message, "set `probe_source` in [gateway] to an address of the gateway's own".to_owned()));
    }
    if vip.is_ipv6() != server.addr.is_ipv6() && !sources.any(|source| source.is_ipv6() == vip.is_ipv6()) {
        let (wanted, only) = (family(vip.is_ipv6()), family(server.addr.is_ipv6()));
        let message = format!("{what} goes through {vip}, but the way to server {} has {only} only", server.name);
        let help =
            format!("add `probe_source` to [gateway]: an {wanted} address of the gateway that its servers answer to");
        return Some((message, help));
    }
    None
}

/// Each probe through a VIP has a source port of its own, which `nat` must not give to a client.
pub(super) fn ports(root: &Root, errors: &mut Errors<'_>) {
    let probes = |service: &ServiceKeys| asked(service, Through::Vip).count();
    let services = || root.services.all.iter();
    let of_servers: usize = services().map(|service| probes(service) * service.servers.all.len()).sum();
    let most_of_pool = services().filter(|service| service.standby.is_some()).map(probes).max();
    let used = of_servers + most_of_pool.unwrap_or(0) * root.standby.servers.all.len();
    let Some(first) = services().find(|service| probes(service) > 0) else {
        return;
    };
    let given = &root.gateway.probe_ports;
    let ports = &given.value;
    let span = given.span.as_ref().unwrap_or(&first.name.span);
    if used > ports.len() {
        let message = format!("there are {used} probes through VIPs, but {} source ports for them", ports.len());
        errors.add(span.clone(), message, "set a wider `probe_ports` in [gateway]");
    }
    let clashes = |service: &&ServiceKeys| {
        service.mode.value == Mode::Nat
            && ports.start() <= service.nat_ports.end()
            && service.nat_ports.start() <= ports.end()
    };
    if let Some(service) = services().find(clashes) {
        let message = format!(
            "the source ports {}-{} of probes through VIPs are also in `nat_ports` of {}",
            ports.start(),
            ports.end(),
            service.title()
        );
        errors.add(span.clone(), message, "set other `probe_ports` in [gateway], or other `nat_ports`");
    }
}
