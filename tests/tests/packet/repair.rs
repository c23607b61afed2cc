//! `nat` when the kernel has evicted one of a flow's two entries.

use anyhow::{Context, Result, ensure};
use loadbalancer::dataplane::census::walk::{self, FlowCounts};
use loadbalancer_common::affinity::state;
use loadbalancer_common::conntrack::{TO_CLIENT, TO_SERVER};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::world::{Server, World};

use super::case::Case;
use super::entries::{self, in_one_tick};
use super::expect::{expect, expect_sound};
use super::family::Family;
use super::flow::{Flow, same};
use super::mode::MODES;
use super::world::packet;

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const FIN: u8 = tcp_flag::FIN;
const RST: u8 = tcp_flag::RST;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for (proto, number) in [("tcp", protocol::TCP), ("udp", protocol::UDP)] {
        let mut case = |what: &str, test: fn(&mut Nat) -> Result<()>| {
            cases.push(Case::new(format!("{}/{proto}/nat/{what}", family.name), move || {
                in_one_tick(|| test(&mut Nat::new(family, number)?))
            }));
        };
        case("the client's packet brings an evicted reply entry back", reply_entry);
        case("a flow that lost its reply entry is counted off once", ends_without_reply_entry);
        case("a port whose reply entry was evicted is not shared", port_taken);
        case("what ends a flow leaves the next one on its port alone", port_kept);
        case("without its entry a flow is begun anew, or refused", forward_entry);
        case("replies still pass without the client's entry", reply_without_forward_entry);
        case("a port without a flow is given anew", lone_port);
        case("the count of active flows is mended", counted_anew);
        case("without any entry nothing of the flow is left", both_entries);
    }
}

/// A `nat` service of one server.
struct Nat {
    world: World,
    service: u16,
    backend: u16,
    family: Family,
    number: u8,
}

impl Nat {
    fn new(family: Family, number: u8) -> Result<Self> {
        let mut world = World::new()?;
        let server = Server::at(family.servers[0]).with(|s| s.port = 8080);
        let listen = [(family.vip, 80, protocol::TCP), (family.vip, 80, protocol::UDP)];
        let (service, backends) = world.service(mode::NAT, 0, &listen, &[server])?;
        Ok(Self { world, service, backend: backends[0], family, number })
    }

    /// Leaves the server one port.
    fn with_one_port(&self) -> Result<()> {
        self.world.change_service(self.service, |s| (s.nat_port_first, s.nat_port_last) = (20_000, 20_000))
    }

    fn open(&mut self, port: u16) -> Result<Flow> {
        self.open_from(port, 0xc1)
    }

    /// A flow from a neighbour with another address.
    fn open_from(&mut self, port: u16, neighbour: u8) -> Result<Flow> {
        let first = packet(&self.family, self.number, port, SYN).with(|f| f.macs.1[5] = neighbour);
        Flow::open(&mut self.world, self.service, self.family, MODES[0], first)
    }

    /// Lets a tick pass for a flow: the packet path looks after the other direction's entry once in each.
    fn tick(&self, flow: &Flow) -> Result<()> {
        for direction in [TO_SERVER, TO_CLIENT] {
            if entries::translation(&self.world, flow, direction)?.is_some() {
                entries::change_translation(&self.world, flow, direction, |part| {
                    part.time = part.time.wrapping_sub(1)
                })?;
            }
        }
        Ok(())
    }

    fn expect_active(&self, expected: i64) -> Result<()> {
        let active = self.world.active(self.backend);
        ensure!(active == expected, "{active} active flows, not {expected}");
        Ok(())
    }

    /// The controller's count, which removes what is idle, as it will be so many ticks from now. (A time in the past might
    /// be one before the machine's start, which the count does not take for a time.)
    fn census(&self, later: u32) -> Result<FlowCounts> {
        let maps = &self.world.kernel().maps;
        let mut counts = FlowCounts { active: vec![0; maps.backends.entries() as usize], ..FlowCounts::default() };
        walk::nat(maps, &self.world.settings()?, entries::now() + later, &mut counts)?;
        Ok(counts)
    }

    fn is_tcp(&self) -> bool {
        self.number == protocol::TCP
    }

