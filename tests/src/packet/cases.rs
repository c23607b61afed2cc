//! The tables.

use anyhow::{Context, Result, bail, ensure};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_common::service::{Service, mode};

use super::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, SERVER_MAC, Transport, verify};
use super::runner::Case;
use super::world::{Ran, Server, World};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const FIN: u8 = tcp_flag::FIN;
const RST: u8 = tcp_flag::RST;

/// One family's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) client: &'static str,
    pub(super) vip: &'static str,
    pub(super) other: &'static str,
    pub(super) servers: [&'static str; 2],
    pub(super) nat_source: &'static str,
}

pub(super) const V4: Family = Family {
    name: "v4",
    client: "198.51.100.7",
    vip: "192.0.2.10",
    other: "192.0.2.99",
    servers: ["10.0.0.11", "10.0.0.12"],
    nat_source: "10.0.0.1",
};
pub(super) const V6: Family = Family {
    name: "v6",
    client: "2001:db8:1::7",
    vip: "2001:db8::10",
    other: "2001:db8::99",
    servers: ["fd00::11", "fd00::12"],
    nat_source: "fd00::1",
};
pub(super) const FAMILIES: [Family; 2] = [V4, V6];

/// A forwarding mode with the encapsulation and the family of the servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) name: &'static str,
    pub(super) mode: u8,
    /// Encapsulation, and whether servers have IPv6 addresses; none: the packet's family.
    pub(super) tunnel: Option<(u8, bool)>,
}

pub(super) const MODES: [Mode; 7] = [
    Mode { name: "nat", mode: mode::NAT, tunnel: None },
    Mode { name: "dnat", mode: mode::DNAT, tunnel: None },
    Mode { name: "dsr-l2", mode: mode::DSR, tunnel: None },
    Mode { name: "dsr-ipip-over4", mode: mode::DSR, tunnel: Some((encap::IPV4, false)) },
    Mode { name: "dsr-ipip-over6", mode: mode::DSR, tunnel: Some((encap::IPV6, true)) },
    Mode { name: "dsr-gue-over4", mode: mode::DSR, tunnel: Some((encap::GUE_IPV4, false)) },
    Mode { name: "dsr-gue-over6", mode: mode::DSR, tunnel: Some((encap::GUE_IPV6, true)) },
];

impl Mode {
    pub(super) fn rewrites(&self) -> bool {
        self.mode != mode::DSR
    }

    pub(super) fn servers(&self, family: &Family) -> [Server; 2] {
        let (encap, addrs) = match self.tunnel {
            Some((encap, true)) => (encap, V6.servers),
            Some((encap, false)) => (encap, V4.servers),
            None => (encap::NONE, family.servers),
        };
        addrs.map(|addr| {
            Server::at(addr).with(|s| {
                s.encap = encap;
                s.port = if self.rewrites() { 8080 } else { 0 };
            })
        })
    }
}

/// The first packet of a flow, or one in its middle.
pub(super) fn packet(family: &Family, number: u8, sport: u16, flags: u8) -> Frame {
    if number == protocol::TCP {
        Frame::tcp(family.client, sport, family.vip, 80, flags)
    } else {
        Frame::udp(family.client, sport, family.vip, 80)
    }
}

/// A world with one service of two servers.
pub(super) fn world(family: &Family, mode: &Mode, flags: u8) -> Result<(World, u16, Vec<u16>)> {
    let mut world = World::new()?;
    let listen = [(family.vip, 80, protocol::TCP), (family.vip, 80, protocol::UDP)];
    let (service, backends) = world.service(mode.mode, flags, &listen, &mode.servers(family))?;
    Ok((world, service, backends))
}

pub(super) fn expect(ran: &Ran, action: &str, service: u16, outcome: Outcome) -> Result<()> {
    let names: Vec<String> = ran
        .counted
        .iter()
        .map(|(service, index, by)| format!("{}/{} +{by}", service, Outcome::ALL[*index].label()))
        .collect();
    ensure!(
        ran.action == action && ran.counted == [(service, outcome as usize, 1)],
        "expected {action} and {service}/{} +1, got {} and {names:?}",
        outcome.label(),
        ran.action
    );
    Ok(())
}

