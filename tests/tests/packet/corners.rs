//! The corners: fragments, ICMP errors, options and extension headers, client affinity, tiers, any port.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_common::settings::Settings;
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, SERVER_MAC, Transport};
use loadbalancer_tests::frames::world::{Ran, Server, World};

use super::case::Case;
use super::expect::{destination, expect, expect_sound, inner, source_port};
use super::family::Family;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("later fragments follow the first", fragments_follow);
        case("later fragments follow on any path", fragments_on_any_path);
        case("a later fragment alone is dropped", lone_fragment);
        case("an error about a flow goes to its server", error_to_server);
        case("an error about no flow is dropped", error_about_nothing);
        case("options and extension headers are looked through", options);
        case("a zero UDP checksum stays zero", zero_checksum);
        case("a client stays on one server", client_affinity);
        case("a lower tier serves only when the upper is full", tiers);
        case("a new flow finds a server while any accepts", search);
        case("any port serves what no exact port does", any_port);
        case("type of service is kept, outside too", type_of_service);
    }
    for mode in [MODES[0], MODES[1]] {
        cases.push(Case::new(
            format!("{}/{}/an error of the server's side goes to the client", family.name, mode.name),
            move || error_to_client(family, mode),
        ));
    }
    cases.push(Case::new(format!("{}/icmp/an answer is redirected where that is wanted", family.name), move || {
        let (mut world, service, _) = world(&family, &MODES[2], 0)?;
        world.change_settings(|settings| settings.flags |= Settings::REDIRECT_BACK)?;
        let kind = if family.name == "v6" { 128 } else { 8 };
        let ran = world.run(&Frame::icmp(family.client, family.vip, kind, 0, 1).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::EchoAnswered)
    }));
    cases.push(Case::new(
        format!("{}/nat/a port is given to one flow only, until none is left", family.name),
        move || ports_run_out(family),
    ));
    cases.push(Case::new(
        format!("{}/nat/ports of ended connections are given again when no other is left", family.name),
        move || ports_of_ended(family),
    ));
}

fn fragments_follow(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let servers = mode.servers(&family);
    let first = packet(&family, protocol::UDP, 40_000, 0)
        .with(|f| (f.payload, f.fragment) = (vec![1; 200], Some((0, true, 0xbeef))));
    let ran = world.run(&first.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    expect_sound(&ran)?;
    let chosen = destination(&ran, &mode, &servers)?;
    let later = packet(&family, protocol::UDP, 0, 0).with(|f| {
        (f.payload, f.fragment) = (vec![2; 77], Some((26, false, 0xbeef)));
        f.transport = Transport::Raw(protocol::UDP);
    });
    let ran = world.run(&later.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::FragmentForwarded)?;
    expect_sound(&ran)?;
    ensure!(destination(&ran, &mode, &servers)? == chosen, "the fragments went to different servers");
    let expected = later.with(|f| {
        f.ttl -= 1;
        if mode.rewrites() {
            f.dst = servers[chosen].addr;
        }
        if mode.mode == mode::NAT {
            f.src = family.nat_source.parse().expect("an address");
        }
    });
    ensure!(inner(&ran, &mode) == expected.packet(), "the later fragment is not as expected");
    Ok(())
}

/// Paths, backends and services with higher numbers, and with more than one later fragment.
fn fragments_on_any_path(family: Family, mode: Mode) -> Result<()> {
    let mut world = World::new()?;
    let servers = [mode.servers(&family), mode.servers(&family)].concat();
    world.service(mode.mode, 0, &[(family.other, 80, protocol::TCP)], &servers)?;
    let servers = mode.servers(&family);
    let (service, ids) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::UDP)], &servers)?;
    let count = |world: &World| ids.iter().map(|id| world.packets(*id)).sum::<Result<u64>>();
    let before = count(&world)?;
    for sport in 40_000..40_020 {
        let id = u32::from(sport);
        let first = packet(&family, protocol::UDP, sport, 0)
            .with(|f| (f.payload, f.fragment) = (vec![1; 1_000], Some((0, true, id))));
        let ran = world.run(&first.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let chosen = destination(&ran, &mode, &servers)?;
        for (offset, more) in [(126, true), (226, false)] {
            let later = packet(&family, protocol::UDP, 0, 0).with(|f| {
                (f.payload, f.fragment) = (vec![2; 800], Some((offset, more, id)));
                f.transport = Transport::Raw(protocol::UDP);
            });
            let ran = world.run(&later.bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::FragmentForwarded)?;
            expect_sound(&ran)?;
            ensure!(destination(&ran, &mode, &servers)? == chosen, "the fragments went to different servers");
        }
    }
    let counted = count(&world)? - before;
    ensure!(counted == 60, "{counted} of 60 packets are counted as sent to a server");
    Ok(())
}

