//! Forged first packets of connections, as fast as one thread can send them.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use loadbalancer::network::{interface, packet_socket};
use loadbalancer_common::checksum::{finish, sum_bytes};
use loadbalancer_common::net::{protocol, tcp_flag};
use socket2::{Domain, Socket, Type};

use crate::lab::host::End;

/// Frames of one system call.
const BATCH: usize = 64;
/// Ethernet, IPv4, TCP with a segment size.
const FRAME: usize = 14 + 20 + 24;

/// From where and to where they go.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Ethernet addresses of the receiver and of the sender.
    pub macs: [[u8; 6]; 2],
    pub vip: Ipv4Addr,
    pub port: u16,
    /// The first of the sources, and how many there are; each has one address.
    pub first_source: Ipv4Addr,
    pub sources: u32,
}

/// Sends `count` first packets; call in the namespace of the sender. The sources take turns, with another port each time.
pub fn send(interface: &str, target: &Target, count: u64) -> Result<()> {
    let socket =
        packet_socket::socket(interface::index(interface)?, Type::RAW, 0).context("cannot open a packet socket")?;
    let mut frames = vec![[0u8; FRAME]; BATCH];
    let mut sent = 0;
    while sent < count {
        let batch = BATCH.min((count - sent) as usize);
        for (place, frame) in frames.iter_mut().take(batch).enumerate() {
            write(frame, target, sent + place as u64);
        }
        send_all(&socket, &frames[..batch])?;
        sent += batch as u64;
    }
    Ok(())
}

/// Ethernet address of one end of a link.
pub fn mac_of(end: &End) -> Result<[u8; 6]> {
    let read = || -> io::Result<[u8; 6]> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: all zeroes is a valid `ifreq`; the last byte of the name stays zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(end.device.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the kernel fills in the address of the interface that is named.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled in the address.
        let bytes = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(std::array::from_fn(|index| bytes[index] as u8))
    };
    end.namespace.run(read)?.with_context(|| format!("cannot read the address of {}", end.device))
}

fn write(frame: &mut [u8; FRAME], target: &Target, number: u64) {
    let source = u32::from(target.first_source) + (number % u64::from(target.sources)) as u32;
    let port = 1_024 + (number / u64::from(target.sources) % 60_000) as u16;
    frame[..6].copy_from_slice(&target.macs[0]);
    frame[6..12].copy_from_slice(&target.macs[1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[14..34];
    ip.copy_from_slice(&[0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, protocol::TCP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ip[12..16].copy_from_slice(&source.to_be_bytes());
    ip[16..20].copy_from_slice(&target.vip.octets());
    let checksum = finish(sum_bytes(ip));
    ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
    let mut pseudo = [0u8; 36];
    pseudo[..4].copy_from_slice(&source.to_be_bytes());
    pseudo[4..8].copy_from_slice(&target.vip.octets());
    pseudo[8..12].copy_from_slice(&[0, protocol::TCP, 0, 24]);
    let tcp = &mut pseudo[12..];
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&target.port.to_be_bytes());
    tcp[4..8].copy_from_slice(&(number as u32).to_be_bytes());
    tcp[12..16].copy_from_slice(&[6 << 4, tcp_flag::SYN, 0xff, 0xff]);
    // A segment size of 1,460 bytes.
    tcp[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
    let checksum = finish(sum_bytes(&pseudo));
    frame[34..].copy_from_slice(&pseudo[12..]);
    frame[50..52].copy_from_slice(&checksum.to_ne_bytes());
}

fn send_all(socket: &Socket, frames: &[[u8; FRAME]]) -> Result<()> {
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    // SAFETY: all zeroes is a valid `mmsghdr`.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for ((frame, part), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
        *part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: FRAME };
        message.msg_hdr.msg_iov = std::ptr::from_mut(part);
        message.msg_hdr.msg_iovlen = 1;
    }
    let mut done = 0;
    while done < frames.len() {
        let rest = &mut messages[done..frames.len()];
        // SAFETY: the messages and what they point to live through the call, which only reads them.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENOBUFS) {
                continue;
            }
            bail!("cannot send forged packets: {error}");
        }
        done += sent as usize;
    }
    Ok(())
}