/// The output must be this frame, to the byte.
pub(super) fn expect_frame(ran: &Ran, expected: &[u8]) -> Result<()> {
    if ran.frame != expected {
        let at =
            ran.frame.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(ran.frame.len().min(expected.len()));
        bail!(
            "frames differ from byte {at} on ({} and {} bytes)\n  expected {:02x?}\n  got      {:02x?}",
            expected.len(),
            ran.frame.len(),
            expected,
            ran.frame
        );
    }
    Ok(())
}

pub(super) fn expect_sound(ran: &Ran) -> Result<()> {
    verify(&ran.frame[14..]).map_err(|what| anyhow::anyhow!("wrong in the output: {what}\n  {:02x?}", ran.frame))
}

/// Which server the output goes to: one of the two addresses, as text.
pub(super) fn destination(ran: &Ran, mode: &Mode, servers: &[Server]) -> Result<usize> {
    let frame = &ran.frame;
    ensure!(frame[..6] == SERVER_MAC && frame[6..12] == GATEWAY_MAC, "link header {:02x?}", &frame[..14]);
    if mode.mode == mode::DSR && mode.tunnel.is_none() {
        return Ok(0);
    }
    let addr: std::net::IpAddr = match frame[14] >> 4 {
        4 => <[u8; 4]>::try_from(&frame[30..34])?.into(),
        _ => <[u8; 16]>::try_from(&frame[38..54])?.into(),
    };
    servers.iter().position(|server| server.addr == addr).with_context(|| format!("{addr} is no server"))
}

/// The packet as the server gets it, without the outer header.
pub(super) fn inner<'a>(ran: &'a Ran, mode: &Mode) -> &'a [u8] {
    let skip = match mode.tunnel {
        Some((encap, _)) => encap::overhead(encap) as usize,
        None => 0,
    };
    &ran.frame[14 + skip..]
}

/// The source port that `nat` gave.
pub(super) fn source_port(ran: &Ran, family: &Family) -> u16 {
    let l4 = if family.name == "v6" { 54 } else { 34 };
    u16::from_be_bytes([ran.frame[l4], ran.frame[l4 + 1]])
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for mode in MODES {
            for number in [protocol::TCP, protocol::UDP] {
                forwarding(&mut cases, family, mode, number);
            }
        }
        for mode in MODES {
            lifecycle(&mut cases, family, mode);
        }
        replies(&mut cases, family);
        answers(&mut cases, family);
        foreign(&mut cases, family);
        super::corners::add(&mut cases, family);
        super::timestamps::add(&mut cases, family);
        super::jumbo::add(&mut cases, family);
        super::lifetime::add(&mut cases, family);
        super::fragments::add(&mut cases, family);
        super::last_hop::add(&mut cases, family);
        super::hot::add(&mut cases, family);
        super::repair::add(&mut cases, family);
        super::ends::add(&mut cases, family);
        super::signals::add(&mut cases, family);
        super::probes::add(&mut cases, family);
        super::queue::add(&mut cases, family);
        super::ticket::add(&mut cases, family);
    }
    cases
}