    /// A server's packet is none of ours any more.
    fn expect_reply_passed(&mut self, flow: &Flow) -> Result<()> {
        let frame = flow.answer(ACK).bytes();
        let ran = self.world.run(&frame)?;
        expect(&ran, "PASS", 0, Outcome::NotOurs)?;
        same(&ran.frame, &frame)
    }
}

fn reply_entry(nat: &mut Nat) -> Result<()> {
    let flow = nat.open_from(40_000, 0xd0)?;
    flow.send(&mut nat.world, flow.client(ACK))?;
    let before = entries::translation(&nat.world, &flow, TO_CLIENT)?;
    entries::evict(&nat.world, &flow, TO_CLIENT)?;
    nat.expect_reply_passed(&flow)?;
    nat.tick(&flow)?;
    flow.send(&mut nat.world, flow.client(ACK)).context("the client's next packet")?;
    let after = entries::translation(&nat.world, &flow, TO_CLIENT)?;
    ensure!(after == before && after.is_some(), "the entry was {before:?} and is {after:?}");
    flow.reply(&mut nat.world, flow.answer(ACK)).context("the server's next packet")?;
    nat.expect_active(1)
}

fn ends_without_reply_entry(nat: &mut Nat) -> Result<()> {
    let flow = nat.open(40_000)?;
    flow.send(&mut nat.world, flow.client(ACK))?;
    entries::evict(&nat.world, &flow, TO_CLIENT)?;
    nat.tick(&flow)?;
    flow.send(&mut nat.world, flow.client(FIN | ACK))?;
    let active = i64::from(!nat.is_tcp());
    nat.expect_active(active)?;
    flow.reply(&mut nat.world, flow.answer(RST))?;
    flow.send(&mut nat.world, flow.client(RST))?;
    nat.expect_active(active)?;
    ensure!(i64::from(nat.census(0)?.active[nat.backend as usize]) == active, "the census counts otherwise");
    Ok(())
}

/// A new flow may take a port while the old flow's own entry still names it. Then the old one has lost it.
fn port_taken(nat: &mut Nat) -> Result<()> {
    nat.with_one_port()?;
    let old = nat.open_from(40_000, 0xd0)?;
    entries::evict(&nat.world, &old, TO_CLIENT)?;
    let new = nat.open_from(40_001, 0xd1)?;
    nat.tick(&old)?;
    let ran = nat.world.run(&old.client(ACK).bytes())?;
    if nat.is_tcp() {
        expect(&ran, "DROP", nat.service, Outcome::UnknownFlow)?;
    } else {
        // It would begin anew, had the server another port.
        expect(&ran, "DROP", nat.service, Outcome::PortsExhausted)?;
    }
    nat.expect_active(1)?;
    ensure!(entries::translation(&nat.world, &old, TO_SERVER)?.is_none(), "the old flow still has its entry");
    new.reply(&mut nat.world, new.answer(ACK)).context("reply to the new flow")
}

/// What ends the old flow must not take the new one's entry along.
fn port_kept(nat: &mut Nat) -> Result<()> {
    nat.with_one_port()?;
    let old = nat.open(40_000)?;
    let old_state = if nat.is_tcp() { state::TCP_CLOSED } else { state::UDP };
    entries::evict(&nat.world, &old, TO_CLIENT)?;
    let new = nat.open_from(40_001, 0xd1)?;
    entries::change_translation(&nat.world, &old, TO_SERVER, |part| part.state = old_state.into())?;
    if nat.is_tcp() {
        // A new connection of the old flow's ports.
        let ran = nat.world.run(&old.client(SYN).bytes())?;
        expect(&ran, "DROP", nat.service, Outcome::PortsExhausted)?;
    } else {
        // The old one falls silent, the new one does not.
        let idle = u32::from(nat.world.settings()?.timeouts[old_state as usize]) + 1;
        for direction in [TO_SERVER, TO_CLIENT] {
            entries::change_translation(&nat.world, &new, direction, |part| part.time += idle)?;
        }
        let census = nat.census(idle)?;
        ensure!(census.active[nat.backend as usize] == 1, "the census counts otherwise");
    }
    ensure!(entries::translation(&nat.world, &old, TO_SERVER)?.is_none(), "the old flow still has its entry");
    new.reply(&mut nat.world, new.answer(ACK)).context("reply to the new flow")
}