fn lone_fragment(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let later = packet(&family, protocol::UDP, 0, 0).with(|f| {
        (f.payload, f.fragment) = (vec![2; 77], Some((26, false, 7)));
        f.transport = Transport::Raw(protocol::UDP);
    });
    expect(&world.run(&later.bytes())?, "DROP", service, Outcome::FragmentUnknown)
}

/// Type of "fragmentation needed" or "packet too big", with an MTU of 1280.
fn too_big(v6: bool) -> (u8, u8) {
    if v6 { (2, 0) } else { (3, 4) }
}

/// An error from a router, about a packet. The quote is cut after 8 bytes of its transport header.
fn error(family: &Family, dst: &str, about: &Frame) -> Frame {
    let router = if family.name == "v6" { "2001:db8:5::1" } else { "203.0.113.1" };
    let (kind, code) = too_big(about.is_v6());
    let quote = if about.is_v6() { 48 } else { 28 };
    Frame::icmp(router, dst, kind, code, 1280).with(|f| f.payload = about.packet()[..quote].to_vec())
}

fn error_to_server(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let servers = mode.servers(&family);
    let sent = world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
    let chosen = destination(&sent, &mode, &servers)?;
    let port = source_port(&sent, &family);
    // What the client's side complains about: a packet from the VIP to the client.
    let about = Frame::tcp(family.vip, 80, family.client, 40_000, ACK);
    let error = error(&family, family.vip, &about);
    let ran = world.run(&error.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::IcmpForwarded)?;
    expect_sound(&ran)?;
    ensure!(destination(&ran, &mode, &servers)? == chosen, "it went to another server");
    let server = servers[chosen].addr;
    let about_as_sent = about.with(|f| {
        if mode.rewrites() {
            (f.src, f.sport) = (server, 8080);
        }
        if mode.mode == mode::NAT {
            (f.dst, f.dport) = (family.nat_source.parse().expect("an address"), port);
        }
    });
    let expected = error.with(|f| {
        f.ttl -= 1;
        if mode.rewrites() {
            f.dst = server;
        }
        if mode.mode == mode::NAT {
            f.src = family.nat_source.parse().expect("an address");
        }
        f.payload = about_as_sent.packet()[..f.payload.len()].to_vec();
    });
    same_but_inner_checksum(inner(&ran, &mode), &expected.packet(), family.name == "v6")
}

fn error_to_client(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let servers = mode.servers(&family);
    let sent = world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
    let server = servers[destination(&sent, &mode, &servers)?].addr.to_string();
    let (from, port) =
        if mode.mode == mode::NAT { (family.nat_source, source_port(&sent, &family)) } else { (family.client, 40_000) };
    let about = Frame::tcp(from, port, &server, 8080, ACK);
    let error = error(&family, from, &about).with(|f| f.macs = (GATEWAY_MAC, SERVER_MAC));
    let ran = world.run(&error.bytes())?;
    expect(&ran, "TX", service, Outcome::IcmpForwarded)?;
    expect_sound(&ran)?;
    let as_sent = Frame::tcp(family.client, 40_000, family.vip, 80, ACK);
    let expected = error.with(|f| {
        f.macs = (CLIENT_MAC, GATEWAY_MAC);
        f.ttl -= 1;
        f.src = family.vip.parse().expect("an address");
        f.dst = family.client.parse().expect("an address");
        f.payload = as_sent.packet()[..f.payload.len()].to_vec();
    });
    same_but_inner_checksum(&ran.frame[14..], &expected.packet(), family.name == "v6")
}

/// The quoted IP header must be right, its own checksum included; the ICMP checksum has been verified before.
fn same_but_inner_checksum(got: &[u8], expected: &[u8], v6: bool) -> Result<()> {
    ensure!(
        got == expected,
        "the error is not as expected ({})\n  {expected:02x?}\n  {got:02x?}",
        if v6 { "v6" } else { "v4" }
    );
    Ok(())
}

fn error_about_nothing(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let about = Frame::tcp(family.vip, 81, family.client, 40_000, ACK);
    let ran = world.run(&error(&family, family.vip, &about).bytes())?;
    expect(&ran, "DROP", service, Outcome::IcmpUnknown)
}

