//! Sockets that take the way a probe is to take.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::error::ProbeError;
use super::spec::CheckSpec;

/// When the server learns that the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// At once: a server that speaks first waits for it.
    Completed,
    /// With the first data, see the module `probe`.
    HeldBack,
}

/// A connection to the target. It ends in a reset, see the module `probe`.
pub(super) async fn connect(spec: &CheckSpec, handshake: Handshake) -> Result<TcpStream, ProbeError> {
    let socket = open(spec, Type::STREAM, Some(Protocol::TCP)).await?;
    let options = || -> io::Result<()> {
        socket.set_linger(Some(Duration::ZERO))?;
        if handshake == Handshake::HeldBack {
            socket.set_tcp_quickack(false)?;
        }
        Ok(())
    };
    options().map_err(|error| ProbeError::from_io(&error))?;
    bind(&socket, spec, spec.source_port)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.connect(spec.target).await.map_err(|error| ProbeError::from_io(&error))
}

/// A socket that takes datagrams from the target only.
pub(super) async fn datagrams(spec: &CheckSpec) -> Result<UdpSocket, ProbeError> {
    let socket = open(spec, Type::DGRAM, Some(Protocol::UDP)).await?;
    bind(&socket, spec, spec.source_port)?;
    socket.connect(&spec.target.into()).map_err(|error| ProbeError::from_io(&error))?;
    UdpSocket::from_std(socket.into()).map_err(|error| ProbeError::from_io(&error))
}

/// A socket that is bound to nothing yet but what [`super::Via`] says of interface and mark.
pub(super) async fn open(spec: &CheckSpec, kind: Type, protocol: Option<Protocol>) -> Result<Socket, ProbeError> {
    let (domain, kind) = (Domain::for_address(spec.target), kind.nonblocking().cloexec());
    let socket = match &spec.via.prober {
        Some(prober) => prober.socket(domain, kind, protocol).await,
        None => Socket::new(domain, kind, protocol),
    };
    let socket = socket.map_err(|error| ProbeError::from_open(&error))?;
    if let Some(interface) = &spec.via.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| ProbeError::from_bind_device(interface, &error))?;
    }
    if let Some(mark) = spec.via.mark {
        socket.set_mark(mark).map_err(|error| ProbeError::from_mark(&error))?;
    }
    Ok(socket)
}

/// Binds to the source address and to the port, if any.
pub(super) fn bind(socket: &Socket, spec: &CheckSpec, port: Option<NonZeroU16>) -> Result<(), ProbeError> {
    if spec.via.source.is_none() && port.is_none() {
        return Ok(());
    }
    let unspecified = match spec.target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = spec.via.source.unwrap_or(unspecified);
    let port = port.map_or(0, NonZeroU16::get);
    if port != 0 {
        // The last probe's connection may still be on its way out.
        socket.set_reuse_address(true).map_err(|error| ProbeError::from_io(&error))?;
    }
    let local: SocketAddr = match (source, spec.target) {
        // A link-local source needs the interface, which is the target's.
        (IpAddr::V6(ip), SocketAddr::V6(target)) => SocketAddrV6::new(ip, port, 0, target.scope_id()).into(),
        _ => SocketAddr::new(source, port),
    };
    socket.bind(&local.into()).map_err(|error| ProbeError::from_bind(local, &error))
}
