//! Sockets for whole frames (packet(7)).

#![expect(
    unsafe_code,
    reason = "no library makes addresses of packet sockets, or sends many frames without allocating"
)]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{setsockopt, sockopt::SetBool};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// `PACKET_QDISC_BYPASS`: frames go to the interface at once, past its queue.
#[derive(Clone, Copy, Debug)]
struct QdiscBypass;

nix::setsockopt_impl!(QdiscBypass, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bool, SetBool);

/// A packet socket on an interface, by which frames go out, and come in if they are of an EtherType (zero: of none).
///
/// `kind`: `RAW` for frames with their link header, `DGRAM` without.
///
/// # Errors
/// As when a socket is opened: rights are missing, or the interface.
pub fn socket(interface: u32, kind: Type, ethertype: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(i32::from(ethertype.to_be()))))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage has room for any socket address, and any bytes are one of this type.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = interface as i32;
    // SAFETY: it is a whole address of its family.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket.bind(&address)?;
    Ok(socket)
}

/// Has frames go out at once; a queue in between would only add latency.
///
/// # Errors
/// It is no packet socket.
pub fn bypass_queue(socket: &Socket) -> io::Result<()> {
    Ok(setsockopt(socket, QdiscBypass, &true)?)
}

/// Frames that one system call sends.
pub const BATCH: usize = 64;

/// Sends frames, at most [`BATCH`], of two parts each. Gives how many the kernel took.
///
/// # Errors
/// The kernel took none.
pub fn send_batch<'a>(socket: &Socket, frames: impl IntoIterator<Item = [&'a [u8]; 2]>) -> io::Result<usize> {
    let mut parts = [[libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2]; BATCH];
    // SAFETY: all zeroes is a valid `mmsghdr`.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for ((frame, parts), message) in frames.into_iter().zip(&mut parts).zip(&mut messages) {
        *parts = frame.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        message.msg_hdr.msg_iov = parts.as_mut_ptr();
        message.msg_hdr.msg_iovlen = parts.len();
        count += 1;
    }
    let mut done = 0;
    while done < count {
        let rest = &mut messages[done..count];
        // SAFETY: the messages and what they point to live through the call, which only reads them.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
        if sent <= 0 {
            return if done > 0 { Ok(done) } else { Err(io::Error::last_os_error()) };
        }
        done += sent as usize;
    }
    Ok(done)
}