fn forward_entry(nat: &mut Nat) -> Result<()> {
    let flow = nat.open(40_000)?;
    flow.send(&mut nat.world, flow.client(ACK))?;
    entries::evict(&nat.world, &flow, TO_SERVER)?;
    if nat.is_tcp() {
        for (flags, reset, action) in
            [(0, ACK, "DROP"), (Service::REFUSE_WITH_RESET, ACK, "TX"), (0, FIN | ACK, "DROP")]
        {
            nat.world.change_service(nat.service, |s| s.flags = flags)?;
            let ran = nat.world.run(&flow.client(reset).bytes())?;
            expect(&ran, action, nat.service, Outcome::UnknownFlow)?;
            if action == "TX" {
                expect_sound(&ran)?;
            }
        }
        nat.expect_active(1)?;
    }
    let anew = nat.open(40_000)?;
    ensure!(anew.source.1 != flow.source.1, "the port was given twice");
    // The old one is still counted: nothing tells that its entry is gone but the census.
    nat.expect_active(2)?;
    anew.send(&mut nat.world, anew.client(ACK))?;
    anew.reply(&mut nat.world, anew.answer(ACK))
}

fn reply_without_forward_entry(nat: &mut Nat) -> Result<()> {
    let flow = nat.open(40_000)?;
    entries::evict(&nat.world, &flow, TO_SERVER)?;
    nat.tick(&flow)?;
    for flags in [ACK, FIN | ACK, RST, RST] {
        flow.reply(&mut nat.world, flow.answer(flags)).with_context(|| format!("flags {flags:#x}"))?;
        nat.expect_active(1)?;
    }
    ensure!(entries::translation(&nat.world, &flow, TO_SERVER)?.is_none(), "a reply made the client's entry");
    Ok(())
}

fn lone_port(nat: &mut Nat) -> Result<()> {
    nat.with_one_port()?;
    let flow = nat.open(40_000)?;
    entries::evict(&nat.world, &flow, TO_SERVER)?;
    let anew = nat.open_from(40_001, 0xd1)?;
    anew.reply(&mut nat.world, anew.answer(ACK))?;
    anew.send(&mut nat.world, anew.client(ACK))
}

fn counted_anew(nat: &mut Nat) -> Result<()> {
    let flow = nat.open(40_000)?;
    entries::evict(&nat.world, &flow, TO_SERVER)?;
    let anew = nat.open(40_000)?;
    nat.expect_active(2)?;
    ensure!(nat.census(0)?.active[nat.backend as usize] == 1, "the census counts what is gone");
    // A lone reply entry is left alone while it may be about to get its partner, then goes.
    for (age, is_left) in [(2, true), (3, false)] {
        let census = nat.census(age)?;
        let left = entries::translation(&nat.world, &flow, TO_CLIENT)?.is_some();
        ensure!(left == is_left, "after {age} ticks the old reply entry is there: {left}");
        ensure!(census.active[nat.backend as usize] == 1, "the census counts otherwise");
    }
    nat.expect_reply_passed(&flow)?;
    anew.send(&mut nat.world, anew.client(ACK))?;
    anew.reply(&mut nat.world, anew.answer(ACK))
}

fn both_entries(nat: &mut Nat) -> Result<()> {
    let flow = nat.open(40_000)?;
    entries::evict(&nat.world, &flow, TO_SERVER)?;
    entries::evict(&nat.world, &flow, TO_CLIENT)?;
    nat.expect_reply_passed(&flow)?;
    if nat.is_tcp() {
        let ran = nat.world.run(&flow.client(ACK).bytes())?;
        expect(&ran, "DROP", nat.service, Outcome::UnknownFlow)?;
    }
    let anew = nat.open(40_000)?;
    anew.reply(&mut nat.world, anew.answer(ACK))?;
    ensure!(nat.census(0)?.active[nat.backend as usize] == 1, "the census counts what is gone");
    Ok(())
}
