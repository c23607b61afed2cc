//! Probes through the packet path: each reaches its own server, whatever that one's state, and leaves nothing behind.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use loadbalancer::dataplane::ids::BackendNumber;
use loadbalancer::dataplane::signals::counters;
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{AnyAddr, Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::probe::{MAC, Probe};
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, SERVER_MAC};
use loadbalancer_tests::frames::world::{EGRESS, INGRESS, World};

use super::case::Case;
use super::expect::{destination, expect, expect_frame, expect_sound, source_port};
use super::family::Family;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;

/// Ports that stand for the first and the second server.
pub(super) const PORTS: [u16; 2] = [61_000, 61_001];
const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("probes reach their own server, in any state of it", any_state);
        case("a probe's port means nothing in the hands of a client", client);
        case("what is no probe is not sent from the prober's interface", unknown);
        case("a probe's port may stand for another server next", next_server);
        case("probes are no flows and no signals", traceless);
        case("replies to probes come back to the prober", replies);
        case("what only looks like a reply to a probe is the kernel's", no_replies);
    }
}

/// A world where the interface of all test frames is the prober's, or one where another is.
pub(super) fn probed(
    family: &Family,
    mode: &Mode,
    number: u8,
    flags: u8,
    prober: u32,
) -> Result<(World, u16, Vec<u16>)> {
    let (world, service, backends) = world(family, mode, flags)?;
    for (port, backend) in PORTS.into_iter().zip(&backends) {
        pin(&world, family, mode, number, port, (service, *backend))?;
    }
    world.change_settings(|settings| settings.prober = prober)?;
    Ok((world, service, backends))
}

fn pin(
    world: &World,
    family: &Family,
    mode: &Mode,
    number: u8,
    port: u16,
    (service, backend): (u16, u16),
) -> Result<()> {
    let any = |addr: &str| -> Result<AnyAddr> { Ok(addr.parse::<IpAddr>()?.into()) };
    let server = world.kernel().maps.backends.get(&u32::from(backend))?.context("it is there")?;
    let (replier, replier_port) = match mode.mode {
        mode::NAT => (AnyAddr::default(), Be16(0)),
        mode::DNAT => (server.addr, server.port),
        _ => (any(family.vip)?, Be16::new(80)),
    };
    let probe = Probe {
        source: any(family.client)?,
        vip: any(family.vip)?,
        replier,
        vip_port: Be16::new(80),
        replier_port,
        service,
        backend,
        protocol: number,
        pad: [0; 7],
    };
    Ok(world.kernel().maps.probes.set(&u32::from(port), &probe)?)
}