/// hit, miss, no server, drained, full: for each family, protocol and mode.
fn forwarding(cases: &mut Vec<Case>, family: Family, mode: Mode, number: u8) {
    let proto = if number == protocol::TCP { "tcp" } else { "udp" };
    let name = |what: &str| format!("{}/{proto}/{}/{what}", family.name, mode.name);

    cases.push(Case::new(name("first packet is forwarded whole"), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let servers = mode.servers(&family);
        let frame = packet(&family, number, 40_000, SYN);
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        expect_sound(&ran)?;
        let chosen = destination(&ran, &mode, &servers)?;
        let expected = frame.clone().with(|f| {
            f.ttl -= 1;
            if mode.rewrites() {
                f.dst = servers[chosen].addr;
                f.dport = 8080;
            }
            if mode.mode == mode::NAT {
                f.src = family.nat_source.parse().expect("an address");
                f.sport = source_port(&ran, &family);
            }
        });
        ensure!(
            inner(&ran, &mode) == expected.packet(),
            "the packet is not as expected\n  {:02x?}\n  {:02x?}",
            inner(&ran, &mode),
            expected.packet()
        );
        if mode.mode == mode::NAT {
            ensure!((20_000..30_000).contains(&expected.sport), "port {} is out of the range", expected.sport);
        }
        let total: i64 = backends.iter().map(|id| world.active(*id)).sum();
        ensure!(total == 1, "{total} active flows, not 1");
        Ok(())
    }));

    cases.push(Case::new(name("flow stays on its server when the ring changes"), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let servers = mode.servers(&family);
        let mut first = Vec::new();
        for sport in 40_000..40_020 {
            let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
            first.push((
                destination(&ran, &mode, &servers)?,
                if mode.mode == mode::NAT { source_port(&ran, &family) } else { 0 },
            ));
        }
        let reversed: Vec<u16> = backends.iter().rev().copied().collect();
        world.set_ring(service, &reversed)?;
        for (sport, before) in (40_000..40_020).zip(&first) {
            let ran = world.run(&packet(&family, number, sport, ACK).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
            expect_sound(&ran)?;
            let now = (
                destination(&ran, &mode, &servers)?,
                if mode.mode == mode::NAT { source_port(&ran, &family) } else { 0 },
            );
            ensure!(now == *before, "flow {sport} went from {before:?} to {now:?}");
        }
        Ok(())
    }));

    for (what, flags, reset) in [("dropped", 0, false), ("answered", Service::REFUSE_WITH_RESET, true)] {
        let action = if reset { "TX" } else { "DROP" };
        cases.push(Case::new(name(&format!("without a server it is {what}")), move || {
            let (mut world, service, _) = world(&family, &mode, flags)?;
            world.set_ring(service, &[])?;
            let ran = world.run(&packet(&family, number, 40_000, SYN).bytes())?;
            expect(&ran, action, service, Outcome::NoServer)?;
            if reset { expect_refusal(&ran, &family, number) } else { Ok(()) }
        }));
        cases.push(Case::new(name(&format!("with every server full it is {what}")), move || {
            let (mut world, service, backends) = world(&family, &mode, flags)?;
            for id in &backends {
                world.change_backend(*id, |b| b.high_water = 5)?;
                world.set_active(*id, 5);
            }
            for sport in [40_000, 40_001, 40_002] {
                let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
                expect(&ran, action, service, Outcome::Full)?;
                if reset {
                    expect_refusal(&ran, &family, number)?;
                }
            }
            Ok(())
        }));
    }

    cases.push(Case::new(name("a full server's share goes to the other"), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        world.change_backend(backends[0], |b| b.high_water = 3)?;
        for sport in 40_000..40_040 {
            let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        }
        let active = [world.active(backends[0]), world.active(backends[1])];
        ensure!(active == [3, 37], "active flows {active:?}, expected [3, 37]");
        Ok(())
    }));

    cases.push(Case::new(name("a drained server keeps its flows and gets no new one"), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let servers = mode.servers(&family);
        let mut first = Vec::new();
        for sport in 40_000..40_010 {
            first.push(destination(&world.run(&packet(&family, number, sport, SYN).bytes())?, &mode, &servers)?);
        }
        let before = world.active(backends[0]);
        world.change_backend(backends[0], |b| b.flags &= !Backend::ACCEPTS)?;
        for (sport, was) in (40_000..40_010).zip(first) {
            let ran = world.run(&packet(&family, number, sport, ACK).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
            ensure!(destination(&ran, &mode, &servers)? == was, "flow {sport} was moved");
        }
        for sport in 41_000..41_020 {
            let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        }
        ensure!(world.active(backends[0]) == before, "the drained server got a new flow");
        Ok(())
    }));
}

