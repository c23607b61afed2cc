//! First packets, and those that follow them, in every mode.

use anyhow::{Result, ensure};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, Transport};
use loadbalancer_tests::frames::world::{Ran, World};

use super::case::Case;
use super::expect::{destination, expect, expect_sound, inner, source_port};
use super::family::Family;
use super::mode::Mode;
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;

/// hit, miss, no server, drained, full: for each family, protocol and mode.
pub fn add(cases: &mut Vec<Case>, family: Family, mode: Mode, number: u8) {
    let proto = if number == protocol::TCP { "tcp" } else { "udp" };
    let name = |what: &str| format!("{}/{proto}/{}/{what}", family.name, mode.name);
    let mut case = |what: &str, test: fn(Family, Mode, u8) -> Result<()>| {
        cases.push(Case::new(name(what), move || test(family, mode, number)));
    };
    case("first packet is forwarded whole", first_packet);
    case("flow stays on its server when the ring changes", flow_stays);
    for (what, flags) in [("dropped", 0), ("answered", Service::REFUSE_WITH_RESET)] {
        cases.push(Case::new(name(&format!("without a server it is {what}")), move || {
            let (mut world, service, _) = world(&family, &mode, flags)?;
            world.set_ring(service, &[])?;
            refused(&mut world, service, family, number, flags, Outcome::NoServer)
        }));
        cases.push(Case::new(name(&format!("with every server full it is {what}")), move || {
            let (mut world, service, backends) = world(&family, &mode, flags)?;
            for id in &backends {
                world.change_backend(*id, |b| b.high_water = 5)?;
                world.set_active(*id, 5);
            }
            refused(&mut world, service, family, number, flags, Outcome::Full)
        }));
    }
    let mut case = |what: &str, test: fn(Family, Mode, u8) -> Result<()>| {
        cases.push(Case::new(name(what), move || test(family, mode, number)));
    };
    case("a full server's share goes to the other", full_servers_share);
    case("a drained server keeps its flows and gets no new one", drained_server);
}

fn first_packet(family: Family, mode: Mode, number: u8) -> Result<()> {
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
}

fn flow_stays(family: Family, mode: Mode, number: u8) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    let servers = mode.servers(&family);
    let taken = |ran: &Ran| -> Result<(usize, u16)> {
        let port = if mode.mode == mode::NAT { source_port(ran, &family) } else { 0 };
        Ok((destination(ran, &mode, &servers)?, port))
    };
    let mut first = Vec::new();
    for sport in 40_000..40_020 {
        let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        first.push(taken(&ran)?);
    }
    let reversed: Vec<u16> = backends.iter().rev().copied().collect();
    world.set_ring(service, &reversed)?;
    for (sport, before) in (40_000..40_020).zip(&first) {
        let ran = world.run(&packet(&family, number, sport, ACK).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        expect_sound(&ran)?;
        let now = taken(&ran)?;
        ensure!(now == *before, "flow {sport} went from {before:?} to {now:?}");
    }
    Ok(())
}

/// New flows are dropped, or answered where the service's flags say so.
fn refused(world: &mut World, service: u16, family: Family, number: u8, flags: u8, outcome: Outcome) -> Result<()> {
    let is_answered = flags & Service::REFUSE_WITH_RESET != 0;
    for sport in [40_000, 40_001, 40_002] {
        let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
        expect(&ran, if is_answered { "TX" } else { "DROP" }, service, outcome)?;
        if is_answered {
            expect_refusal(&ran, &family, number)?;
        }
    }
    Ok(())
}

fn full_servers_share(family: Family, mode: Mode, number: u8) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    world.change_backend(backends[0], |b| b.high_water = 3)?;
    for sport in 40_000..40_040 {
        let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    }
    let active = [world.active(backends[0]), world.active(backends[1])];
    ensure!(active == [3, 37], "active flows {active:?}, expected [3, 37]");
    Ok(())
}

fn drained_server(family: Family, mode: Mode, number: u8) -> Result<()> {
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
