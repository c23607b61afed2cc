//! A flow as both sides send it, and what the gateway must make of each packet.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::affinity::state;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::mode;
use loadbalancer_tests::frames::frame::{Frame, GATEWAY_MAC, SERVER_MAC};
use loadbalancer_tests::frames::world::{Ran, Server, World};

use super::expect::{destination, expect, expect_sound, inner, source_port};
use super::family::Family;
use super::mode::Mode;
use super::world::packet;

/// A flow that has been opened.
pub(super) struct Flow {
    pub(super) family: Family,
    pub(super) mode: Mode,
    pub(super) service: u16,
    /// The client's first packet.
    pub(super) first: Frame,
    pub(super) server: Server,
    /// The client as the server sees it.
    pub(super) source: (String, u16),
}

impl Flow {
    /// Opens a flow with a SYN or a first datagram.
    pub(super) fn open(world: &mut World, service: u16, family: Family, mode: Mode, first: Frame) -> Result<Self> {
        let ran = world.run(&first.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded).context("open the flow")?;
        Self::opened(&ran, service, family, mode, first)
    }

    /// A flow whose first packet has come out.
    pub(super) fn opened(ran: &Ran, service: u16, family: Family, mode: Mode, first: Frame) -> Result<Self> {
        let servers = mode.servers(&family);
        let server = servers[destination(ran, &mode, &servers)?].clone();
        let source = match mode.mode {
            mode::NAT => (family.nat_source.to_owned(), source_port(ran, &family)),
            _ => (family.client.to_owned(), first.sport),
        };
        Ok(Self { family, mode, service, first, server, source })
    }

    /// The usual one, from a client's port.
    pub(super) fn tcp(world: &mut World, service: u16, family: Family, mode: Mode, port: u16) -> Result<Self> {
        Self::open(world, service, family, mode, packet(&family, protocol::TCP, port, tcp_flag::SYN))
    }

    pub(super) fn protocol(&self) -> u8 {
        self.first.protocol()
    }

    /// State in which the first packet puts it.
    pub(super) fn first_state(&self) -> u8 {
        if self.protocol() == protocol::TCP { state::TCP_SYN } else { state::UDP }
    }

    /// A packet of the client.
    pub(super) fn client(&self, flags: u8) -> Frame {
        packet(&self.family, self.protocol(), self.first.sport, flags).with(|f| {
            f.macs = self.first.macs;
            f.tags.clone_from(&self.first.tags);
        })
    }

    /// A packet of the server, as it sends it.
    pub(super) fn answer(&self, flags: u8) -> Frame {
        let server = self.server.addr.to_string();
        let (client, port) = &self.source;
        let frame = if self.protocol() == protocol::TCP {
            Frame::tcp(&server, 8080, client, *port, flags)
        } else {
            Frame::udp(&server, 8080, client, *port)
        };
        frame.with(|f| f.macs = (GATEWAY_MAC, SERVER_MAC))
    }

    /// A client's packet, as the server must get it.
    pub(super) fn at_server(&self, frame: Frame) -> Frame {
        frame.with(|f| {
            f.ttl -= 1;
            if self.mode.rewrites() {
                (f.dst, f.dport) = (self.server.addr, 8080);
            }
            if self.mode.mode == mode::NAT {
                (f.src, f.sport) = (self.source.0.parse().expect("an address"), self.source.1);
            }
        })
    }

    /// A server's packet, as the client must get it.
    pub(super) fn at_client(&self, frame: Frame) -> Frame {
        frame.with(|f| {
            f.ttl -= 1;
            f.macs = (self.first.macs.1, self.first.macs.0);
            f.tags.clone_from(&self.first.tags);
            (f.src, f.sport) = (self.family.vip.parse().expect("an address"), 80);
            (f.dst, f.dport) = (self.family.client.parse().expect("an address"), self.first.sport);
        })
    }

    /// Runs a client's packet, which must come to the flow's server.
    pub(super) fn send(&self, world: &mut World, frame: Frame) -> Result<()> {
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "REDIRECT", self.service, Outcome::Forwarded)?;
        self.expect_at_server(&ran, frame)
    }

    /// The output is a client's packet as the server must get it.
    pub(super) fn expect_at_server(&self, ran: &Ran, frame: Frame) -> Result<()> {
        expect_sound(ran)?;
        same(inner(ran, &self.mode), &self.at_server(frame).packet()).context("packet at the server")
    }

    /// Runs a server's packet, which must come to the client.
    pub(super) fn reply(&self, world: &mut World, frame: Frame) -> Result<()> {
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "TX", self.service, Outcome::ReplyForwarded)?;
        same(&ran.frame, &self.at_client(frame).bytes()).context("frame at the client")
    }
}

/// The same bytes. The error tells where they begin to differ, and no more: frames may be long.
pub(super) fn same(got: &[u8], expected: &[u8]) -> Result<()> {
    let at = got.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(got.len().min(expected.len()));
    let around = |bytes: &[u8]| bytes[at.saturating_sub(4)..bytes.len().min(at + 12)].to_vec();
    ensure!(
        got == expected,
        "differs from byte {at} on: expected {} bytes, there {:02x?}; got {} bytes, there {:02x?}",
        expected.len(),
        around(expected),
        got.len(),
        around(got)
    );
    Ok(())
}