/// Sends a packet, which must reach a server.
pub(super) fn reaches(
    world: &mut World,
    mode: &Mode,
    family: &Family,
    service: u16,
    frame: &Frame,
    server: usize,
) -> Result<()> {
    let before = [1, 2].map(|backend| world.packets(backend));
    let ran = world.run(&frame.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    expect_sound(&ran)?;
    for (index, before) in before.into_iter().enumerate() {
        let sent = world.packets(index as u16 + 1)? - before?;
        ensure!(sent == u64::from(index == server), "server {index} got {sent} packets, {server} was meant");
    }
    let addressed = mode.rewrites() || mode.tunnel.is_some();
    ensure!(!addressed || destination(&ran, mode, &mode.servers(family))? == server, "the address is another's");
    Ok(())
}

fn any_state(family: Family, mode: Mode) -> Result<()> {
    const STATES: [u16; 5] = [
        Backend::PRESENT | Backend::ACCEPTS,
        Backend::PRESENT,
        Backend::PRESENT | Backend::DRAINED,
        Backend::PRESENT | Backend::DOWN,
        Backend::PRESENT | Backend::DOWN | Backend::ACCEPTS,
    ];
    for number in PROTOCOLS {
        for affinity in [0, Service::CLIENT_AFFINITY] {
            let (mut world, service, backends) =
                probed(&family, &mode, number, Service::RESET_ON_DOWN | affinity, INGRESS)?;
            for flags in STATES {
                for (server, port) in PORTS.into_iter().enumerate() {
                    world.change_backend(backends[server], |backend| {
                        backend.flags = flags | backend.flags & Backend::IPV6;
                        backend.high_water = 0;
                    })?;
                    // Two probes in a row, each to its end.
                    for tcp_flags in [SYN, ACK, ACK, RST, SYN, ACK, RST] {
                        reaches(&mut world, &mode, &family, service, &packet(&family, number, port, tcp_flags), server)
                            .with_context(|| format!("protocol {number}, flags {flags:#x}, TCP {tcp_flags:#x}"))?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// By another interface the same packets are a client's.
fn client(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let (mut world, service, backends) = probed(&family, &mode, number, 0, EGRESS)?;
        for only in 0..2 {
            world.set_ring(service, &[backends[only]])?;
            let frame = packet(&family, number, PORTS[1 - only], SYN);
            reaches(&mut world, &mode, &family, service, &frame, only)?;
            ensure!(world.active(backends[only]) == 1, "it counts as a flow");
        }
    }
    Ok(())
}

fn unknown(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = probed(&family, &mode, protocol::TCP, Service::REFUSE_WITH_RESET, INGRESS)?;
    let unpinned = [packet(&family, protocol::TCP, 61_002, SYN), packet(&family, protocol::UDP, PORTS[0], SYN)];
    for frame in unpinned {
        let ran = world.run(&frame.bytes())?;
        ensure!(ran.counted == [(service, Outcome::NoServer as usize, 1)], "{:?}", ran.counted);
    }
    // Nor for a server that is gone.
    world.change_backend(backends[0], |backend| backend.flags = 0)?;
    let ran = world.run(&packet(&family, protocol::TCP, PORTS[0], SYN).bytes())?;
    ensure!(ran.counted == [(service, Outcome::NoServer as usize, 1)], "{:?}", ran.counted);
    let ran = world.run(&Frame::tcp(family.client, PORTS[0], family.other, 80, SYN).bytes())?;
    expect(&ran, "PASS", 0, Outcome::NotOurs)
}

fn next_server(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let (mut world, service, backends) = probed(&family, &mode, number, 0, INGRESS)?;
        for server in [0, 1, 0] {
            pin(&world, &family, &mode, number, PORTS[0], (service, backends[server]))?;
            let frame = packet(&family, number, PORTS[0], SYN);
            reaches(&mut world, &mode, &family, service, &frame, server)
                .with_context(|| format!("protocol {number}"))?;
        }
    }
    Ok(())
}

fn traceless(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let (mut world, service, backends) = probed(&family, &mode, number, 0, INGRESS)?;
        let before = (counters(&world.kernel().maps, BackendNumber(backends[0]), 0), world.flows(backends[0])?);
        for tcp_flags in [SYN, ACK, ACK, RST] {
            reaches(&mut world, &mode, &family, service, &packet(&family, number, PORTS[0], tcp_flags), 0)?;
            ensure!(world.active(backends[0]) == 0, "a probe is active");
        }
        ensure!(counters(&world.kernel().maps, BackendNumber(backends[0]), 0) == before.0, "a probe is watched");
        ensure!(world.flows(backends[0])? == before.1, "a probe counts as a flow");
        let words = world.kernel().maps.affinity.words();
        let entries: Vec<Entry> = words.iter().map(|word| Entry(word.load(Ordering::Relaxed))).collect();
        ensure!(entries.iter().all(|entry| entry.is_free()), "a probe has an affinity entry");
        let mut flows = Vec::new();
        world.kernel().maps.conntrack4.for_each(|_, flow| flows.push((flow.state, flow.flags)))?;
        world.kernel().maps.conntrack6.for_each(|_, flow| flows.push((flow.state, flow.flags)))?;
        flows.retain(|flow| flow.0 != 0);
        let expected = if mode.mode == mode::NAT { vec![(u32::from(state::TCP_CLOSED), 0)] } else { Vec::new() };
        ensure!(flows == expected, "tracked: {flows:?}");
    }
    Ok(())
}

/// The frame with which a server answers a probe, as it comes in.
fn reply(family: &Family, mode: &Mode, number: u8, port: u16) -> Frame {
    let (src, sport) = if mode.mode == mode::DNAT { (family.servers[0], 8080) } else { (family.vip, 80) };
    let frame = if number == protocol::TCP {
        Frame::tcp(src, sport, family.client, port, ACK)
    } else {
        Frame::udp(src, sport, family.client, port)
    };
    frame.with(|f| f.macs = (CLIENT_MAC, SERVER_MAC))
}

fn replies(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        if mode.mode == mode::NAT {
            let (mut world, service, _) = probed(&family, &mode, number, 0, INGRESS)?;
            let ran = world.run(&packet(&family, number, PORTS[0], SYN).bytes())?;
            let port = source_port(&ran, &family);
            let (server, source) = (family.servers[0], family.nat_source);
            let answer = if number == protocol::TCP {
                Frame::tcp(server, 8080, source, port, ACK)
            } else {
                Frame::udp(server, 8080, source, port)
            };
            let ran = world.run(&answer.bytes())?;
            expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
            expect_sound(&ran)?;
            continue;
        }
        let (mut world, service, _) = probed(&family, &mode, number, 0, EGRESS)?;
        for tags in [vec![], vec![100], vec![200, 7]] {
            let frame = reply(&family, &mode, number, PORTS[0]);
            let ran = world.run(&frame.clone().with(|f| f.tags = tags).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::ReplyForwarded)?;
            let expected = frame.with(|f| {
                f.macs = (MAC, MAC);
                if mode.mode == mode::DNAT {
                    (f.src, f.sport) = (family.vip.parse().expect("an address"), 80);
                    f.ttl -= 1;
                }
            });
            expect_frame(&ran, &expected.bytes())?;
        }
        // Without its first fragment nobody knows what a later one is.
        if number == protocol::UDP {
            let whole = reply(&family, &mode, number, PORTS[0]).with(|f| f.payload = vec![7; 2_000]);
            for part in whole.fragments(9, &[1_200]) {
                let ran = world.run(&part.bytes())?;
                ensure!(ran.action == "REDIRECT", "{}: {:?}", ran.action, ran.counted);
            }
        }
    }
    Ok(())
}

fn no_replies(family: Family, mode: Mode) -> Result<()> {
    type Change = fn(&mut Frame, &Family);
    const CHANGES: [Change; 5] = [
        |frame, _| frame.sport += 1,
        |frame, _| frame.dport = 61_777,
        |frame, family| frame.src = family.other.parse().expect("an address"),
        |frame, family| frame.dst = family.other.parse().expect("an address"),
        |frame, _| {
            let udp = loadbalancer_tests::frames::frame::Transport::Udp { checksum: true };
            let tcp = Frame::tcp("10.0.0.1", 1, "10.0.0.2", 1, ACK).transport;
            frame.transport = if frame.transport == udp { tcp } else { udp };
        },
    ];
    for number in PROTOCOLS {
        for prober in [0, EGRESS] {
            let (mut world, _, _) = probed(&family, &mode, number, 0, prober)?;
            let frame = reply(&family, &mode, number, PORTS[0]);
            for change in CHANGES {
                let other = frame.clone().with(|frame| change(frame, &family)).bytes();
                let ran = world.run(&other)?;
                expect(&ran, "PASS", 0, Outcome::NotOurs)?;
                expect_frame(&ran, &other)?;
            }
            if prober == 0 || mode.mode == mode::NAT {
                expect(&world.run(&frame.bytes())?, "PASS", 0, Outcome::NotOurs)?;
            }
        }
    }
    Ok(())
}
