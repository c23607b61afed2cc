//! Switching off what a virtual interface leaves to hardware that it does not have.
//!
//! A veth sender leaves checksums unfinished and hands over packets larger than the link takes. An XDP program at the
//! other end would see both, so the lab makes senders finish their packets.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use super::netns::{Namespace, NetnsError};

/// Legacy ethtool commands that set one feature each (linux/ethtool.h), and what they set.
const FEATURES: [(u32, &str); 4] = [
    (0x17, "transmit checksums"),
    (0x1f, "TCP segmentation"),
    (0x24, "generic segmentation"),
    (0x2c, "generic receive merging"),
];
const SIOCETHTOOL: libc::c_ulong = 0x8946;

#[derive(Debug, Error)]
pub enum OffloadError {
    #[error("cannot switch off {feature} of {device} in {namespace}: {source}")]
    Set { feature: &'static str, device: String, namespace: String, source: io::Error },
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

impl EthtoolValue {
    /// Asks for the feature that a command sets.
    fn get(set: u32) -> Self {
        Self { command: set - 1, value: 0 }
    }
}

/// Switches off checksum, segmentation and merging offloads of some interfaces of a namespace.
pub fn switch_off(namespace: &Namespace, devices: &[&str]) -> Result<(), OffloadError> {
    namespace.run(|| {
        devices.iter().try_for_each(|device| {
            FEATURES.iter().try_for_each(|&(command, feature)| {
                set_off(device, command).map_err(|source| OffloadError::Set {
                    feature,
                    device: (*device).to_owned(),
                    namespace: namespace.name().to_owned(),
                    source,
                })
            })
        })
    })?
}

fn set_off(device: &str, command: u32) -> io::Result<()> {
    match exchange(device, EthtoolValue { command, value: 0 }) {
        // A veth interface has no segmentation to switch off while its peer has an XDP program.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let is_off = exchange(device, EthtoolValue::get(command))?.value == 0;
            if is_off { Ok(()) } else { Err(error) }
        }
        result => result.map(drop),
    }
}

/// Gives a value to the kernel, and what it made of it.
fn exchange(device: &str, mut value: EthtoolValue) -> io::Result<EthtoolValue> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `ifr_data` points to an `ethtool_value`, which outlives the call and is what the commands take.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(value)
}
