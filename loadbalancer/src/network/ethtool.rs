//! Drivers and offloads of interfaces, by the ioctl of ethtool(8). Its netlink family knows no driver's name.

#![expect(unsafe_code, reason = "no library offers this ioctl")]

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

/// Commands (linux/ethtool.h).
const GET_DRIVER_INFO: u32 = 0x03;
const GET_TX_CHECKSUMS: u32 = 0x16;
const GET_FLAGS: u32 = 0x25;
const FLAG_LRO: u32 = 1 << 15;
/// Bytes of the name in `struct ethtool_drvinfo`, which follows the command.
const DRIVER_NAME: usize = 32;

/// What can be switched on and off: the command of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Feature {
    /// Checksums are left to the interface.
    TxChecksums = 0x17,
    /// Packets of TCP larger than the link takes are left to the interface.
    TcpSegmentation = 0x1f,
    /// The same of all protocols, done in software just before the interface.
    Segmentation = 0x24,
    /// Packets of a flow are merged when they are received (GRO).
    ReceiveMerging = 0x2c,
}

/// Name of an interface's driver.
///
/// # Errors
/// There is no such interface, or its driver has no name.
pub fn driver(interface: &str) -> io::Result<String> {
    // `struct ethtool_drvinfo`.
    let mut info = [0u32; 49];
    info[0] = GET_DRIVER_INFO;
    command(interface, &mut info)?;
    let name = &bytemuck::bytes_of(&info)[size_of::<u32>()..][..DRIVER_NAME];
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Whether large receive offload is on.
///
/// # Errors
/// There is no such interface, or it does not say.
pub fn has_lro(interface: &str) -> io::Result<bool> {
    Ok(value(interface, GET_FLAGS)? & FLAG_LRO != 0)
}

/// Whether checksums are left to the interface.
///
/// # Errors
/// There is no such interface, or it does not say.
pub fn has_tx_checksum(interface: &str) -> io::Result<bool> {
    Ok(value(interface, GET_TX_CHECKSUMS)? != 0)
}

/// Switches a feature.
///
/// # Errors
/// There is no such interface, it lacks the feature, or rights are missing.
pub fn set_feature(interface: &str, feature: Feature, on: bool) -> io::Result<()> {
    command(interface, &mut [feature as u32, u32::from(on)])
}

fn value(interface: &str, get: u32) -> io::Result<u32> {
    // `struct ethtool_value`: the command, then the value.
    let mut value = [get, 0];
    command(interface, &mut value)?;
    Ok(value[1])
}

/// `data` begins with the command, and is as long as what the command gives.
fn command<const WORDS: usize>(interface: &str, data: &mut [u32; WORDS]) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // The last byte stays zero.
    for (to, from) in ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: data.as_mut_ptr().cast() };
    let mut request = libc::ifreq { ifr_name, ifr_ifru };
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: request and data outlive the call, and the callers give as many words as their commands read and write.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })?;
    Ok(())
}
