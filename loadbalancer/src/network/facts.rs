//! Settings of the kernel's network that matter to a gateway, read from where the kernel shows them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use socket2::{Domain, Socket, Type};

fn sysctl<T: FromStr>(path: &str) -> io::Result<T> {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}"))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path} is `{}`", text.trim())))
}

/// Reverse-path filtering that is in force on an interface: the larger of its own setting and that of all.
pub fn rp_filter(interface: &str) -> io::Result<u8> {
    let own: u8 = sysctl(&format!("ipv4/conf/{interface}/rp_filter"))?;
    Ok(own.max(sysctl("ipv4/conf/all/rp_filter")?))
}

pub fn ipv4_forwarding() -> io::Result<bool> {
    Ok(sysctl::<u8>("ipv4/ip_forward")? != 0)
}

pub fn ipv6_forwarding() -> io::Result<bool> {
    Ok(sysctl::<u8>("ipv6/conf/all/forwarding")? != 0)
}

/// Ports that the machine takes for its own connections.
pub fn local_port_range() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) => Ok(first..=last),
        _ => Err(io::Error::other(format!("ip_local_port_range is `{}`", text.trim()))),
    }
}

/// Ports within that range that it leaves alone.
pub fn reserved_ports() -> io::Result<Vec<RangeInclusive<u16>>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")?;
    let ranges = text.trim().split(',').filter(|part| !part.is_empty()).map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    });
    ranges
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other(format!("ip_local_reserved_ports is `{}`", text.trim())))
}

/// Commands of the ethtool interface (linux/ethtool.h).
const GET_DRIVER_INFO: u32 = 0x03;
const GET_TX_CHECKSUM: u32 = 0x16;
const GET_FLAGS: u32 = 0x25;
const FLAG_LRO: u32 = 1 << 15;

/// Name of an interface's driver.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the command, then the name in 32 bytes.
    let mut info = [0u8; 196];
    info[..4].copy_from_slice(&GET_DRIVER_INFO.to_ne_bytes());
    ethtool(interface, info.as_mut_ptr())?;
    let name = &info[4..36];
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Whether large receive offload is on.
pub fn has_lro(interface: &str) -> io::Result<bool> {
    Ok(ethtool_value(interface, GET_FLAGS)? & FLAG_LRO != 0)
}

/// Whether checksums are left to the interface.
pub fn has_tx_checksum(interface: &str) -> io::Result<bool> {
    Ok(ethtool_value(interface, GET_TX_CHECKSUM)? != 0)
}

fn ethtool_value(interface: &str, command: u32) -> io::Result<u32> {
    // struct ethtool_value: the command, then the value.
    let mut value = [command, 0];
    ethtool(interface, value.as_mut_ptr().cast())?;
    Ok(value[1])
}

/// `data` points to what the command asks for, which begins with the command.
fn ethtool(interface: &str, data: *mut u8) -> io::Result<()> {
    let name = CString::new(interface).map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.as_bytes().iter().take(libc::IFNAMSIZ - 1)) {
        *target = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data.cast();
    // SAFETY: the request lives through the call, and `data` has room for what its command gives.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
