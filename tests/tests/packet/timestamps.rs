//! TCP timestamps in `nat`: a server sees one clock, clients see their own echoed.

use anyhow::{Result, ensure};
use bytemuck::Pod;
use loadbalancer::dataplane::maps::Map;
use loadbalancer_common::conntrack::{TO_CLIENT, Translation, Tuple};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, SERVER_MAC, Transport};
use loadbalancer_tests::frames::world::{Ran, World};

use super::case::Case;
use super::expect::{expect, expect_frame, source_port};
use super::family::Family;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const MODE: Mode = MODES[0];

/// Options of a segment, but for the timestamps: what comes before them, and what after.
type Around = (&'static [u8], &'static [u8]);

/// In the order of Linux: segment size, SACK permitted, timestamps, no operation, window scale.
const FIRST: Around = (&[2, 4, 5, 0xb4, 4, 2], &[1, 3, 3, 7]);
const USUAL: Around = (&[1, 1], &[]);
const LAYOUTS: [(&str, Around); 6] = [
    ("usual", USUAL),
    ("first", (&[], &[1, 1])),
    ("at an odd place", (&[1], &[0])),
    ("last of 40 bytes", (&[1; 30], &[])),
    ("behind two blocks of SACK", (&[1, 1, 5, 18, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 1], &[1])),
    ("behind an unknown option", (&[253, 5, 8, 10, 0], &[0])),
];