fn options(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let servers = mode.servers(&family);
    let plain = packet(&family, protocol::TCP, 40_000, SYN).with(|f| {
        if let Transport::Tcp { options, .. } = &mut f.transport {
            *options = vec![2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2];
        }
    });
    let dressed = plain.clone().with(|f| {
        f.options = vec![0x94, 4, 0, 0, 1, 1, 1, 0];
        f.extensions = vec![
            (protocol::HOP_BY_HOP, vec![0, 5, 2, 0, 0, 1, 0]),
            (protocol::DESTINATION_OPTIONS, vec![1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (protocol::AUTHENTICATION, [vec![4], vec![0; 22]].concat()),
        ];
    });
    let ran = world.run(&dressed.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    expect_sound(&ran)?;
    let chosen = destination(&ran, &mode, &servers)?;
    let ran = world.run(&plain.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    ensure!(destination(&ran, &mode, &servers)? == chosen, "the same flow went to another server");
    Ok(())
}

fn zero_checksum(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let frame = packet(&family, protocol::UDP, 40_000, 0).with(|f| f.transport = Transport::Udp { checksum: false });
    let ran = world.run(&frame.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    let l4 = if family.name == "v6" { 40 } else { 20 };
    ensure!(inner(&ran, &mode)[l4 + 6..l4 + 8] == [0, 0], "the checksum is not zero any more");
    Ok(())
}

fn client_affinity(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, Service::CLIENT_AFFINITY)?;
    for number in [protocol::TCP, protocol::UDP] {
        for sport in 40_000..40_040 {
            let ran = world.run(&packet(&family, number, sport, SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        }
    }
    let active = [world.active(backends[0]), world.active(backends[1])];
    ensure!(active.contains(&80) && active.contains(&0), "active flows {active:?}, all belong to one client");
    // The server that has the client fails: the client moves as a whole.
    let has = active.iter().position(|n| *n == 80).context("checked above")?;
    world.change_backend(backends[has], |b| b.flags &= !loadbalancer_common::backend::Backend::ACCEPTS)?;
    for sport in 41_000..41_020 {
        world.run(&packet(&family, protocol::TCP, sport, SYN).bytes())?;
    }
    ensure!(world.active(backends[1 - has]) == 20, "new flows of the client did not move");
    Ok(())
}

fn tiers(family: Family, mode: Mode) -> Result<()> {
    let mut world = World::new()?;
    let mut servers = mode.servers(&family);
    servers[0].high_water = 10;
    servers[1].tier = 1;
    let (service, ids) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
    for sport in 40_000..40_010 {
        expect(
            &world.run(&packet(&family, protocol::TCP, sport, SYN).bytes())?,
            "REDIRECT",
            service,
            Outcome::Forwarded,
        )?;
    }
    ensure!([world.active(ids[0]), world.active(ids[1])] == [10, 0], "the lower tier served too early");
    for sport in 40_010..40_015 {
        expect(
            &world.run(&packet(&family, protocol::TCP, sport, SYN).bytes())?,
            "REDIRECT",
            service,
            Outcome::Forwarded,
        )?;
    }
    ensure!([world.active(ids[0]), world.active(ids[1])] == [10, 5], "the lower tier did not help");
    // One ends: the preferred server has room again.
    world.run(&packet(&family, protocol::TCP, 40_000, tcp_flag::RST).bytes())?;
    world.run(&packet(&family, protocol::TCP, 40_020, SYN).bytes())?;
    ensure!([world.active(ids[0]), world.active(ids[1])] == [10, 5], "the room in the upper tier was not used");
    Ok(())
}

/// A ring may name servers that have just left it: a flow must come to one that is still there, however it falls.
fn search(family: Family, mode: Mode) -> Result<()> {
    const SERVERS: u32 = 5;
    let [like, _] = mode.servers(&family);
    for accepting in 1..1u32 << SERVERS {
        let mut world = World::new()?;
        let servers = [(); SERVERS as usize].map(|()| like.clone());
        // Not the first ring.
        world.service(mode.mode, 0, &[(family.other, 80, protocol::TCP)], &servers)?;
        let (service, ids) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
        for (index, id) in ids.iter().enumerate().filter(|(index, _)| accepting >> index & 1 == 0) {
            world
                .change_backend(*id, |backend| backend.flags &= !Backend::ACCEPTS)
                .with_context(|| format!("server {index}"))?;
        }
        for port in 0..60 {
            let ran = world.run(&packet(&family, protocol::TCP, 20_000 + port, SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)
                .with_context(|| format!("flow {port}, accepting: {accepting:05b}"))?;
        }
        let mut served = 0;
        for (index, id) in ids.iter().enumerate() {
            let accepts = accepting >> index & 1 != 0;
            ensure!(accepts || world.active(*id) == 0, "server {index} got a flow, accepting: {accepting:05b}");
            served += world.active(*id);
        }
        ensure!(served == 60, "{served} of 60 flows are counted");
    }
    Ok(())
}

fn any_port(family: Family, mode: Mode) -> Result<()> {
    let mut world = World::new()?;
    let servers = mode.servers(&family).map(|s| s.with(|s| s.port = 0));
    let (exact, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers[..1])?;
    let (any, _) = world.service(mode.mode, 0, &[(family.vip, 0, protocol::TCP)], &servers[1..])?;
    for (port, service) in [(80, exact), (81, any), (65_535, any)] {
        let frame = Frame::tcp(family.client, 40_000, family.vip, port, SYN);
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let l4 = if family.name == "v6" { 40 } else { 20 };
        ensure!(inner(&ran, &mode)[l4 + 2..l4 + 4] == u16::to_be_bytes(port), "the port was changed");
    }
    Ok(())
}

fn type_of_service(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let ran = world.run(&packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.tos = 0xb9).bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    expect_sound(&ran)?;
    for packet in [&ran.frame[14..], inner(&ran, &mode)] {
        let tos = if packet[0] >> 4 == 6 { packet[0] << 4 | packet[1] >> 4 } else { packet[1] };
        ensure!(tos == 0xb9, "type of service {tos:#x}");
    }
    Ok(())
}

/// One server, and eight ports towards it. Which of them are tried follows from the seed and from how many were given before: of
/// a world of its own, the same in every run.
fn few_ports(family: Family) -> Result<(World, u16, Vec<u16>)> {
    let mut world = World::fresh()?;
    let server = Server::at(family.servers[0]).with(|s| s.port = 8080);
    let (service, ids) = world.service(mode::NAT, 0, &[(family.vip, 80, protocol::TCP)], &[server])?;
    world.change_service(service, |s| (s.nat_port_first, s.nat_port_last) = (20_000, 20_007))?;
    Ok((world, service, ids))
}

fn ports_of_ended(family: Family) -> Result<()> {
    let (mut world, service, ids) = few_ports(family)?;
    let open = |world: &mut World, sport| -> Result<u16> {
        let ran = world.run(&packet(&family, protocol::TCP, sport, SYN).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        Ok(source_port(&ran, &family))
    };
    let mut last = Vec::new();
    for sport in 40_000..40_008 {
        last.push(open(&mut world, sport)?);
        world.run(&packet(&family, protocol::TCP, sport, tcp_flag::RST).bytes())?;
    }
    // Of those that live on, none is taken away.
    let first = open(&mut world, 40_100)?;
    for sport in 40_101..40_140 {
        open(&mut world, sport)?;
        world.run(&packet(&family, protocol::TCP, sport, tcp_flag::RST).bytes())?;
    }
    let ran = world.run(&packet(&family, protocol::TCP, 40_100, ACK).bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    ensure!(source_port(&ran, &family) == first, "the flow that lived on has another port");
    last.sort_unstable();
    last.dedup();
    ensure!(last.len() == 8, "of eight ports, only {} were used while any was fresh", last.len());
    ensure!(world.active(ids[0]) == 1, "{} active flows", world.active(ids[0]));
    Ok(())
}

fn ports_run_out(family: Family) -> Result<()> {
    let (mut world, service, ids) = few_ports(family)?;
    let mut taken = Vec::new();
    let mut refused = 0;
    for sport in 40_000..40_012 {
        let ran: Ran = world.run(&packet(&family, protocol::TCP, sport, SYN).bytes())?;
        if ran.action == "REDIRECT" {
            taken.push(source_port(&ran, &family));
        } else {
            expect(&ran, "DROP", service, Outcome::PortsExhausted)?;
            refused += 1;
        }
    }
    taken.sort_unstable();
    let before = taken.len();
    taken.dedup();
    ensure!(before == taken.len(), "a port was given out twice: {taken:?}");
    ensure!(taken.len() == 8 && refused == 4, "{} ports given out, {refused} flows refused", taken.len());
    ensure!(world.active(ids[0]) == 8, "{} active flows", world.active(ids[0]));
    Ok(())
}
