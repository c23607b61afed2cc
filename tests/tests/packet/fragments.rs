//! Fragments on their way back from servers, and what may not be answered.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_tests::frames::frame::{Frame, Transport};
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::entries;
use super::expect::expect;
use super::family::Family;
use super::flow::{Flow, same};
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

/// Where a packet of 3,000 bytes of payload is cut.
const CUTS: [usize; 2] = [1_200, 2_400];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("a later fragment that cannot go on is dropped unanswered", obstacles);
        if mode.rewrites() {
            case("fragments of a reply make the reply whole", reply);
            case("later fragments of replies do not mix", replies_apart);
            case("a fragment number is used again", used_again);
            case("a later fragment of no known reply is left to the kernel", lone);
            case("a later fragment of a reply that cannot go on is dropped unanswered", reply_obstacles);
        }
    }
}

fn open(family: Family, mode: Mode, number: u8) -> Result<(World, Flow)> {
    let (mut world, service, _) = world(&family, &mode, 0)?;
    let flow = Flow::open(&mut world, service, family, mode, packet(&family, number, 40_000, SYN))?;
    Ok((world, flow))
}

/// A reply of the server that must be sent in fragments.
fn long_answer(flow: &Flow) -> Frame {
    flow.answer(ACK).with(|f| f.payload = (0..3_000).map(|at| (at % 251) as u8).collect())
}

/// Runs a fragment of a reply and compares what the client gets.
fn run_reply(world: &mut World, flow: &Flow, part: &Frame, expected: &Frame) -> Result<()> {
    let is_first = part.fragment.is_some_and(|(offset, _, _)| offset == 0);
    let outcome = if is_first { Outcome::ReplyForwarded } else { Outcome::FragmentForwarded };
    let ran = world.run(&part.bytes())?;
    expect(&ran, "TX", flow.service, outcome).with_context(|| format!("fragment {:?}", part.fragment))?;
    same(&ran.frame, &expected.bytes()).with_context(|| format!("fragment {:?}", part.fragment))
}

fn reply(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        for order in [[0, 1, 2], [0, 2, 1]] {
            let (mut world, flow) = open(family, mode, number)?;
            let whole = long_answer(&flow);
            let parts = whole.fragments(0xbeef, &CUTS);
            // Cut after the rewrite: so the first fragment's checksum must be that of the whole packet.
            let expected = flow.at_client(whole).fragments(0xbeef, &CUTS);
            for at in order {
                run_reply(&mut world, &flow, &parts[at], &expected[at])?;
            }
        }
    }
    Ok(())
}

/// Two clients get replies of one server at the same time.
fn replies_apart(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    world.set_ring(service, &backends[..1])?;
    let other = Family { client: if family.name == "v6" { "2001:db8:1::8" } else { "198.51.100.8" }, ..family };
    let flows = [family, other]
        .map(|family| Flow::open(&mut world, service, family, mode, packet(&family, protocol::UDP, 40_000, 0)));
    let [one, two] = flows;
    let flows = [one?, two?];
    let parts = [(&flows[0], 0xbeef), (&flows[1], 0xbef0)].map(|(flow, id)| {
        let whole = long_answer(flow);
        (whole.fragments(id, &CUTS), flow.at_client(whole).fragments(id, &CUTS))
    });
    for at in 0..3 {
        for (flow, (parts, expected)) in flows.iter().zip(&parts) {
            run_reply(&mut world, flow, &parts[at], &expected[at])?;
        }
    }
    Ok(())
}

/// Sixteen bits of IPv4 identification do not last for long: the newest first fragment counts.
fn used_again(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    world.set_ring(service, &backends[..1])?;
    for round in 0..3u8 {
        let first = packet(&family, protocol::UDP, 40_000 + u16::from(round), 0).with(|f| f.macs.1[5] = round);
        let flow = Flow::open(&mut world, service, family, mode, first)?;
        let whole = long_answer(&flow);
        let expected = flow.at_client(whole.clone()).fragments(7, &CUTS);
        for (part, expected) in whole.fragments(7, &CUTS).iter().zip(&expected) {
            run_reply(&mut world, &flow, part, expected)?;
        }
    }
    Ok(())
}

fn lone(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, flow) = open(family, mode, number)?;
        let whole = long_answer(&flow);
        let parts = whole.fragments(0xbeef, &CUTS);
        // Before the first one; then of another packet, of another protocol, from another address.
        let strangers = [
            parts[1].clone(),
            whole.fragments(0xbef0, &CUTS)[1].clone(),
            parts[1].clone().with(|f| f.transport = Transport::Raw(47)),
            parts[1].clone().with(|f| f.src = family.other.parse().expect("an address")),
        ];
        for (at, stranger) in strangers.iter().enumerate() {
            let ran = world.run(&stranger.bytes())?;
            expect(&ran, "PASS", 0, Outcome::NotOurs).with_context(|| format!("fragment {at}"))?;
            same(&ran.frame, &stranger.bytes())?;
            if at == 0 {
                expect(&world.run(&parts[0].bytes())?, "TX", flow.service, Outcome::ReplyForwarded)?;
            }
        }
    }
    Ok(())
}

/// No ICMP error may be sent about a later fragment (RFC 1122, section 3.2.2).
fn obstacles(family: Family, mode: Mode) -> Result<()> {
    let mut world = World::new()?;
    let servers = mode.servers(&family).map(|s| s.with(|s| s.mtu = 1_400));
    let (service, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::UDP)], &servers)?;
    let whole = packet(&family, protocol::UDP, 40_000, 0).with(|f| f.payload = vec![7; 3_000]);
    let parts = whole.fragments(0xbeef, &[1_200, 1_208]);
    expect(&world.run(&parts[0].bytes())?, "REDIRECT", service, Outcome::Forwarded)?;
    expect_dropped(&mut world, service, &parts)
}

fn reply_obstacles(family: Family, mode: Mode) -> Result<()> {
    let (mut world, flow) = open(family, mode, protocol::UDP)?;
    entries::change_last_hop(&world, &flow, |hop| hop.mtu = 1_400)?;
    let parts = long_answer(&flow).fragments(0xbeef, &[1_200, 1_208]);
    expect(&world.run(&parts[0].bytes())?, "TX", flow.service, Outcome::ReplyForwarded)?;
    expect_dropped(&mut world, flow.service, &parts)
}

/// The second fragment without hops left, and the third, which is too big; the second with a hop left goes on.
fn expect_dropped(world: &mut World, service: u16, parts: &[Frame]) -> Result<()> {
    let spent = parts[1].clone().with(|f| f.ttl = 1);
    expect(&world.run(&spent.bytes())?, "DROP", service, Outcome::TtlDropped)?;
    expect(&world.run(&parts[2].bytes())?, "DROP", service, Outcome::TooBigDropped)?;
    let ran = world.run(&parts[1].clone().with(|f| f.ttl = 2).bytes())?;
    ensure!(
        ran.counted == [(service, Outcome::FragmentForwarded as usize, 1)],
        "the fragment with a hop left: {} {:?}",
        ran.action,
        ran.counted
    );
    Ok(())
}
