//! A server, and each route to it.

use std::time::Duration;

use loadbalancer_common::path::encap;
use model::mode::Mode;
use model::route::{NextHop, Route};

use super::findings::Findings;
use crate::api::types::doctor::Grade;
use crate::config::{Config, Service};
use crate::network::{Network, ResolveError};

/// Largest packet that Ethernet carries everywhere.
const USUAL_MTU: u16 = 1500;

pub(super) async fn examine(findings: &mut Findings, network: &Network, config: &Config, service: &Service) {
    let topology = config.topology();
    for server in &service.servers {
        for route in topology.routes(server) {
            let channel = route.via.as_ref().map(|via| format!(" over {}", via.interface)).unwrap_or_default();
            let subject = format!("server {}/{}{channel}", service.name, server.name);
            match resolve(network, &route).await {
                Ok(hop) => {
                    path(findings, &subject, service, &route, &hop);
                    return_path(findings, &subject, network, config, service, &hop);
                }
                Err(error) => {
                    let addr = route.target;
                    findings.add(
                        subject,
                        Grade::Problem,
                        error.to_string(),
                        format!("ip route get {addr}; ping {addr}"),
                    );
                }
            }
        }
    }
}

async fn resolve(network: &Network, route: &Route) -> Result<NextHop, ResolveError> {
    // A neighbour that nobody has asked for needs a moment.
    let mut hop = network.resolve(route).await;
    for _ in 0..20 {
        if !matches!(hop, Err(ResolveError::Pending { .. })) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        hop = network.resolve(route).await;
    }
    hop
}

/// Whether the mode's packets get there, and of what size.
fn path(findings: &mut Findings, subject: &str, service: &Service, route: &Route, hop: &NextHop) {
    if let (Mode::DsrL2, Some(router)) = (service.mode, hop.router) {
        findings.add(
            subject,
            Grade::Problem,
            format!("it is behind the router {router}, but dsr-l2 reaches only the gateway's own segment"),
            "use dsr-ipip or dsr-gue",
        );
    }
    let kind = match (service.mode, route.target.is_ipv6()) {
        (Mode::DsrIpip, false) => encap::IPV4,
        (Mode::DsrIpip, true) => encap::IPV6,
        (Mode::DsrGue, false) => encap::GUE_IPV4,
        (Mode::DsrGue, true) => encap::GUE_IPV6,
        _ => encap::NONE,
    };
    let overhead = u16::from(encap::overhead(kind));
    let room = hop.mtu.saturating_sub(overhead);
    if room < USUAL_MTU && overhead > 0 {
        findings.add(
            subject,
            Grade::Warning,
            format!(
                "its tunnel has room for packets of {room} bytes: clients that send {USUAL_MTU} are told so by ICMP"
            ),
            format!(
                "raise the MTU on the way to {} bytes, or set the servers' MSS: ip route change default ... advmss {}",
                USUAL_MTU + overhead,
                room.saturating_sub(if service.listen.iter().any(|listen| listen.addr.is_ipv6()) { 60 } else { 40 })
            ),
        );
    } else {
        findings.good(subject, format!("reached by {}, packets of {room} bytes", interface_name(hop.ifindex)));
    }
}

/// Whether its replies pass the gateway, where they have to.
fn return_path(
    findings: &mut Findings,
    subject: &str,
    network: &Network,
    config: &Config,
    service: &Service,
    hop: &NextHop,
) {
    let mut attached = config.gateway.interfaces.iter().filter_map(|interface| network.link(&interface.name));
    let on_attached = attached.any(|link| link.index == hop.ifindex);
    if !on_attached && !service.mode.is_dsr() {
        let interface = interface_name(hop.ifindex);
        findings.add(
            subject,
            Grade::Problem,
            format!("it is reached by {interface}, which is not in `interfaces`: its replies would be missed"),
            format!("add \"{interface}\" to `interfaces` in [gateway]"),
        );
    }
}

/// Name of an interface, or its number if it has none any more.
fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("interface {index}"))
}
