//! Looks for what would keep a gateway from working, before it happens.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use loadbalancer_common::path::encap;
use serde::Serialize;

use crate::config::{Config, Mode, Service, XdpMode};
use crate::control::desire;
use crate::control::start::{OWN_PINS, has_own_pins};
use crate::dataplane::kernel::{self, Kernel, Sizes};
use crate::network::facts;
use crate::network::hop::Way;
use crate::network::{Link, Network, ResolveError};

/// The oldest kernel that is tested.
const OLDEST: (u32, u32) = (6, 1);
/// Largest packet that Ethernet carries everywhere.
const USUAL_MTU: u16 = 1500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    Good,
    /// Worth knowing.
    Note,
    /// It works, but not as well as it could, or not in all cases.
    Warning,
    /// It will not work.
    Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `interface eth0`, `server web/web1`, ...
    pub subject: String,
    pub grade: Grade,
    pub finding: String,
    /// What to do about it; empty where there is nothing to do.
    pub mend: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, subject: impl Into<String>, grade: Grade, finding: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { subject: subject.into(), grade, finding: finding.into(), mend: mend.into() });
    }

    fn good(&mut self, subject: impl Into<String>, finding: impl Into<String>) {
        self.add(subject, Grade::Good, finding, "");
    }
}

/// Looks at the machine, and with a configuration at all that it names.
pub async fn examine(config: Option<&Config>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        findings.good("user", "root");
    } else {
        findings.add("user", Grade::Warning, "without root, some things cannot be looked at", "run it with sudo");
    }
    machine(&mut findings, is_root);
    let Some(config) = config else {
        findings.add(
            "configuration",
            Grade::Note,
            "none was given",
            "--config FILE has interfaces and servers looked at too",
        );
        return findings.0;
    };
    let network = match Network::open().await {
        Ok((network, _)) => network,
        Err(error) => {
            findings.add("network", Grade::Problem, error.to_string(), "netlink is needed");
            return findings.0;
        }
    };
    for interface in &config.gateway.interfaces {
        let link = network.interface(&interface.name).await.ok().flatten();
        examine_interface(&mut findings, &interface.name, interface.xdp, link.as_ref());
    }
    forwarding(&mut findings, config);
    for service in &config.services {
        if service.mode == Mode::Nat {
            ports(&mut findings, service);
        }
        for server in &service.servers {
            for way in desire::ways(config, server) {
                examine_way(&mut findings, &network, config, service, &server.name, &way).await;
            }
        }
        needs(&mut findings, service);
    }
    addresses(&mut findings, &network, config).await;
    findings.0
}

/// Name of an interface, or its number if it has none any more.
fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("interface {index}"))
}

