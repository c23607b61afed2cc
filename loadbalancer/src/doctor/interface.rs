//! An interface that the gateway is to attach to.

use super::findings::Findings;
use crate::api::types::doctor::Grade;
use crate::config::XdpMode;
use crate::dataplane::attached_program::attached_program;
use crate::network::{Link, ethtool, sysctl};

pub(super) fn examine(findings: &mut Findings, name: &str, mode: XdpMode, link: Option<&Link>) {
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
    if let Ok(Some(program)) = attached_program(name) {
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
    kind(findings, &subject, name, mode, link);
    offloads(findings, &subject, name, link);
    match sysctl::rp_filter(name) {
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

/// Whether its driver runs XDP, and how well.
fn kind(findings: &mut Findings, subject: &str, name: &str, mode: XdpMode, link: &Link) {
    let driver = ethtool::driver(name).unwrap_or_default();
    match (link.kind.as_str(), mode) {
        ("vlan" | "bridge" | "macvlan" | "tun", XdpMode::Native) => findings.add(
            subject,
            Grade::Problem,
            format!("a {} has no native XDP", link.kind),
            "attach to the interface below it (tags are understood), or set xdp = \"generic\"",
        ),
        ("vlan" | "bridge" | "macvlan", _) => findings.add(
            subject,
            Grade::Warning,
            format!("a {} has no native XDP: generic XDP is several times slower", link.kind),
            "attach to the interface below it; VLAN tags are understood",
        ),
        ("veth", _) => findings.add(
            subject,
            Grade::Note,
            "veth: what XDP sends arrives only if the other end runs an XDP program or has GRO on",
            "on the other end: ethtool -K DEVICE gro on",
        ),
        _ => findings
            .good(subject, format!("driver {}, MTU {}", if driver.is_empty() { "unknown" } else { &driver }, link.mtu)),
    }
}

fn offloads(findings: &mut Findings, subject: &str, name: &str, link: &Link) {
    if ethtool::has_lro(name).unwrap_or(false) {
        findings.add(
            subject,
            Grade::Problem,
            "large receive offload is on, with which drivers refuse XDP",
            format!("ethtool -K {name} lro off"),
        );
    }
    if link.kind == "veth" && ethtool::has_tx_checksum(name).unwrap_or(false) {
        findings.add(
            subject,
            Grade::Warning,
            "checksum offload is on: packets from the other end have no checksums yet when XDP rewrites them",
            format!("ethtool -K {name} tx off, on both ends"),
        );
    }
}
