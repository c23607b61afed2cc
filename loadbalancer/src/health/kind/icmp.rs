//! The ICMP and ICMPv6 check: an echo request, and the reply to it (RFC 792, RFC 4443 section 4).

use loadbalancer_common::checksum;
use socket2::{Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::udp;
use crate::health::error::ProbeError;
use crate::health::limit::TimeLimit;
use crate::health::socket::{Sockets, bind};
use crate::health::target::Target;

/// Type, code, checksum, identifier and sequence number.
const HEADER: usize = 8;
/// What the payload is of, so that a reply to another probe is not taken for the one to this.
const TOKEN: usize = 8;

/// Sends an echo request and waits for the reply to it.
pub(in crate::health) async fn ask(target: &Target, sockets: &Sockets, limit: &TimeLimit) -> Result<(), ProbeError> {
    // Tokio has no type for sockets of this kind, but they send and receive datagrams as those of UDP do.
    let socket =
        UdpSocket::from_std(open(target, sockets).await?.into()).map_err(|error| ProbeError::from_io(&error))?;
    let token = getrandom::u64().map_err(|_| ProbeError::OutOf("random numbers"))?.to_be_bytes();
    let echo = Echo { ipv6: target.address.is_ipv6(), token };
    let mut received = udp::exchange(&socket, &echo.request(), limit).await?;
    while !echo.is_answered_by(&received) {
        received = udp::receive(&socket, limit).await?;
    }
    Ok(())
}

/// A ping socket where the system allows it, because it gets the replies to its own requests only; else a raw one.
async fn open(target: &Target, sockets: &Sockets) -> Result<Socket, ProbeError> {
    let protocol = if target.address.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = match sockets.open(target, Type::DGRAM, Some(protocol)).await {
        Ok(socket) => socket,
        Err(_) => sockets.open(target, Type::RAW, Some(protocol)).await?,
    };
    bind(&socket, target, None)?;
    let mut address = target.address;
    address.set_port(0);
    // A raw socket would else get a copy of every ICMP packet that comes to the gateway.
    socket.connect(&address.into()).map_err(|error| ProbeError::from_io(&error))?;
    Ok(socket)
}

struct Echo {
    ipv6: bool,
    token: [u8; TOKEN],
}

impl Echo {
    /// With the checksum of ICMPv4; that of ICMPv6 covers addresses, so the system makes it.
    fn request(&self) -> [u8; HEADER + TOKEN] {
        let mut packet = [0; HEADER + TOKEN];
        packet[0] = if self.ipv6 { 128 } else { 8 };
        // Ping sockets put an identifier of their own here.
        packet[4..6].copy_from_slice(&self.token[..2]);
        packet[6..8].copy_from_slice(&1u16.to_be_bytes());
        packet[HEADER..].copy_from_slice(&self.token);
        if !self.ipv6 {
            let sum = checksum::finish(checksum::sum_bytes(&packet));
            packet[2..4].copy_from_slice(&sum.to_ne_bytes());
        }
        packet
    }

    fn is_answered_by(&self, received: &[u8]) -> bool {
        let is_reply = |packet: &[u8]| {
            let kind = if self.ipv6 { 129 } else { 0 };
            packet.len() >= HEADER + TOKEN && packet[..2] == [kind, 0] && packet[HEADER..HEADER + TOKEN] == self.token
        };
        // A raw socket of IPv4 gives the IP header as well; none of ICMP begins as that does.
        match received.first() {
            Some(first) if !self.ipv6 && first >> 4 == 4 => {
                received.get(usize::from(first & 0x0f) * 4..).is_some_and(is_reply)
            }
            _ => is_reply(received),
        }
    }
}

#[cfg(test)]
mod tests;