fn machine(findings: &mut Findings, is_root: bool) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= OLDEST => findings.good("kernel", format!("Linux {release}")),
        Some(_) => findings.add(
            "kernel",
            Grade::Problem,
            format!("Linux {release} is older than {}.{}", OLDEST.0, OLDEST.1),
            "use Debian 12 or a later kernel: the packet path needs bpf_loop and is tested from 6.1 on",
        ),
        None => {
            findings.add("kernel", Grade::Warning, format!("cannot tell the version of `{release}`"), "6.1 is needed")
        }
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        findings.good("BTF", "the kernel describes its types");
    } else {
        findings.add(
            "BTF",
            Grade::Note,
            "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)",
            "the gateway works without; tools such as bpftool tell less",
        );
    }
    if has_own_pins() {
        findings.add("pins", Grade::Warning, OWN_PINS, "nsenter --net=/run/netns/NAME loadbalancer run");
    }
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => findings.add(
            "JIT",
            Grade::Warning,
            "BPF programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // Kernels that always compile have no such file.
        _ => findings.good("JIT", "BPF programs are compiled"),
    }
    if !is_root {
        return;
    }
    let small = Sizes { services: 2, backends: 8, rings: 2, flows: 1_000, nat_flows: 1_000, vips: 8 };
    match Kernel::load(small, None) {
        Ok(_) => findings.good("packet path", "the kernel's verifier accepts it"),
        Err(error) => findings.add(
            "packet path",
            Grade::Problem,
            error.to_string(),
            "report this with the kernel's version, please; Debian's 6.1 and 6.12 are known to work",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn examine_interface(findings: &mut Findings, name: &str, mode: XdpMode, link: Option<&Link>) {
    let subject = format!("interface {name}");
    let Some(link) = link else {
        findings.add(
            subject,
            Grade::Problem,
            "it does not exist",
            "correct `interfaces` in [gateway]; `ip link` lists them",
        );
        return;
    };
    if !link.is_up {
        findings.add(
            &subject,
            Grade::Problem,
            "it is down, or has no carrier",
            format!("ip link set {name} up; check the cable"),
        );
    }
    if let Ok(Some(program)) = kernel::occupant(name) {
        if program.contains("loadbalancer") {
            findings.good(&subject, format!("runs {program}"));
        } else {
            findings.add(
                &subject,
                Grade::Problem,
                format!("it runs another XDP program: {program}"),
                format!("ip link set dev {name} xdp off, or leave it out of `interfaces`"),
            );
        }
    }
    let driver = facts::driver(name).unwrap_or_default();
    match (link.kind.as_str(), mode) {
        ("vlan" | "bridge" | "macvlan" | "tun", XdpMode::Native) => findings.add(
            &subject,
            Grade::Problem,
            format!("a {} has no native XDP", link.kind),
            "attach to the interface below it (tags are understood), or set xdp = \"generic\"",
        ),
        ("vlan" | "bridge" | "macvlan", _) => findings.add(
            &subject,
            Grade::Warning,
            format!("a {} has no native XDP: generic XDP is several times slower", link.kind),
            "attach to the interface below it; VLAN tags are understood",
        ),
        ("veth", _) => findings.add(
            &subject,
            Grade::Note,
            "veth: what XDP sends arrives only if the other end runs an XDP program or has GRO on",
            "on the other end: ethtool -K DEVICE gro on",
        ),
        _ => findings.good(
            &subject,
            format!("driver {}, MTU {}", if driver.is_empty() { "unknown" } else { &driver }, link.mtu),
        ),
    }
    if facts::has_lro(name).unwrap_or(false) {
        findings.add(
            &subject,
            Grade::Problem,
            "large receive offload is on, with which drivers refuse XDP",
            format!("ethtool -K {name} lro off"),
        );
    }
    if link.kind == "veth" && facts::has_tx_checksum(name).unwrap_or(false) {
        findings.add(
            &subject,
            Grade::Warning,
            "checksum offload is on: packets from the other end have no checksums yet when XDP rewrites them",
            format!("ethtool -K {name} tx off, on both ends"),
        );
    }
    match facts::rp_filter(name) {
        Ok(1) => findings.add(
            &subject,
            Grade::Warning,
            "strict reverse-path filtering: the kernel drops replies of DSR servers that come another way than it would send",
            format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
        ),
        Ok(_) => findings.good(&subject, "reverse-path filtering is not strict"),
        Err(_) => {}
    }
}

fn forwarding(findings: &mut Findings, config: &Config) {
    let has = |ipv6: bool| {
        let mut servers = config.services.iter().filter(|service| service.mode.is_dsr()).flat_map(|s| &s.listen);
        servers.any(|listen| listen.addr.is_ipv6() == ipv6)
    };
    for (wanted, key, value) in [
        (has(false), "net.ipv4.ip_forward", facts::ipv4_forwarding()),
        (has(true), "net.ipv6.conf.all.forwarding", facts::ipv6_forwarding()),
    ] {
        match value {
            Ok(false) if wanted => findings.add(
                "forwarding",
                Grade::Warning,
                format!("{key} is 0: replies of DSR servers that have this machine as their router are lost"),
                format!("sysctl -w {key}=1, unless servers have another router"),
            ),
            Ok(_) | Err(_) => {}
        }
    }
}

fn ports(findings: &mut Findings, service: &Service) {
    let subject = format!("service {}", service.name);
    let (Ok(own), Ok(reserved)) = (facts::local_port_range(), facts::reserved_ports()) else {
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

async fn examine_way(
    findings: &mut Findings,
    network: &Network,
    config: &Config,
    service: &Service,
    name: &str,
    way: &Way,
) {
    let addr = way.target;
    let channel = way.via.as_ref().map(|via| format!(" over {}", via.interface)).unwrap_or_default();
    let subject = format!("server {}/{name}{channel}", service.name);
    // A neighbour that nobody has asked for needs a moment.
    let mut hop = network.resolve(way).await;
    for _ in 0..20 {
        if !matches!(hop, Err(ResolveError::Pending { .. })) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        hop = network.resolve(way).await;
    }
    let hop = match hop {
        Ok(hop) => hop,
        Err(error) => {
            findings.add(subject, Grade::Problem, error.to_string(), format!("ip route get {addr}; ping {addr}"));
            return;
        }
    };
    if let (Mode::DsrL2, Some(router)) = (service.mode, hop.router) {
        findings.add(
            &subject,
            Grade::Problem,
            format!("it is behind the router {router}, but dsr-l2 reaches only the gateway's own segment"),
            "use dsr-ipip or dsr-gue",
        );
    }
    let kind = match (service.mode, addr.is_ipv6()) {
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
            &subject,
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
        findings.good(&subject, format!("reached by {}, packets of {room} bytes", interface_name(hop.ifindex)));
    }
    let attached = config.gateway.interfaces.iter().map(|interface| network.interface(&interface.name));
    let mut on_attached = false;
    for link in attached {
        on_attached |= link.await.ok().flatten().is_some_and(|link| link.index == hop.ifindex);
    }
    if !on_attached && !service.mode.is_dsr() {
        findings.add(
            &subject,
            Grade::Problem,
            format!(
                "it is reached by {0}, which is not in `interfaces`: its replies would be missed",
                interface_name(hop.ifindex)
            ),
            format!("add \"{}\" to `interfaces` in [gateway]", interface_name(hop.ifindex)),
        );
    }
}

/// What the servers of a mode need, which cannot be seen from here.
fn needs(findings: &mut Findings, service: &Service) {
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

async fn addresses(findings: &mut Findings, network: &Network, config: &Config) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }
}
