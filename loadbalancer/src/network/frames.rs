//! Sockets for whole frames.

use std::io;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// A packet socket (packet(7)) on an interface, by which frames go out, and come in if they are of an EtherType (zero: of none).
///
/// `kind`: `RAW` for frames with their link header, `DGRAM` without.
///
/// # Errors
/// As when a socket is opened: rights are missing, or the interface.
pub fn socket(interface: u32, kind: Type, ethertype: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, kind, Some(Protocol::from(i32::from(ethertype.to_be()))))?;
    let address = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        let address = storage.cast::<libc::sockaddr_ll>();
        // SAFETY: the storage has room for any socket address, and is all zeroes.
        unsafe {
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = ethertype.to_be();
            (*address).sll_ifindex = interface as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        }
        Ok(())
    };
    // SAFETY: the closure makes a whole address of its family.
    let ((), address) = unsafe { SockAddr::try_init(address) }?;
    socket.bind(&address)?;
    Ok(socket)
}
