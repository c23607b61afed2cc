//! Idle time-outs, as packets meet them: what outlives its state's time gives way, what is just within it does not.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::conntrack::{TO_CLIENT, TO_SERVER};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::world::{Server, World};

use super::case::Case;
use super::entries::{self, in_one_tick};
use super::expect::expect;
use super::family::Family;
use super::flow::Flow;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

/// States of flows, each with the protocol of its flows.
const STATES: [(u8, u8); 6] = [
    (state::UDP, protocol::UDP),
    (state::TCP_SYN, protocol::TCP),
    (state::TCP_ESTABLISHED, protocol::TCP),
    (state::TCP_CLIENT_FIN, protocol::TCP),
    (state::TCP_SERVER_FIN, protocol::TCP),
    (state::TCP_CLOSED, protocol::TCP),
];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/{what}", family.name, mode.name), move || {
                in_one_tick(|| test(family, mode))
            }));
        };
        case("a SYN within the time-out repeats, after it begins anew", syn);
        case("what is idle for long goes on while nothing took its place", middle);
        case("a client is remembered for its time-out", client);
        if mode.rewrites() {
            case("replies keep a flow young", reply);
        }
    }
    for (flow_state, _) in STATES.into_iter().chain([(state::CLIENT, 0)]) {
        let name = state::label(flow_state);
        cases.push(Case::new(format!("{}/dsr-l2/{name} gives way in the table after its time-out", family.name), {
            move || in_one_tick(|| gives_way(family, flow_state))
        }));
    }
    // Ended connections do so in need, without waiting: see `corners.rs`.
    for (flow_state, number) in STATES.into_iter().filter(|(flow_state, _)| *flow_state != state::TCP_CLOSED) {
        let name = state::label(flow_state);
        cases.push(Case::new(format!("{}/nat/{name} gives its port back after its time-out", family.name), {
            move || in_one_tick(|| gives_port_back(family, flow_state, number))
        }));
    }
}

fn timeout(world: &World, flow_state: u8) -> Result<u32> {
    Ok(world.settings()?.timeouts[flow_state as usize].into())
}

/// A flow whose server gets no new flows any more: only what goes on comes there. Gives the two backends, the flow's
/// first.
fn on_drained_server(world: &mut World, service: u16, backends: &[u16], first: (Family, Mode, u8)) -> Result<Drained> {
    let (family, mode, number) = first;
    let flow = Flow::open(world, service, family, mode, packet(&family, number, 40_000, SYN))?;
    let (mut own, mut other) = (backends[0], backends[1]);
    if world.active(own) == 0 {
        (own, other) = (other, own);
    }
    world.change_backend(own, |b| b.flags &= !Backend::ACCEPTS)?;
    Ok(Drained { flow, own, other })
}

struct Drained {
    flow: Flow,
    own: u16,
    other: u16,
}

impl Drained {
    /// Puts the flow in a state, and its server's count of active flows with it.
    fn set(&self, world: &World, flow_state: u8, age: u32) -> Result<()> {
        world.set_active(self.own, state::is_active(flow_state).into());
        entries::set(world, &self.flow, flow_state, age)
    }

    fn active(&self, world: &World) -> [i64; 2] {
        [world.active(self.own), world.active(self.other)]
    }
}

fn syn(family: Family, mode: Mode) -> Result<()> {
    for flow_state in [state::TCP_SYN, state::TCP_ESTABLISHED] {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let drained = on_drained_server(&mut world, service, &backends, (family, mode, protocol::TCP))?;
        let limit = timeout(&world, flow_state)?;
        for (age, active, then) in [(limit, [1, 0], flow_state), (limit + 1, [0, 1], state::TCP_SYN)] {
            let what = || format!("{} idle for {age} ticks", state::label(flow_state));
            drained.set(&world, flow_state, age)?;
            let ran = world.run(&drained.flow.client(SYN).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded).with_context(what)?;
            ensure!(drained.active(&world) == active, "{}: active flows {:?}", what(), drained.active(&world));
            let now = entries::newest(&world, &drained.flow)?;
            ensure!(now == Some((then, 0)), "{}: state and age are {now:?}", what());
            if mode.mode == mode::NAT {
                let has_reply = entries::translation(&world, &drained.flow, TO_CLIENT)?.is_some();
                ensure!(has_reply == (age == limit), "{}: the old port is taken: {has_reply}", what());
            }
        }
    }
    Ok(())
}

fn middle(family: Family, mode: Mode) -> Result<()> {
    for (flow_state, number) in STATES {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let drained = on_drained_server(&mut world, service, &backends, (family, mode, number))?;
        drained.set(&world, flow_state, timeout(&world, flow_state)? + 1)?;
        let before = drained.active(&world);
        drained.flow.send(&mut world, drained.flow.client(ACK)).context(state::label(flow_state))?;
        ensure!(drained.active(&world) == before, "active flows {:?}, not {before:?}", drained.active(&world));
        let then = if flow_state == state::TCP_SYN { state::TCP_ESTABLISHED } else { flow_state };
        let now = entries::newest(&world, &drained.flow)?;
        ensure!(now == Some((then, 0)), "{}: state and age are {now:?}", state::label(flow_state));
    }
    Ok(())
}

fn client(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, Service::CLIENT_AFFINITY)?;
    let hash = entries::client_hash(family.client.parse()?, service);
    world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
    let own = backends.iter().position(|id| world.active(*id) == 1).context("one has the flow")?;
    let (own, other) = (backends[own], backends[1 - own]);
    // The ring no longer names the client's server, which still takes flows.
    world.set_ring(service, &[other])?;
    let limit = timeout(&world, state::CLIENT)?;
    for (port, age, active) in [(40_001, limit, [2, 0]), (40_002, limit + 1, [2, 1]), (40_003, 0, [2, 2])] {
        let then = entries::now().wrapping_sub(age) as u16 & TIME_MASK;
        entries::change_affinity(&world, hash, |entry| entry.with(state::CLIENT, then))?;
        let ran = world.run(&packet(&family, protocol::TCP, port, SYN).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let now = [world.active(own), world.active(other)];
        ensure!(now == active, "active flows {now:?}, not {active:?}, after {age} ticks");
    }
    Ok(())
}

