//! The machine: its kernel, and what the kernel is set to.

use std::fs;
use std::path::Path;

use super::findings::Findings;
use crate::api::types::doctor::Grade;
use crate::config::Config;
use crate::controller::{OWN_PINS, has_own_pins};
use crate::dataplane::load::Kernel;
use crate::dataplane::sizes::Sizes;
use crate::network::sysctl;

/// The oldest kernel that is tested.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn examine(findings: &mut Findings, is_root: bool) {
    kernel(findings);
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
    if is_root {
        packet_path(findings);
    }
}

fn kernel(findings: &mut Findings) {
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
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn packet_path(findings: &mut Findings) {
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

/// Whether replies of DSR servers that have this machine as their router get through.
pub(super) fn forwarding(findings: &mut Findings, config: &Config) {
    let has = |ipv6: bool| {
        let mut servers = config.services.iter().filter(|service| service.mode.is_dsr()).flat_map(|s| &s.listen);
        servers.any(|listen| listen.addr.is_ipv6() == ipv6)
    };
    for (wanted, key, value) in [
        (has(false), "net.ipv4.ip_forward", sysctl::ipv4_forwarding()),
        (has(true), "net.ipv6.conf.all.forwarding", sysctl::ipv6_forwarding()),
    ] {
        if wanted && matches!(value, Ok(false)) {
            findings.add(
                "forwarding",
                Grade::Warning,
                format!("{key} is 0: replies of DSR servers that have this machine as their router are lost"),
                format!("sysctl -w {key}=1, unless servers have another router"),
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