/// The answer to a refused packet.
fn expect_refusal(ran: &Ran, family: &Family, number: u8) -> Result<()> {
    expect_sound(ran)?;
    ensure!(
        ran.frame[..6] == CLIENT_MAC && ran.frame[6..12] == GATEWAY_MAC,
        "not sent back: {:02x?}",
        &ran.frame[..14]
    );
    if number == protocol::TCP {
        let reset = Frame::tcp(family.vip, 80, family.client, 40_000, RST | ACK).with(|f| {
            f.payload.clear();
            f.transport =
                Transport::Tcp { flags: RST | ACK, sequence: 0, acknowledged: 0x0102_0305, options: Vec::new() };
        });
        let l4 = if reset.is_v6() { 40 } else { 20 };
        // Ports differ between cases, sequence numbers and flags must not.
        let got = &ran.frame[14 + l4 + 4..14 + l4 + 14];
        ensure!(got == &reset.packet()[l4 + 4..l4 + 14], "not the reset that answers it: {got:02x?}");
    } else {
        let at = if family.name == "v6" { 54 } else { 34 };
        let expected = if family.name == "v6" { [1, 4] } else { [3, 3] };
        ensure!(ran.frame[at..at + 2] == expected, "not port unreachable: {:02x?}", &ran.frame[at..at + 8]);
    }
    Ok(())
}

/// How the count of active flows follows a TCP connection.
fn lifecycle(cases: &mut Vec<Case>, family: Family, mode: Mode) {
    for (what, end) in [("FIN", FIN | ACK), ("RST", RST)] {
        cases.push(Case::new(
            format!("{}/tcp/{}/a client's {what} ends the flow's count once", family.name, mode.name),
            move || {
                let (mut world, service, backends) = world(&family, &mode, 0)?;
                let total = |world: &World| backends.iter().map(|id| world.active(*id)).sum::<i64>();
                for (flags, expected) in [(SYN, 1), (SYN, 1), (ACK, 1), (end, 0), (end, 0), (ACK, 0)] {
                    let ran = world.run(&packet(&family, protocol::TCP, 40_000, flags).bytes())?;
                    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                    ensure!(
                        total(&world) == expected,
                        "{} active after {flags:#x}, expected {expected}",
                        total(&world)
                    );
                }
                let ran = world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                ensure!(total(&world) == 1, "a new connection on the same ports must count");
                Ok(())
            },
        ));
    }
    cases.push(Case::new(
        format!("{}/tcp/{}/a packet in the middle of an unknown flow", family.name, mode.name),
        move || {
            let (mut world, service, _) = world(&family, &mode, 0)?;
            let ran = world.run(&packet(&family, protocol::TCP, 40_000, ACK).bytes())?;
            if mode.mode == mode::NAT {
                expect(&ran, "DROP", service, Outcome::UnknownFlow)
            } else {
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)
            }
        },
    ));
    cases.push(Case::new(
        format!("{}/tcp/{}/flows of a failed server are reset if so configured", family.name, mode.name),
        move || {
            let (mut world, service, backends) =
                world(&family, &mode, Service::RESET_ON_DOWN | Service::REFUSE_WITH_RESET)?;
            world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
            for id in &backends {
                world.change_backend(*id, |b| b.flags |= Backend::DOWN)?;
            }
            let ran = world.run(&packet(&family, protocol::TCP, 40_000, ACK).bytes())?;
            expect(&ran, "TX", service, Outcome::ServerGone)?;
            expect_sound(&ran)
        },
    ));
    cases.push(Case::new(format!("{}/udp/{}/datagrams leave a failed server", family.name, mode.name), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let servers = mode.servers(&family);
        let was = destination(&world.run(&packet(&family, protocol::UDP, 40_000, 0).bytes())?, &mode, &servers)?;
        let failed = backends.iter().position(|id| world.active(*id) == 1).context("one has the flow")?;
        world.change_backend(backends[failed], |b| b.flags |= Backend::DOWN)?;
        let ran = world.run(&packet(&family, protocol::UDP, 40_000, 0).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        if mode.rewrites() || mode.tunnel.is_some() {
            ensure!(destination(&ran, &mode, &servers)? != was, "the flow stayed on the failed server");
        }
        let active = [world.active(backends[failed]), world.active(backends[1 - failed])];
        ensure!(active == [0, 1], "active flows {active:?}");
        Ok(())
    }));
}

