//! Frames beyond one page, of which the programs see only the first buffer.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_common::service::Service;
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC};
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::entries;
use super::expect::{expect, expect_sound, inner};
use super::family::Family;
use super::flow::{Flow, same};
use super::mode::{MODES, Mode};
use super::world::packet;

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

/// IP packets that the kernel's test run splits: its first buffer holds a page without room for headers and bookkeeping
/// (3,520 bytes with pages of 4,096); the last is the largest that an IPv4 header can tell.
const LENGTHS: [usize; 5] = [3_507, 5_001, 8_192, 8_900, 65_535];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("a long frame is forwarded whole", forwarded);
        case("a long frame that is too big is answered", too_big);
        case("a long frame with its hop limit spent is answered", expired);
        case("a long packet that is refused is answered", refused);
        case("long fragments follow the first", fragments);
        case("a long frame that is cut short is left to the kernel", cut_short);
        if mode.rewrites() {
            case("a long reply comes whole from the VIP", replied);
            case("a long reply that is too big is answered", reply_too_big);
        }
    }
    cases.push(Case::new(format!("{}/icmp/a long echo is answered whole", family.name), move || echo(family)));
    cases.push(Case::new(format!("{}/a long frame of others is left to the kernel", family.name), move || {
        let (mut world, _) = roomy(family, MODES[0], 9_000)?;
        let frame = long(Frame::tcp(family.client, 40_000, family.other, 80, ACK), 8_900);
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "PASS", 0, Outcome::NotOurs)?;
        same(&ran.frame, &frame.bytes())
    }));
}

/// A service whose paths have room for packets of a length, without what encapsulation adds.
fn roomy(family: Family, mode: Mode, mtu: u16) -> Result<(World, u16)> {
    let mut world = World::new()?;
    let servers = mode.servers(&family).map(|s| s.with(|s| s.mtu = mtu));
    let listen = [(family.vip, 80, protocol::TCP), (family.vip, 80, protocol::UDP)];
    let (service, _) = world.service(mode.mode, 0, &listen, &servers)?;
    Ok((world, service))
}

/// The frame with a payload that makes an IP packet of a length, and in which no byte is like the next.
fn long(frame: Frame, length: usize) -> Frame {
    let header = frame.clone().with(|f| f.payload.clear()).packet().len();
    frame.with(|f| f.payload = (0..length - header).map(|at| (at % 251) as u8).collect())
}

fn lengths(mode: &Mode) -> impl Iterator<Item = usize> {
    let most = u16::MAX as usize - overhead(mode);
    LENGTHS.into_iter().map(move |length| length.min(most))
}

fn overhead(mode: &Mode) -> usize {
    mode.tunnel.map_or(0, |(encap, _)| encap::overhead(encap) as usize)
}

fn first(family: &Family, number: u8) -> Frame {
    packet(family, number, 40_000, SYN)
}

fn forwarded(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service) = roomy(family, mode, u16::MAX)?;
        let flow = Flow::open(&mut world, service, family, mode, first(&family, number))?;
        for length in lengths(&mode) {
            flow.send(&mut world, long(flow.client(ACK), length))
                .with_context(|| format!("protocol {number}, {length} bytes"))?;
        }
    }
    Ok(())
}

fn replied(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service) = roomy(family, mode, u16::MAX)?;
        let flow = Flow::open(&mut world, service, family, mode, first(&family, number))?;
        for length in LENGTHS {
            flow.reply(&mut world, long(flow.answer(ACK), length))
                .with_context(|| format!("protocol {number}, {length} bytes"))?;
        }
    }
    Ok(())
}

/// The ICMP error that tells what fits, and quotes the packet.
fn expect_too_big(frame: &[u8], about: &Frame, fits: u16) -> Result<()> {
    let (kind, code) = if about.is_v6() { (2, 0) } else { (3, 4) };
    let error = Frame::icmp(&about.dst.to_string(), &about.src.to_string(), kind, code, fits.into()).with(|f| {
        f.macs = (about.macs.1, about.macs.0);
        f.payload = about.packet()[..512].to_vec();
    });
    let mut expected = error.bytes();
    if !about.is_v6() {
        // The identification does not matter in a packet that is not to be fragmented; nor then does its checksum, which
        // has been verified.
        for field in [18..20, 24..26] {
            expected[field.clone()].copy_from_slice(&frame[field]);
        }
    }
    same(frame, &expected)
}