/// Options in which there are no timestamps, though it may look like it.
const NONE: [(&str, &[u8]); 7] = [
    ("none at all", &[]),
    ("of a wrong length", &[1, 1, 8, 9, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("behind the end of options", &[0, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("behind an option of length 0", &[253, 0, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("behind an option of length 1", &[253, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("within another option", &[253, 12, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("cut short by the header", &[1, 1, 1, 8, 10, 0, 0, 1]),
];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for (name, around) in LAYOUTS {
        cases.push(Case::new(format!("{}/tcp/nat/timestamps, {name}: moved and moved back", family.name), move || {
            moved_and_back(family, around)
        }));
    }
    for (name, options) in NONE {
        cases.push(Case::new(format!("{}/tcp/nat/timestamps, {name}: left alone", family.name), move || {
            left_alone(family, options)
        }));
    }
    let mut case = |what: &str, test: fn(Family) -> Result<()>| {
        cases.push(Case::new(format!("{}/tcp/nat/timestamps, {what}", family.name), move || test(family)));
    };
    case("a later flow's are newer, whatever the client's clock says", newer);
    case("a SYN sent again is moved like the first", sent_again);
    case("an echo of nothing stays nothing", no_echo);
    case("moved back though the reply's entry was evicted", evicted);
}

fn options((before, after): Around, value: u32, echo: u32) -> Vec<u8> {
    [before, &[8, 10], &value.to_be_bytes(), &echo.to_be_bytes(), after].concat()
}

fn with_options(frame: Frame, bytes: Vec<u8>) -> Frame {
    frame.with(|f| {
        if let Transport::Tcp { options, .. } = &mut f.transport {
            *options = bytes;
        }
    })
}

/// A segment of the client as it was sent, and as the server must get it.
fn to_server(family: Family, sent: &Frame, port: u16, options: Vec<u8>) -> Frame {
    with_options(sent.clone(), options).with(|f| {
        f.macs = (SERVER_MAC, GATEWAY_MAC);
        f.src = family.nat_source.parse().expect("an address");
        f.sport = port;
        f.dst = family.servers[0].parse().expect("an address");
        f.dport = 8080;
        f.ttl -= 1;
    })
}

/// A reply of the server.
fn reply(family: Family, port: u16, flags: u8, options: Vec<u8>) -> Frame {
    let frame = Frame::tcp(family.servers[0], 8080, family.nat_source, port, flags);
    with_options(frame, options).with(|f| f.macs = (GATEWAY_MAC, SERVER_MAC))
}

/// The reply as the client must get it.
fn to_client(family: Family, reply: &Frame, options: Vec<u8>) -> Frame {
    with_options(reply.clone(), options).with(|f| {
        f.macs = (CLIENT_MAC, GATEWAY_MAC);
        f.src = family.vip.parse().expect("an address");
        f.sport = 80;
        f.dst = family.client.parse().expect("an address");
        f.dport = 40_000;
        f.ttl -= 1;
    })
}

/// The timestamp value of an IP frame's TCP segment whose options begin like this.
fn value(ran: &Ran, family: Family, around: Around) -> u32 {
    let at = if family.name == "v6" { 54 } else { 34 } + 20 + around.0.len() + 2;
    u32::from_be_bytes(ran.frame[at..at + 4].try_into().expect("four bytes"))
}

fn one_server(family: Family) -> Result<(World, u16)> {
    let (mut world, service, ids) = world(&family, &MODE, 0)?;
    world.set_ring(service, &ids[..1])?;
    Ok((world, service))
}

/// Opens a flow with a SYN as Linux sends it. Gives its port, and by how much its clock is moved.
fn open(world: &mut World, family: Family, service: u16, sport: u16, clock: u32) -> Result<(u16, u32)> {
    let syn = with_options(packet(&family, protocol::TCP, sport, SYN), options(FIRST, clock, 0));
    let ran = world.run(&syn.bytes())?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    let (port, moved) = (source_port(&ran, &family), value(&ran, family, FIRST));
    expect_frame(&ran, &to_server(family, &syn, port, options(FIRST, moved, 0)).bytes())?;
    Ok((port, moved.wrapping_sub(clock)))
}

fn moved_and_back(family: Family, around: Around) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    for clock in [7, u32::MAX - 3] {
        let (port, by) = open(&mut world, family, service, 40_000, clock)?;
        ensure!(by != 0, "the clock was not moved");
        let sent =
            with_options(packet(&family, protocol::TCP, 40_000, ACK), options(around, clock.wrapping_add(5), 77));
        let ran = world.run(&sent.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let moved = options(around, clock.wrapping_add(5).wrapping_add(by), 77);
        expect_frame(&ran, &to_server(family, &sent, port, moved).bytes())?;

        let echo = clock.wrapping_add(5);
        let sent = reply(family, port, ACK, options(around, 78, echo.wrapping_add(by)));
        let ran = world.run(&sent.bytes())?;
        expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
        expect_frame(&ran, &to_client(family, &sent, options(around, 78, echo)).bytes())?;
    }
    Ok(())
}

fn left_alone(family: Family, bytes: &[u8]) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    let look_alike = [&[1, 1][..], &options((&[], &[]), 1, 1)].concat();
    // A flow that began without timestamps, and one whose later segments have none.
    for first in [bytes.to_vec(), options(FIRST, 9, 0)] {
        let syn = with_options(packet(&family, protocol::TCP, 40_000, SYN), first.clone());
        let ran = world.run(&syn.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let port = source_port(&ran, &family);
        if first == bytes {
            expect_frame(&ran, &to_server(family, &syn, port, first).bytes())?;
        }
        let sent = with_options(packet(&family, protocol::TCP, 40_000, ACK), bytes.to_vec())
            .with(|f| f.payload = look_alike.clone());
        let ran = world.run(&sent.bytes())?;
        expect_frame(&ran, &to_server(family, &sent, port, bytes.to_vec()).bytes())?;
        let sent = reply(family, port, ACK, bytes.to_vec()).with(|f| f.payload = look_alike.clone());
        let ran = world.run(&sent.bytes())?;
        expect_frame(&ran, &to_client(family, &sent, bytes.to_vec()).bytes())?;
        // The next flow of the client.
        world.run(&with_options(packet(&family, protocol::TCP, 40_000, tcp_flag::RST), Vec::new()).bytes())?;
    }
    Ok(())
}

fn newer(family: Family) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    let mut last: Option<u32> = None;
    for (sport, clock) in (40_000..).zip([5, 4_000_000_000, 1, u32::MAX, 2_147_483_648, 0]) {
        let (_, by) = open(&mut world, family, service, sport, clock)?;
        let moved = clock.wrapping_add(by);
        if let Some(last) = last {
            ensure!((1..1 << 31).contains(&moved.wrapping_sub(last)), "{moved} came after {last}");
        }
        last = Some(moved);
    }
    Ok(())
}

fn sent_again(family: Family) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    let first = open(&mut world, family, service, 40_000, 1_000)?;
    let again = open(&mut world, family, service, 40_000, 2_000)?;
    ensure!(first == again, "port and offset were {first:?}, then {again:?}");
    Ok(())
}

fn no_echo(family: Family) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    let (port, _) = open(&mut world, family, service, 40_000, 1_000)?;
    let sent = reply(family, port, tcp_flag::RST, options(USUAL, 5, 0));
    let ran = world.run(&sent.bytes())?;
    expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
    expect_frame(&ran, &to_client(family, &sent, options(USUAL, 5, 0)).bytes())
}

fn evicted(family: Family) -> Result<()> {
    let (mut world, service) = one_server(family)?;
    let (port, by) = open(&mut world, family, service, 40_000, 1_000)?;
    let maps = &world.kernel().maps;
    if family.name == "v6" {
        evict(&maps.conntrack6)?
    } else {
        evict(&maps.conntrack4)?
    }
    world.run(&with_options(packet(&family, protocol::TCP, 40_000, ACK), options(USUAL, 1_001, 5)).bytes())?;
    let sent = reply(family, port, ACK, options(USUAL, 5, by.wrapping_add(1_001)));
    let ran = world.run(&sent.bytes())?;
    expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
    expect_frame(&ran, &to_client(family, &sent, options(USUAL, 5, 1_001)).bytes())
}

/// Removes the entries of replies, and lets the last packets of clients be a tick ago.
fn evict<A: Copy>(map: &Map<Tuple<A>, Translation<A>>) -> Result<()>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let mut entries = Vec::new();
    map.for_each(|key, entry| entries.push((*key, *entry)))?;
    for (key, entry) in entries {
        if entry.direction == TO_CLIENT {
            map.remove(&key)?;
        } else {
            map.set(&key, &Translation { time: entry.time - 1, ..entry })?;
        }
    }
    Ok(())
}