/// Packets from server to client, where they pass.
fn replies(cases: &mut Vec<Case>, family: Family) {
    for mode in [MODES[0], MODES[1]] {
        for number in [protocol::TCP, protocol::UDP] {
            let proto = if number == protocol::TCP { "tcp" } else { "udp" };
            cases.push(Case::new(
                format!("{}/{proto}/{}/a reply comes from the VIP", family.name, mode.name),
                move || {
                    let (mut world, service, _) = world(&family, &mode, 0)?;
                    let servers = mode.servers(&family);
                    let sent = world.run(&packet(&family, number, 40_000, SYN).bytes())?;
                    let chosen = destination(&sent, &mode, &servers)?;
                    let server = servers[chosen].addr.to_string();
                    let (dst, dport) = if mode.mode == mode::NAT {
                        (family.nat_source, source_port(&sent, &family))
                    } else {
                        (family.client, 40_000)
                    };
                    let reply = if number == protocol::TCP {
                        Frame::tcp(&server, 8080, dst, dport, SYN | ACK)
                    } else {
                        Frame::udp(&server, 8080, dst, dport)
                    };
                    let reply = reply.with(|f| f.macs = (GATEWAY_MAC, SERVER_MAC));
                    let ran = world.run(&reply.bytes())?;
                    // The client is where its packet came from: the interface of the test run.
                    expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
                    let expected = reply.with(|f| {
                        f.macs = (CLIENT_MAC, GATEWAY_MAC);
                        f.src = family.vip.parse().expect("an address");
                        f.sport = 80;
                        f.dst = family.client.parse().expect("an address");
                        f.dport = 40_000;
                        f.ttl -= 1;
                    });
                    expect_frame(&ran, &expected.bytes())
                },
            ));
        }
        cases.push(Case::new(
            format!("{}/tcp/{}/a packet of the server's own is left to the kernel", family.name, mode.name),
            move || {
                let (mut world, _, _) = world(&family, &mode, 0)?;
                let dst = if mode.mode == mode::NAT { family.nat_source } else { family.client };
                let frame = Frame::tcp(family.servers[0], 8080, dst, 45_000, ACK);
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "PASS", 0, Outcome::NotOurs)?;
                expect_frame(&ran, &frame.bytes())
            },
        ));
    }
}

/// What the packet path answers by itself.
fn answers(cases: &mut Vec<Case>, family: Family) {
    let v6 = family.name == "v6";
    cases.push(Case::new(format!("{}/icmp/echo to a VIP is answered", family.name), move || {
        let (mut world, service, _) = world(&family, &MODES[2], 0)?;
        let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
        let frame = Frame::icmp(family.client, family.vip, request, 0, 0x0102_0003).with(|f| f.ttl = 7);
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "TX", service, Outcome::EchoAnswered)?;
        let expected = Frame::icmp(family.vip, family.client, reply, 0, 0x0102_0003).with(|f| {
            f.macs = (CLIENT_MAC, GATEWAY_MAC);
        });
        expect_frame(&ran, &expected.bytes())
    }));
    cases.push(Case::new(
        format!("{}/icmp/an echo of nothing but zeros has a right checksum", family.name),
        move || {
            let (mut world, service, _) = world(&family, &MODES[2], 0)?;
            let request = if v6 { 128 } else { 8 };
            let frame = Frame::icmp(family.client, family.vip, request, 0, 0).with(|f| f.payload = vec![0; 32]);
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "TX", service, Outcome::EchoAnswered)?;
            expect_sound(&ran)
        },
    ));
    for mode in MODES {
        cases.push(Case::new(format!("{}/tcp/{}/hop limit spent is answered", family.name, mode.name), move || {
            let (mut world, service, _) = world(&family, &mode, 0)?;
            let frame = packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.ttl = 1);
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "TX", service, Outcome::TtlAnswered)?;
            expect_sound(&ran)?;
            let at = if v6 { 54 } else { 34 };
            ensure!(ran.frame[at] == if v6 { 3 } else { 11 }, "type {}", ran.frame[at]);
            Ok(())
        }));
        cases.push(Case::new(
            format!("{}/tcp/{}/too big is answered with the size that fits", family.name, mode.name),
            move || {
                let mut world = World::new()?;
                let servers = mode.servers(&family).map(|s| s.with(|s| s.mtu = 1400));
                let (service, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
                world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
                let fits = 1400 - mode.tunnel.map_or(0, |(encap, _)| encap::overhead(encap) as usize);
                let header = if v6 { 60 } else { 40 };
                let frame = packet(&family, protocol::TCP, 40_000, ACK).with(|f| f.payload = vec![7; fits - header]);
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                let frame = frame.with(|f| f.payload.push(7));
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "TX", service, Outcome::TooBigAnswered)?;
                expect_sound(&ran)?;
                let at = if v6 { 54 } else { 34 };
                let told = u16::from_be_bytes([ran.frame[at + 6], ran.frame[at + 7]]) as usize;
                ensure!(told == fits, "told {told}, {fits} fit");
                ensure!(ran.frame[at..at + 2] == if v6 { [2, 0] } else { [3, 4] }, "kind {:?}", &ran.frame[at..at + 2]);
                ensure!(ran.frame[at + 8..] == frame.packet()[..512], "does not quote the packet");
                Ok(())
            },
        ));
    }
}