fn too_big(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service) = roomy(family, mode, 8_900)?;
        let fits = 8_900 - overhead(&mode);
        let flow = Flow::open(&mut world, service, family, mode, first(&family, number))?;
        flow.send(&mut world, long(flow.client(ACK), fits)).context("what fits")?;
        for length in [fits + 1, 40_000] {
            let frame = long(flow.client(ACK), length);
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "TX", service, Outcome::TooBigAnswered)?;
            expect_sound(&ran)?;
            expect_too_big(&ran.frame, &frame, fits as u16).with_context(|| format!("{length} bytes"))?;
        }
    }
    Ok(())
}

fn reply_too_big(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service) = roomy(family, mode, 9_000)?;
    let flow = Flow::tcp(&mut world, service, family, mode, 40_000)?;
    entries::change_last_hop(&world, &flow, |hop| hop.mtu = 8_000)?;
    flow.reply(&mut world, long(flow.answer(ACK), 8_000)).context("what fits")?;
    let frame = long(flow.answer(ACK), 8_001);
    let ran = world.run(&frame.bytes())?;
    expect(&ran, "TX", service, Outcome::TooBigAnswered)?;
    expect_sound(&ran)?;
    expect_too_big(&ran.frame, &frame, 8_000)
}

fn expired(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service) = roomy(family, mode, 9_000)?;
    let flow = Flow::tcp(&mut world, service, family, mode, 40_000)?;
    let frame = long(flow.client(ACK), 8_900).with(|f| f.ttl = 1);
    let ran = world.run(&frame.bytes())?;
    expect(&ran, "TX", service, Outcome::TtlAnswered)?;
    expect_sound(&ran)?;
    let header = if family.name == "v6" { 48 } else { 28 };
    same(&ran.frame[14 + header..], &frame.packet()[..512])
}

fn refused(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service) = roomy(family, mode, 9_000)?;
    world.change_service(service, |s| s.flags |= Service::REFUSE_WITH_RESET)?;
    world.set_ring(service, &[])?;
    for number in [protocol::TCP, protocol::UDP] {
        // A SYN may carry data, which its reset acknowledges (RFC 9293, section 3.10.7.1).
        let frame = long(first(&family, number), 8_900);
        let data = frame.payload.len() as u32;
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "TX", service, Outcome::NoServer)?;
        expect_sound(&ran)?;
        ensure!(ran.frame[..12] == [CLIENT_MAC, GATEWAY_MAC].concat()[..], "not sent back");
        let l4 = if family.name == "v6" { 54 } else { 34 };
        if number == protocol::TCP {
            ensure!(ran.frame.len() == l4 + 20, "a reset of {} bytes", ran.frame.len());
            let acknowledged = u32::from_be_bytes(ran.frame[l4 + 8..l4 + 12].try_into()?);
            ensure!(acknowledged == 0x0102_0304 + data + 1, "it acknowledges {acknowledged:#x}");
        } else {
            same(&ran.frame[l4 + 8..], &frame.packet()[..512])?;
        }
    }
    Ok(())
}

fn fragments(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service) = roomy(family, mode, 9_000)?;
    let whole = long(packet(&family, protocol::UDP, 40_000, 0), 24_000);
    let parts = whole.fragments(0xbeef, &[8_400, 16_800]);
    let flow = Flow::open(&mut world, service, family, mode, parts[0].clone())?;
    let expected = flow.at_server(whole).fragments(0xbeef, &[8_400, 16_800]);
    for (part, expected) in parts.iter().zip(&expected).skip(1) {
        let ran = world.run(&part.bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::FragmentForwarded)?;
        expect_sound(&ran)?;
        same(inner(&ran, &mode), &expected.packet())?;
    }
    Ok(())
}

fn cut_short(family: Family, mode: Mode) -> Result<()> {
    let (mut world, _) = roomy(family, mode, 9_000)?;
    let whole = long(packet(&family, protocol::UDP, 40_000, 0), 8_900).bytes();
    for length in [whole.len() - 1, 5_000, 3_600] {
        let ran = world.run(&whole[..length])?;
        expect(&ran, "PASS", 0, Outcome::Malformed).with_context(|| format!("{length} bytes"))?;
        same(&ran.frame, &whole[..length])?;
    }
    Ok(())
}

fn echo(family: Family) -> Result<()> {
    let (mut world, service) = roomy(family, MODES[2], 9_000)?;
    let (request, reply) = if family.name == "v6" { (128, 129) } else { (8, 0) };
    let frame = long(Frame::icmp(family.client, family.vip, request, 0, 0x0102_0003), 8_900);
    let ran = world.run(&frame.bytes())?;
    expect(&ran, "TX", service, Outcome::EchoAnswered)?;
    let expected = long(Frame::icmp(family.vip, family.client, reply, 0, 0x0102_0003), 8_900)
        .with(|f| f.macs = (CLIENT_MAC, GATEWAY_MAC));
    same(&ran.frame, &expected.bytes())
}
