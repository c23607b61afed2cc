//! The way back to a client: its VLAN tags and its neighbour's address, also when they change.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::net::{ethertype, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, link};
use loadbalancer_tests::frames::verify::verify;
use loadbalancer_tests::frames::world::Ran;

use super::case::Case;
use super::entries;
use super::expect::expect;
use super::family::Family;
use super::flow::{Flow, same};
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

/// Tags of frames: none, one, one with a priority, two.
const TAGS: [&[u16]; 4] = [&[], &[100], &[0x6064], &[200, 0xe064]];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("answers carry the tags of what they answer", answers);
        if mode.rewrites() {
            case("replies carry the client's tags", tags);
            case("replies carry the kind of the client's outer tag", unusual_tags);
            case("fragments of replies carry the client's tags", fragment_tags);
            case("replies follow a client that moves", moves);
            case("each flow's replies go where its client is", two_flows);
        }
    }
}

fn tags(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        for client in TAGS {
            for server in TAGS {
                let (mut world, service, _) = world(&family, &mode, 0)?;
                let first = packet(&family, number, 40_000, SYN).with(|f| f.tags = client.to_vec());
                let flow = Flow::open(&mut world, service, family, mode, first)?;
                flow.reply(&mut world, flow.answer(ACK).with(|f| f.tags = server.to_vec()))
                    .with_context(|| format!("protocol {number}, client {client:?}, server {server:?}"))?;
            }
        }
    }
    Ok(())
}

fn fragment_tags(family: Family, mode: Mode) -> Result<()> {
    for client in TAGS {
        let (mut world, service, _) = world(&family, &mode, 0)?;
        let first = packet(&family, protocol::UDP, 40_000, 0).with(|f| f.tags = client.to_vec());
        let flow = Flow::open(&mut world, service, family, mode, first)?;
        let whole = flow.answer(0).with(|f| f.payload = vec![7; 2_000]);
        let expected = flow.at_client(whole.clone()).fragments(9, &[1_200]);
        for (part, expected) in whole.fragments(9, &[1_200]).iter().zip(&expected) {
            let ran = world.run(&part.bytes())?;
            ensure!(ran.action == "TX", "{} for {client:?}: {:?}", ran.action, ran.counted);
            same(&ran.frame, &expected.bytes()).with_context(|| format!("tags {client:?}"))?;
        }
    }
    Ok(())
}

fn moves(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service, _) = world(&family, &mode, 0)?;
        let mut flow = Flow::open(&mut world, service, family, mode, packet(&family, number, 40_000, SYN))?;
        let mut state = flow.first_state();
        for (step, tags) in [TAGS[1], TAGS[3], TAGS[0], TAGS[0], TAGS[2], TAGS[3]].into_iter().enumerate() {
            flow.first.tags = tags.to_vec();
            flow.first.macs.1[5] = step as u8;
            // The last hop is looked at once a tick.
            entries::set(&world, &flow, state, 1)?;
            flow.send(&mut world, flow.client(ACK))?;
            flow.reply(&mut world, flow.answer(ACK)).with_context(|| format!("protocol {number}, move {step}"))?;
            state = entries::newest(&world, &flow)?.context("the flow has an entry")?.0;
        }
    }
    Ok(())
}

/// Two plain tags on top of each other, or a single one of QinQ's kind, come back as they are.
fn unusual_tags(family: Family, mode: Mode) -> Result<()> {
    for (tags, outer) in [(TAGS[3], ethertype::VLAN), (TAGS[1], ethertype::QINQ), (&[0], ethertype::VLAN)] {
        let with_outer = |mut frame: Vec<u8>| {
            frame[12..14].copy_from_slice(&outer.to_be_bytes());
            frame
        };
        let (mut world, service, _) = world(&family, &mode, 0)?;
        let mut flow = Flow::tcp(&mut world, service, family, mode, 40_000)?;
        flow.first.tags = tags.to_vec();
        entries::set(&world, &flow, flow.first_state(), 1)?;
        let ran = world.run(&with_outer(flow.client(ACK).bytes()))?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let ran = world.run(&flow.answer(ACK).bytes())?;
        expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
        let expected = with_outer(flow.at_client(flow.answer(ACK)).bytes());
        same(&ran.frame, &expected).with_context(|| format!("tags {tags:?}, the outer of kind {outer:#x}"))?;
    }
    Ok(())
}

/// `nat` keeps the way back with the flow, `dnat` with the client.
fn two_flows(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let mut one = Flow::tcp(&mut world, service, family, mode, 40_000)?;
    let moved = packet(&family, protocol::TCP, 40_001, SYN).with(|f| {
        f.tags = vec![100];
        f.macs.1[5] = 0xdd;
    });
    let two = Flow::open(&mut world, service, family, mode, moved)?;
    if mode.mode == mode::DNAT {
        (one.first.macs, one.first.tags) = (two.first.macs, two.first.tags.clone());
    }
    one.reply(&mut world, one.answer(ACK)).context("the older flow")?;
    two.reply(&mut world, two.answer(ACK)).context("the newer flow")
}

/// What the packet path answers itself goes back the way that it came.
fn answers(family: Family, mode: Mode) -> Result<()> {
    let v6 = family.name == "v6";
    for tags in TAGS {
        let (mut world, service, _) = world(&family, &mode, Service::REFUSE_WITH_RESET)?;
        let echo = Frame::icmp(family.client, family.vip, if v6 { 128 } else { 8 }, 0, 1);
        let asked: [(Frame, Outcome); 3] = [
            (packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.ttl = 1), Outcome::TtlAnswered),
            (packet(&family, protocol::UDP, 40_000, 0).with(|f| f.payload = vec![7; 1_500]), Outcome::TooBigAnswered),
            (echo, Outcome::EchoAnswered),
        ];
        for (frame, outcome) in asked {
            let ran = world.run(&frame.with(|f| f.tags = tags.to_vec()).bytes())?;
            expect_back(&ran, service, outcome, v6, tags)?;
        }
        world.set_ring(service, &[])?;
        for number in [protocol::TCP, protocol::UDP] {
            let frame = packet(&family, number, 40_001, SYN).with(|f| f.tags = tags.to_vec());
            let ran = world.run(&frame.bytes())?;
            expect_back(&ran, service, Outcome::NoServer, v6, tags)?;
        }
    }
    Ok(())
}

fn expect_back(ran: &Ran, service: u16, outcome: Outcome, v6: bool, tags: &[u16]) -> Result<()> {
    expect(ran, "TX", service, outcome)?;
    let header = link((CLIENT_MAC, GATEWAY_MAC), tags, if v6 { ethertype::IPV6 } else { ethertype::IPV4 });
    let what = || format!("{} to {tags:?}", outcome.label());
    same(&ran.frame[..header.len()], &header).with_context(what)?;
    verify(&ran.frame[header.len()..]).map_err(anyhow::Error::msg).with_context(what)
}
