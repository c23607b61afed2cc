//! Sockets that take the way a probe is to take.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::error::{Phase, ProbeError};
use super::limit::TimeLimit;
use super::target::{Forwarder, Target};
use crate::network::netns::Namespace;

/// Where sockets of probes are opened; clones are one. Those whose packets are to meet the packet path are opened in a
/// namespace of their own, which is there or not: by default it is not.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    packet_path: Arc<Mutex<Option<Namespace>>>,
}

/// When the server learns that the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// At once: a server that speaks first waits for it.
    Completed,
    /// With the first data, see the module `probe`.
    HeldBack,
}

impl Sockets {
    /// The namespace from which packets meet the packet path, from now on.
    pub fn set_packet_path(&self, namespace: Option<Namespace>) {
        *self.packet_path.lock().unwrap_or_else(PoisonError::into_inner) = namespace;
    }

    /// A connection to the target. It ends in a reset, see the module `probe`.
    pub(super) async fn connect(
        &self,
        target: &Target,
        handshake: Handshake,
        limit: &TimeLimit,
    ) -> Result<TcpStream, ProbeError> {
        let connected = async {
            let socket = self.open(target, Type::STREAM, Some(Protocol::TCP)).await?;
            let options = || -> io::Result<()> {
                socket.set_linger(Some(Duration::ZERO))?;
                if handshake == Handshake::HeldBack {
                    socket.set_tcp_quickack(false)?;
                }
                Ok(())
            };
            options().map_err(|error| ProbeError::from_io(&error))?;
            bind(&socket, target, target.source_port)?;
            let socket = TcpSocket::from_std_stream(socket.into());
            socket.connect(target.address).await.map_err(|error| ProbeError::from_io(&error))
        };
        limit.within(Phase::Connect, connected).await
    }

    /// A socket that takes datagrams from the target only.
    pub(super) async fn datagrams(&self, target: &Target) -> Result<UdpSocket, ProbeError> {
        let socket = self.open(target, Type::DGRAM, Some(Protocol::UDP)).await?;
        bind(&socket, target, target.source_port)?;
        socket.connect(&target.address.into()).map_err(|error| ProbeError::from_io(&error))?;
        UdpSocket::from_std(socket.into()).map_err(|error| ProbeError::from_io(&error))
    }

    /// A socket that is bound to nothing yet but what [`super::Via`] says of interface and mark.
    pub(super) async fn open(
        &self,
        target: &Target,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> Result<Socket, ProbeError> {
        let (domain, kind) = (Domain::for_address(target.address), kind.nonblocking().cloexec());
        let via = &target.via;
        let socket = match via.forwarder {
            Forwarder::Kernel => Socket::new(domain, kind, protocol),
            Forwarder::PacketPath => {
                let namespace = self.packet_path.lock().unwrap_or_else(PoisonError::into_inner).clone();
                namespace.ok_or(ProbeError::NoPacketPath)?.socket(domain, kind, protocol).await
            }
        };
        let socket = socket.map_err(|error| ProbeError::from_open(&error))?;
        if let Some(interface) = &via.interface {
            socket
                .bind_device(Some(interface.as_bytes()))
                .map_err(|error| ProbeError::from_bind_device(interface, &error))?;
        }
        if let Some(mark) = via.mark {
            socket.set_mark(mark).map_err(|error| ProbeError::from_mark(&error))?;
        }
        Ok(socket)
    }
}

/// Binds to the source address and to the port, if any.
pub(super) fn bind(socket: &Socket, target: &Target, port: Option<NonZeroU16>) -> Result<(), ProbeError> {
    if target.via.source.is_none() && port.is_none() {
        return Ok(());
    }
    let unspecified = match target.address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = target.via.source.unwrap_or(unspecified);
    let port = port.map_or(0, NonZeroU16::get);
    if port != 0 {
        // The last probe's connection may still be on its way out.
        socket.set_reuse_address(true).map_err(|error| ProbeError::from_io(&error))?;
    }
    let local: SocketAddr = match (source, target.address) {
        // A link-local source needs the interface, which is the target's.
        (IpAddr::V6(ip), SocketAddr::V6(target)) => SocketAddrV6::new(ip, port, 0, target.scope_id()).into(),
        _ => SocketAddr::new(source, port),
    };
    socket.bind(&local.into()).map_err(|error| ProbeError::from_bind(local, &error))
}

#[cfg(test)]
mod tests;