/// What is not ours is passed on untouched.
fn foreign(cases: &mut Vec<Case>, family: Family) {
    let frames: Vec<(&str, Frame)> = vec![
        ("another address", Frame::tcp(family.client, 40_000, family.other, 80, SYN)),
        ("another port", Frame::tcp(family.client, 40_000, family.vip, 81, SYN)),
        ("another address by UDP", Frame::udp(family.client, 40_000, family.other, 80)),
        (
            "a protocol without ports",
            Frame::udp(family.client, 0, family.vip, 0).with(|f| f.transport = Transport::Raw(47)),
        ),
        (
            "echo to another address",
            Frame::icmp(family.client, family.other, if family.name == "v6" { 128 } else { 8 }, 0, 1),
        ),
    ];
    for (what, frame) in frames {
        cases.push(Case::new(format!("{}/{what} is left to the kernel", family.name), move || {
            let (mut world, _, _) = world(&family, &MODES[0], 0)?;
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "PASS", 0, Outcome::NotOurs)?;
            expect_frame(&ran, &frame.bytes())
        }));
    }
    cases.push(Case::new(format!("{}/truncated at every byte up to the payload", family.name), move || {
        for number in [protocol::TCP, protocol::UDP] {
            let (mut world, service, _) = world(&family, &MODES[2], 0)?;
            let whole = packet(&family, number, 40_000, SYN).bytes();
            for length in 14..whole.len() {
                let ran = world.run(&whole[..length])?;
                // The IP header says how long the packet is; anything shorter is not for us to judge.
                expect(&ran, "PASS", 0, Outcome::Malformed).with_context(|| format!("{length} bytes"))?;
                expect_frame(&ran, &whole[..length])?;
            }
            let ran = world.run(&whole)?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        }
        Ok(())
    }));
    cases.push(Case::new(format!("{}/VLAN and QinQ tags are taken off and put on", family.name), move || {
        for mode in MODES {
            for arrives in [vec![], vec![100u16], vec![200, 100]] {
                for leaves in [vec![], vec![300u16], vec![400, 300]] {
                    let mut world = World::new()?;
                    let servers = mode.servers(&family).map(|s| s.with(|s| s.tags.clone_from(&leaves)));
                    let (service, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
                    let frame = packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.tags.clone_from(&arrives));
                    let ran = world.run(&frame.bytes())?;
                    let what = || format!("{} {arrives:?} {leaves:?}", mode.name);
                    expect(&ran, "REDIRECT", service, Outcome::Forwarded).with_context(what)?;
                    let tags = leaves.len() * 4;
                    verify(&ran.frame[14 + tags..]).map_err(|e| anyhow::anyhow!(e)).with_context(what)?;
                    let v6 = mode.tunnel.map_or(family.name == "v6", |(_, v6)| v6);
                    let link = super::frame::link((SERVER_MAC, GATEWAY_MAC), &leaves, if v6 { 0x86dd } else { 0x0800 });
                    ensure!(ran.frame[..14 + tags] == link, "{}: link {:02x?}", what(), &ran.frame[..14 + tags]);
                }
            }
        }
        Ok(())
    }));
}
