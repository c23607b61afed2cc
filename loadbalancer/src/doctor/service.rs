//! A service: its ports, its addresses, and what its servers need.

use std::ops::RangeInclusive;

use model::mode::Mode;

use super::findings::Findings;
use crate::api::types::doctor::Grade;
use crate::config::{Config, Service};
use crate::network::{Network, sysctl};

/// Whether the machine itself leaves the source ports of `nat` alone.
pub(super) fn ports(findings: &mut Findings, service: &Service) {
    if service.mode != Mode::Nat {
        return;
    }
    let subject = format!("service {}", service.name);
    let (Ok(own), Ok(reserved)) = (sysctl::local_port_range(), sysctl::reserved_ports()) else {
        return;
    };
    let free = |port: u16| !own.contains(&port) || reserved.iter().any(|range| range.contains(&port));
    let clash: Vec<u16> = service.nat_ports.clone().filter(|port| !free(*port)).collect();
    match (clash.first(), clash.last()) {
        (Some(first), Some(last)) => findings.add(
            &subject,
            Grade::Problem,
            format!("the machine itself uses ports {first}-{last}, which are in nat_ports"),
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}, or choose other nat_ports"),
        ),
        _ => findings.good(&subject, format!("nat_ports {} are not the machine's own", text(&service.nat_ports))),
    }
}

fn text(range: &RangeInclusive<u16>) -> String {
    format!("{}-{}", range.start(), range.end())
}

/// What the servers of a mode need, which cannot be seen from here.
pub(super) fn needs(findings: &mut Findings, service: &Service) {
    let vips: Vec<String> = service.listen.iter().map(|listen| listen.addr.to_string()).collect();
    let vip = vips.first().cloned().unwrap_or_default();
    let on_loopback = format!(
        "on each server: ip addr add {vip} dev lo (for every VIP); sysctl -w net.ipv4.conf.all.arp_ignore=1 \
         net.ipv4.conf.all.arp_announce=2"
    );
    let (finding, mend) = match service.mode {
        Mode::Nat => return,
        Mode::Dnat => (
            "replies must come back through this gateway",
            "on each server: make the gateway its default route".to_owned(),
        ),
        Mode::DsrL2 => ("servers must have the VIP, and not answer ARP for it", on_loopback),
        Mode::DsrIpip | Mode::DsrGue => (
            "servers must have the VIP and open the tunnel",
            format!("{on_loopback}; loadbalancer decap --interface DEVICE, or a tunnel device"),
        ),
    };
    findings.add(format!("servers of {}", service.name), Grade::Note, finding, mend);
}

/// Whether packets to the VIPs come here.
pub(super) async fn addresses(findings: &mut Findings, network: &Network, config: &Config) {
    let Ok(own) = network.addresses().await else {
        return;
    };
    let mut seen = Vec::new();
    for listen in config.services.iter().flat_map(|service| &service.listen) {
        if seen.contains(&listen.addr) {
            continue;
        }
        seen.push(listen.addr);
        let subject = format!("VIP {}", listen.addr);
        if own.iter().any(|(_, addr)| *addr == listen.addr) || config.gateway.vip_interface.is_some() {
            findings.good(subject, "it is, or will be, an address of this machine");
        } else {
            findings.add(
                subject,
                Grade::Note,
                "it is no address of this machine",
                "route it here from the clients' router, or set `vip_interface` in [gateway] to have it assigned and announced",
            );
        }
    }
}
