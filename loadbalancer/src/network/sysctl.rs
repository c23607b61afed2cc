//! Settings of the kernel's network that matter to a gateway, read from where the kernel shows them.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

fn path(parameter: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(parameter)
}

fn read<T: FromStr>(parameter: &str) -> io::Result<T> {
    let text = fs::read_to_string(path(parameter))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{parameter} is `{}`", text.trim())))
}

/// Sets what only makes less noise, where it can be set.
pub(super) fn try_write(parameter: &str, value: &str) {
    if let Err(error) = fs::write(path(parameter), value) {
        tracing::debug!(parameter, %error, "a parameter of the network stays as it is");
    }
}

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    path("ipv6").exists()
}

/// Reverse-path filtering that is in force on an interface: the larger of its own setting and that of all.
///
/// # Errors
/// The kernel does not show it, or as something else.
pub fn rp_filter(interface: &str) -> io::Result<u8> {
    let own: u8 = read(&format!("ipv4/conf/{interface}/rp_filter"))?;
    Ok(own.max(read("ipv4/conf/all/rp_filter")?))
}

/// Whether the machine forwards IPv4 packets.
///
/// # Errors
/// The kernel does not show it, or as something else.
pub fn ipv4_forwarding() -> io::Result<bool> {
    Ok(read::<u8>("ipv4/ip_forward")? != 0)
}

/// Whether the machine forwards IPv6 packets.
///
/// # Errors
/// The kernel does not show it, or as something else.
pub fn ipv6_forwarding() -> io::Result<bool> {
    Ok(read::<u8>("ipv6/conf/all/forwarding")? != 0)
}

/// Ports that the machine takes for its own connections.
///
/// # Errors
/// The kernel does not show it, or as something else.
pub fn local_port_range() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string(path("ipv4/ip_local_port_range"))?;
    let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) => Ok(first..=last),
        _ => Err(io::Error::other(format!("ip_local_port_range is `{}`", text.trim()))),
    }
}

/// Ports within that range that it leaves alone.
///
/// # Errors
/// The kernel does not show it, or as something else.
pub fn reserved_ports() -> io::Result<Vec<RangeInclusive<u16>>> {
    let text = fs::read_to_string(path("ipv4/ip_local_reserved_ports"))?;
    let ranges = text.trim().split(',').filter(|part| !part.is_empty()).map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    ranges
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other(format!("ip_local_reserved_ports is `{}`", text.trim())))
}
