//! Sockets on which a server listens, on all addresses of its host.

use std::io;
use std::net::{Ipv6Addr, Shutdown, SocketAddr};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6RecvPacketInfo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 4096;

/// Stops listening when dropped, even if a process that was forked at the moment has a copy of the descriptor.
pub(super) struct Listener(TcpListener);

impl Listener {
    pub async fn accept(&self) -> io::Result<TcpStream> {
        Ok(self.0.accept().await?.0)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = SockRef::from(&self.0).shutdown(Shutdown::Both) {
            eprintln!("lab: a listener may linger: {error}");
        }
    }
}

pub(super) fn tcp_listener(port: u16) -> io::Result<Listener> {
    let socket = wildcard(Type::STREAM, Protocol::TCP, port)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).map(Listener)
}

/// A socket that tells which of the host's addresses a datagram came to: the reply must come from there.
pub(super) fn udp_socket(port: u16) -> io::Result<UdpSocket> {
    let socket = wildcard(Type::DGRAM, Protocol::UDP, port)?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    UdpSocket::from_std(socket.into())
}

/// A socket on all addresses of both families, also those added later.
fn wildcard(kind: Type, protocol: Protocol, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    // Connections of an earlier start may still be there.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}