fn reply(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        let (mut world, service, _) = world(&family, &mode, 0)?;
        let flow = Flow::open(&mut world, service, family, mode, packet(&family, number, 40_000, SYN))?;
        entries::set(&world, &flow, flow.first_state(), 4)?;
        flow.reply(&mut world, flow.answer(SYN | ACK))?;
        let now = entries::newest(&world, &flow)?;
        ensure!(now == Some((flow.first_state(), 0)), "state and age are {now:?}");
    }
    Ok(())
}

/// Place in a bucket of the entry that a test is about, and of one that gives way more willingly while the first is
/// within its time.
const SUBJECT: usize = 3;
const RIVAL: usize = 5;

fn gives_way(family: Family, flow_state: u8) -> Result<()> {
    let limit = {
        let (world, _, _) = world(&family, &MODES[2], 0)?;
        timeout(&world, flow_state)?
    };
    for (age, expected) in [(limit, RIVAL), (limit + 1, SUBJECT)] {
        let (mut world, service, backends) = world(&family, &MODES[2], 0)?;
        world.change_backend(backends[0], |b| b.flags &= !Backend::ACCEPTS)?;
        world.set_active(backends[0], 100);
        // A closed flow gives way before all others that are within their time. Against a closed flow stands one that has
        // outlived its time, but not by as much as the subject will have.
        let rival = if flow_state == state::TCP_CLOSED {
            world.change_settings(|s| s.timeouts[state::UDP as usize] = 1)?;
            (state::UDP, 2)
        } else {
            (state::TCP_CLOSED, 0)
        };
        let now = entries::now();
        let entry = |tag: usize, (flow_state, age): (u8, u32)| {
            Entry::new(0xf111_0000 + tag as u32, backends[0], flow_state, now.wrapping_sub(age) as u16 & TIME_MASK)
        };
        let before: Vec<Entry> = (0..world.kernel().maps.affinity.words().len())
            .map(|at| match at % 8 {
                SUBJECT => entry(at, (flow_state, age)),
                RIVAL => entry(at, rival),
                _ => entry(at, (state::TCP_ESTABLISHED, 0)),
            })
            .collect();
        for (word, entry) in world.kernel().maps.affinity.words().iter().zip(&before) {
            word.store(entry.0, Ordering::Relaxed);
        }
        let ran = world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        let words = world.kernel().maps.affinity.words();
        let gone: Vec<usize> =
            (0..before.len()).filter(|at| words[*at].load(Ordering::Relaxed) != before[*at].0).collect();
        let [gone] = gone[..] else {
            anyhow::bail!("{} entries changed", gone.len());
        };
        ensure!(gone % 8 == expected, "after {age} ticks place {} gave way, not {expected}", gone % 8);
        let active = [world.active(backends[0]), world.active(backends[1])];
        let left = 100 - i64::from(state::is_active(before[gone].state()));
        ensure!(active == [left, 1], "active flows {active:?}, not [{left}, 1]");
    }
    Ok(())
}

/// A `nat` service of one server, with one port to give.
fn one_port(family: &Family) -> Result<(World, u16, u16)> {
    let mut world = World::new()?;
    let server = Server::at(family.servers[0]).with(|s| s.port = 8080);
    let listen = [(family.vip, 80, protocol::TCP), (family.vip, 80, protocol::UDP)];
    let (service, backends) = world.service(mode::NAT, 0, &listen, &[server])?;
    world.change_service(service, |s| (s.nat_port_first, s.nat_port_last) = (20_000, 20_000))?;
    Ok((world, service, backends[0]))
}

fn gives_port_back(family: Family, flow_state: u8, number: u8) -> Result<()> {
    let (mut world, service, backend) = one_port(&family)?;
    let limit = timeout(&world, flow_state)?;
    let flow = Flow::open(&mut world, service, family, MODES[0], packet(&family, number, 40_000, SYN))?;
    entries::set(&world, &flow, flow_state, 0)?;
    let before = i64::from(state::is_active(flow_state));
    world.set_active(backend, before as u64);
    // The younger direction counts.
    for ages in [(limit, limit), (limit + 1, limit), (limit, limit + 1)] {
        for (direction, age) in [(TO_SERVER, ages.0), (TO_CLIENT, ages.1)] {
            let then = entries::now().wrapping_sub(age);
            entries::change_translation(&world, &flow, direction, |part| part.time = then)?;
        }
        let ran = world.run(&packet(&family, number, 40_001, SYN).bytes())?;
        expect(&ran, "DROP", service, Outcome::PortsExhausted).with_context(|| format!("{ages:?} ticks"))?;
        ensure!(world.active(backend) == before, "{} active flows, not {before}", world.active(backend));
    }
    entries::set(&world, &flow, flow_state, limit + 1)?;
    let next = Flow::open(&mut world, service, family, MODES[0], packet(&family, number, 40_001, SYN))?;
    ensure!(next.source.1 == 20_000, "port {}", next.source.1);
    ensure!(world.active(backend) == 1, "{} active flows, not 1", world.active(backend));
    for direction in [TO_SERVER, TO_CLIENT] {
        ensure!(entries::translation(&world, &flow, direction)?.is_none(), "the old flow still has an entry");
    }
    next.reply(&mut world, next.answer(ACK)).context("reply to the new flow")
}
