//! Where new flows go when servers are hot: the second choice if it is cooler, and never a known flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use loadbalancer_common::hash;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::ring::SLOTS;
use loadbalancer_common::service::Service;
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::entries::{client_hash, flow_hash};
use super::expect::expect;
use super::family::Family;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const NEVER: u32 = u32::MAX;

/// What a server has when a new flow comes.
#[derive(Clone, Copy, Debug)]
struct Load {
    active: u32,
    weight: u32,
    hot_mark: u32,
    high_water: u32,
}

const fn load(active: u32, weight: u32, hot_mark: u32, high_water: u32) -> Load {
    Load { active, weight, hot_mark, high_water }
}

/// What is the case, the flow's first and second choice, and which of them it comes to.
type Row = (&'static str, Load, Load, Option<usize>);

const DIFFERENT: [Row; 14] = [
    ("a cool server takes its flows, whatever the other has", load(9, 1, 10, NEVER), load(0, 1, 10, NEVER), Some(0)),
    ("a hot server's flow goes to the other", load(10, 1, 10, NEVER), load(0, 1, 10, NEVER), Some(1)),
    ("and as long as that is cool", load(10, 1, 10, NEVER), load(9, 1, 10, NEVER), Some(1)),
    ("even if that has more", load(10, 1, 10, NEVER), load(99, 1, 100, NEVER), Some(1)),
    ("of two hot ones the first has less", load(10, 1, 10, NEVER), load(11, 1, 10, NEVER), Some(0)),
    ("of two hot ones the second has less", load(11, 1, 10, NEVER), load(10, 1, 10, NEVER), Some(1)),
    ("two hot ones have the same", load(10, 1, 10, NEVER), load(10, 1, 10, NEVER), Some(0)),
    ("the second has less for its weight", load(10, 1, 10, NEVER), load(15, 2, 10, NEVER), Some(1)),
    ("both have the same for their weights", load(10, 1, 10, NEVER), load(20, 2, 10, NEVER), Some(0)),
    ("the first has less for its weight", load(30, 3, 10, NEVER), load(11, 1, 10, NEVER), Some(0)),
    ("a hot server still takes what a full one cannot", load(50, 1, 10, NEVER), load(5, 1, 5, 5), Some(0)),
    ("a full server's flow goes to a hot one", load(5, 1, NEVER, 5), load(50, 1, 10, NEVER), Some(1)),
    ("a full server's flow goes to a cool one", load(5, 1, NEVER, 5), load(50, 1, NEVER, NEVER), Some(1)),
    ("no server is left when both are full", load(5, 1, 3, 5), load(7, 1, 3, 7), None),
];

/// Both choices are the same server, the first here.
const SAME: [Row; 3] = [
    ("a cool server that is both choices", load(9, 1, 10, NEVER), load(0, 1, 10, NEVER), Some(0)),
    ("two choices of one hot server are no choice", load(10, 1, 10, NEVER), load(0, 1, 10, NEVER), Some(0)),
    ("any other is looked for when it is full", load(10, 1, 10, 10), load(99, 1, 10, NEVER), Some(1)),
];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        for (rows, same) in [(&DIFFERENT[..], false), (&SAME[..], true)] {
            for row in rows {
                cases.push(Case::new(format!("{}/{}/hot: {}", family.name, mode.name, row.0), move || {
                    one_flow(family, mode, *row, same)
                }));
            }
        }
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || test(family, mode)));
        };
        case("a server gets flows up to its hot mark, and again when one has ended", up_to_the_mark);
        case("known flows stay on a hot server", known_flows_stay);
        case("a client stays on its hot server, and leaves a full one", client_stays);
    }
}

/// Ports of flows whose choices are these, by index of the server in a ring in which two take turns.
fn ports(family: Family, number: u8, first: usize, second: usize) -> impl Iterator<Item = u16> {
    (40_000..50_000).filter(move |port| choices(flow_hash(&family, number, *port)) == [first, second])
}

fn choices(hash: u64) -> [usize; 2] {
    [hash, hash::second(hash)].map(|hash| hash::scale(hash, SLOTS) as usize % 2)
}

fn set(world: &World, backend: u16, load: Load) -> Result<()> {
    world.set_active(backend, load.active.into());
    world.change_backend(backend, |b| {
        (b.weight, b.hot_mark, b.high_water) = (load.weight, load.hot_mark, load.high_water);
    })
}

fn one_flow(family: Family, mode: Mode, (_, first, second, expected): Row, same: bool) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        for place in [0, 1] {
            let (mut world, service, backends) = world(&family, &mode, 0)?;
            let pair = [backends[place], backends[1 - place]];
            set(&world, pair[0], first)?;
            set(&world, pair[1], second)?;
            let mut ports = ports(family, number, place, if same { place } else { 1 - place });
            let port = ports.next().context("some port has these choices")?;
            let ran = world.run(&packet(&family, number, port, SYN).bytes())?;
            match expected {
                Some(_) => expect(&ran, "REDIRECT", service, Outcome::Forwarded)?,
                None => expect(&ran, "DROP", service, Outcome::Full)?,
            }
            let got = [0, 1].map(|at| world.active(pair[at]) - i64::from([first, second][at].active));
            let wanted = [0, 1].map(|at| i64::from(expected == Some(at)));
            ensure!(got == wanted, "new flows {got:?}, expected {wanted:?}, protocol {number}, place {place}");
        }
    }
    Ok(())
}

fn up_to_the_mark(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    world.change_backend(backends[0], |b| b.hot_mark = 3)?;
    let ports: Vec<u16> = ports(family, protocol::TCP, 0, 1).take(7).collect();
    let mut run = |port: u16, flags, expected: [i64; 2]| {
        let ran = world.run(&packet(&family, protocol::TCP, port, flags).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let active = [world.active(backends[0]), world.active(backends[1])];
        ensure!(active == expected, "active flows {active:?}, expected {expected:?}");
        Ok(())
    };
    for (port, expected) in ports.iter().zip([[1, 0], [2, 0], [3, 0], [3, 1], [3, 2]]) {
        run(*port, SYN, expected)?;
    }
    run(ports[0], RST, [2, 2])?;
    run(ports[5], SYN, [3, 2])?;
    run(ports[6], SYN, [3, 3])
}

fn known_flows_stay(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let ports: Vec<u16> = ports(family, number, 0, 1).take(3).collect();
        for port in &ports {
            world.run(&packet(&family, number, *port, SYN).bytes())?;
        }
        world.change_backend(backends[0], |b| b.hot_mark = 1)?;
        let before = world.packets(backends[0])?;
        // Repeated first packets too.
        for flags in [SYN, ACK, ACK] {
            for port in &ports {
                let ran = world.run(&packet(&family, number, *port, flags).bytes())?;
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
            }
        }
        let active = [world.active(backends[0]), world.active(backends[1])];
        ensure!(active == [3, 0], "active flows {active:?}");
        let packets = world.packets(backends[0])? - before;
        ensure!(packets == 9, "{packets} of 9 packets came to the flows' server");
    }
    Ok(())
}

fn client_stays(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, Service::CLIENT_AFFINITY)?;
    // A client that would have another server as its second choice.
    let client = (1..200u8)
        .map(|last| match family.client.parse().expect("an address") {
            IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits() & !0xff | u32::from(last)).into(),
            IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !0xff | u128::from(last)).into(),
        })
        .find(|client| choices(client_hash(*client, service)) == [0, 1])
        .context("some client has these choices")?;
    let (own, other) = (backends[0], backends[1]);
    world.change_backend(own, |b| (b.hot_mark, b.high_water) = (1, 3))?;
    for (port, expected) in [(40_000, [1, 0]), (40_001, [2, 0]), (40_002, [3, 0]), (40_003, [3, 1]), (40_004, [3, 2])] {
        world.run(&packet(&family, protocol::TCP, port, SYN).with(|f| f.src = client).bytes())?;
        let active = [world.active(own), world.active(other)];
        ensure!(active == expected, "active flows {active:?}, expected {expected:?}");
    }
    Ok(())
}
