//! Flows that no server takes: what is handed over to the controller, and what is refused all the same.

mod challenge;
pub(super) mod frames;
pub(super) mod gateway;

use std::net::IpAddr;
use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions};
use loadbalancer_common::affinity::state;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::{AnyAddr, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{BUFFER_BYTES, ClassKey, Held, LARGE_FRAME, SMALL_FRAME, kind};
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::Frame;
use loadbalancer_tests::frames::world::{INGRESS, Leases};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::case::Case;
use super::entries::{self, change_affinity, client_hash, in_one_tick};
use super::expect::{expect, expect_sound};
use super::family::{Family, V6};
use super::flow::Flow;
use super::mode::{MODES, Mode};
use super::probes::{PORTS, probed, reaches};
use super::world::packet;
use challenge::{challenged, old_cookie, verified, verified_for_a_minute};
use frames::{PROTOCOLS, TAGS, numbered};
use gateway::{Gateway, MARK, later, only_flow, past};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;

/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/queue: {what}", family.name, mode.name), move || test(family, mode)));
        };
        case("a flow that no server takes is handed over whole", handed_over);
        case("without a lease, or after it, flows are refused", lease);
        case("while some wait new flows wait as well, and known ones go on", none_overtakes);
        case("datagrams wait only where they are to", datagrams);
        case("middles of unknown flows do not wait", middles);
        case("fragments do not wait", fragments);
        case("frames wait up to a length", lengths);
        case("padding is handed over with the frame", padding);
        case("what the buffer has no room for is dropped", no_room_in_buffer);
        case("the longest prefix of its client gives a flow's class", class_by_prefix);
        case("a client's former server is told", former_server);
        case("an unverified client is challenged", challenged);
        case("the answer to a challenge verifies its client", verified);
        case("a challenge ends with the tick after its own", old_cookie);
        case("a client is verified for a minute", verified_for_a_minute);
        case("a client that gives up is told of", gives_up);
        case("probes do not wait", probes_pass);
        case("the controller is woken when a server at its mark loses a flow", room);
        case("two processors at a mark give no more places than there are", two_processors);
    }
}

/// The first packet of a connection, with a frame of so many bytes.
fn of_length(gateway: &Gateway, number: u8, length: usize) -> Frame {
    let empty = gateway.packet(number, 40_000, SYN).with(|f| f.payload.clear());
    let payload = length - empty.bytes().len();
    empty.with(|f| f.payload = (0..payload).map(|at| at as u8).collect())
}

fn handed_over(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (full, flags) in [(true, 0), (true, Service::REFUSE_WITH_RESET), (false, Service::REFUSE_WITH_RESET)] {
            let mut gateway = Gateway::full(family, mode, flags)?;
            if !full {
                gateway.world.set_ring(gateway.service, &[])?;
            }
            let (active, flows) = (gateway.active(), gateway.flows()?);
            for (tags, tos) in [(TAGS[0], 0), (TAGS[1], 0xb8), (TAGS[2], 0x02)] {
                // The second time every server is known to be at its mark.
                for port in [40_000, 40_001, 40_000] {
                    let frame = gateway.packet(number, port, SYN).with(|f| (f.tags, f.tos) = (tags.to_vec(), tos));
                    gateway.expect_held(&frame, |_| {}).with_context(|| format!("protocol {number}, tags {tags:?}"))?;
                }
            }
            gateway.expect_no_entry()?;
            ensure!(gateway.active() == active && gateway.flows()? == flows, "a waiting flow is counted");
        }
    }
    Ok(())
}

fn datagrams(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::full(family, mode, 0)?;
    let frame = gateway.packet(protocol::UDP, 40_000, 0);
    gateway.expect_held(&frame, |_| {})?;
    gateway.world.change_service(gateway.service, |service| service.flags &= !Service::QUEUE_DATAGRAMS)?;
    gateway.expect(&frame, "DROP", Outcome::Full)?;
    let connection = gateway.packet(protocol::TCP, 40_000, SYN);
    gateway.expect_held(&connection, |_| {})
}

fn lease(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (flags, action) in [(0, "DROP"), (Service::REFUSE_WITH_RESET, "TX")] {
            let mut gateway = Gateway::full(family, mode, flags)?;
            let frame = gateway.packet(number, 40_000, SYN);
            for (queue, waiting) in [(0, 0), (past(), 0), (past(), past())] {
                gateway.lease(Leases { queue, waiting, challenge: true });
                gateway.expect(&frame, action, Outcome::Full)?;
            }
            gateway.world.set_ring(gateway.service, &[])?;
            gateway.world.raise_room_epoch(gateway.service);
            for queue in [0, past()] {
                gateway.lease(Leases { queue, ..Leases::default() });
                gateway.expect(&frame, action, Outcome::NoServer)?;
            }
            gateway.expect_no_record()?;
        }
    }
    Ok(())
}

fn none_overtakes(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for flags in [0, Service::CLIENT_AFFINITY] {
            let mut gateway = Gateway::new(family, mode, flags)?;
            let (service, is_tcp) = (gateway.service, number == protocol::TCP);
            let mut known = Vec::new();
            for port in [40_000, 40_001, 40_002] {
                let first = gateway.packet(number, port, SYN);
                known.push(Flow::open(&mut gateway.world, service, family, mode, first)?);
            }
            known[1].send(&mut gateway.world, known[1].client(ACK))?;
            known[2].send(&mut gateway.world, known[2].client(FIN | ACK))?;
            let active = gateway.active();
            gateway.waiting();
            let new = gateway.packet(number, 41_000, SYN);
            let client_server = if flags == 0 { 0 } else { affinity_server(&gateway)? };
            gateway.expect_held(&new, |held| held.preferred = client_server)?;
            for (flow, flags) in [(&known[0], SYN), (&known[1], SYN), (&known[1], ACK), (&known[2], ACK)] {
                flow.send(&mut gateway.world, flow.client(flags))?;
            }
            if is_tcp {
                // Its flow has ended, so this is the first packet of another.
                gateway.expect_held(&known[2].client(SYN), |held| held.preferred = client_server)?;
            }
            gateway.expect_no_record()?;
            ensure!(gateway.active() == active, "active {:?}, not {active:?}", gateway.active());
            gateway.lease(Leases { queue: later(), waiting: past(), challenge: true });
            Flow::open(&mut gateway.world, service, family, mode, new)?;
            gateway.expect_no_record()?;
        }
    }
    Ok(())
}

/// The server that the table notes for the client.
fn affinity_server(gateway: &Gateway) -> Result<u16> {
    let hash = client_hash(gateway.family.client.parse()?, gateway.service);
    Ok(entries::affinity(&gateway.world, hash).context("the client has an entry")?.1.backend())
}

fn middles(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::new(family, mode, 0)?;
    gateway.waiting();
    for (port, flags) in [(40_000, ACK), (40_001, SYN | ACK), (40_002, FIN | ACK)] {
        let frame = gateway.packet(protocol::TCP, port, flags);
        if mode.mode == mode::NAT {
            gateway.expect(&frame, "DROP", Outcome::UnknownFlow)?;
        } else {
            gateway.expect(&frame, "REDIRECT", Outcome::Forwarded)?;
        }
    }
    gateway.world.set_ring(gateway.service, &[])?;
    let outcome = if mode.mode == mode::NAT { Outcome::UnknownFlow } else { Outcome::NoServer };
    let frame = gateway.packet(protocol::TCP, 40_003, ACK);
    gateway.expect(&frame, "DROP", outcome)?;
    gateway.expect_no_record()
}

fn fragments(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (flags, action) in [(0, "DROP"), (Service::REFUSE_WITH_RESET, "TX")] {
            for waiting in [false, true] {
                let mut gateway =
                    if waiting { Gateway::new(family, mode, flags)? } else { Gateway::full(family, mode, flags)? };
                if waiting {
                    gateway.waiting();
                }
                let whole = gateway.packet(number, 40_000, SYN).with(|f| f.payload = vec![7; 1_000]);
                let parts = whole.fragments(9, &[496]);
                gateway.expect(&parts[0], action, Outcome::Full)?;
                gateway.expect(&parts[1], "DROP", Outcome::FragmentUnknown)?;
                gateway.expect_no_record()?;
            }
        }
    }
    Ok(())
}

fn lengths(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (flags, action) in [(0, "DROP"), (Service::REFUSE_WITH_RESET, "TX")] {
            let mut gateway = Gateway::full(family, mode, flags)?;
            for length in [SMALL_FRAME - 1, SMALL_FRAME, SMALL_FRAME + 1, 600, LARGE_FRAME - 1, LARGE_FRAME] {
                let frame = of_length(&gateway, number, length);
                gateway.expect_held(&frame, |_| {}).with_context(|| format!("{length} bytes"))?;
            }
            for length in [LARGE_FRAME + 1, 1_514] {
                let frame = of_length(&gateway, number, length);
                let ran = gateway.run(&frame)?;
                expect(&ran, action, gateway.service, Outcome::QueueRefused)?;
                if action == "TX" {
                    expect_sound(&ran)?;
                }
            }
            gateway.expect_no_record()?;
        }
    }
    Ok(())
}

/// Ethernet frames have 60 bytes at least.
fn padding(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::full(family, mode, 0)?;
    let frame = gateway.packet(protocol::TCP, 40_000, SYN);
    let mut bytes = frame.bytes();
    bytes.resize(bytes.len() + 6, 0);
    let ran = gateway.world.run(&bytes)?;
    expect(&ran, "DROP", gateway.service, Outcome::Queued)?;
    let expected = Held { length: bytes.len() as u16, ..gateway.held(&frame) };
    only_flow(&gateway.world, expected, &bytes)?;
    Ok(())
}

fn no_room_in_buffer(family: Family, mode: Mode) -> Result<()> {
    for length in [SMALL_FRAME, LARGE_FRAME] {
        let mut gateway = Gateway::full(family, mode, Service::REFUSE_WITH_RESET)?;
        let service = gateway.service;
        let flow = gateway.packet(protocol::TCP, 39_000, SYN);
        gateway.world.change_backend(gateway.backends[0], |b| b.high_water += 1)?;
        let flow = {
            gateway.lease(Leases::default());
            gateway.world.set_ring(service, &gateway.backends[..1])?;
            Flow::open(&mut gateway.world, service, family, mode, flow)?
        };
        gateway.waiting();
        let frame = of_length(&gateway, protocol::TCP, length);
        // The kernel puts a header of eight bytes before each.
        let fit = u64::from(BUFFER_BYTES) / (8 + size_of::<Held>() + length) as u64;
        let times = fit + 100;
        let ran = gateway.world.run_times(&frame.bytes(), times as u32)?;
        let queued = ran.counted.iter().find(|(_, outcome, _)| *outcome == Outcome::Queued as usize);
        let queued = queued.context("none waits")?.2;
        ensure!(queued.abs_diff(fit) <= 1, "{queued} wait, not {fit}");
        let expected =
            [(service, Outcome::Queued as usize, queued), (service, Outcome::QueueBusy as usize, times - queued)];
        ensure!(ran.action == "DROP" && ran.counted == expected, "{} {:?}", ran.action, ran.counted);
        // What room there is for shorter ones is taken as well.
        let reset = numbered(gateway.packet(protocol::TCP, 40_000, RST), 0);
        gateway.world.run_times(&reset.bytes(), 100)?;
        gateway.expect(&reset, "DROP", Outcome::QueueBusy)?;
        // The controller is not woken then, but the flow ends.
        let active = gateway.active();
        flow.send(&mut gateway.world, flow.client(RST))?;
        ensure!(gateway.active() == [active[0] - 1, active[1]], "the flow has not ended");
        ensure!(gateway.world.records()?.len() as u64 >= queued, "records are lost");
        gateway.expect_held(&frame, |_| {})?;
    }
    Ok(())
}

fn class_by_prefix(family: Family, mode: Mode) -> Result<()> {
    let v6 = family.name == "v6";
    let (lengths, near, far) =
        if v6 { ([32, 64, 128], "2001:db8:1::9", "2001:db8:2::9") } else { ([8, 24, 32], "198.51.100.9", "198.7.0.9") };
    for number in PROTOCOLS {
        let mut gateway = Gateway::full(family, mode, 0)?;
        let own = gateway.service;
        let addr = AnyAddr::from(family.client.parse::<IpAddr>()?);
        let first = gateway.packet(number, 40_000, SYN);
        let of = |service: u16, ipv6: bool, bits: u8| ClassKey::new(service, ipv6, addr, bits);
        let key = |service: u16, bits: u8| of(service, v6, bits);
        let full = if v6 { 128 } else { 32 };
        // Another service's, and the same bits as an address of the other family.
        for other in [key(own + 1, full), of(own, !v6, 32), of(own, !v6, full)] {
            gateway.world.set_class(other, 99)?;
        }
        gateway.expect_held(&first, |_| {}).context("no class")?;
        // Of the client, of one with the first two prefixes, and of one with the first.
        let rows = [(lengths[0], 2, [2, 2, 2]), (lengths[1], 3, [3, 3, 2]), (lengths[2], 4, [4, 3, 2])];
        for (bits, class, expected) in rows {
            gateway.world.set_class(key(own, bits), class)?;
            for (client, class) in [family.client, near, far].into_iter().zip(expected) {
                let frame = first.clone().with(|f| f.src = client.parse().expect("an address"));
                gateway
                    .expect_held(&frame, |held| held.class = class)
                    .with_context(|| format!("client {client}, protocol {number}"))?;
            }
        }
        gateway.world.set_class(key(own, 0), 7)?;
        let stranger = if v6 { "fd99::1" } else { "203.0.113.5" };
        let frame = first.with(|f| f.src = stranger.parse().expect("an address"));
        gateway.expect_held(&frame, |held| held.class = 7)?;
    }
    Ok(())
}

fn former_server(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (flags, is_told) in [(Service::CLIENT_AFFINITY, true), (0, false)] {
            let mut gateway = Gateway::new(family, mode, flags)?;
            let service = gateway.service;
            gateway.world.set_ring(service, &gateway.backends[1..])?;
            let first = gateway.packet(number, 40_000, SYN);
            Flow::open(&mut gateway.world, service, family, mode, first)?;
            gateway.fill()?;
            gateway.lease(Leases { queue: later(), ..Leases::default() });
            let server = if is_told { gateway.backends[1] } else { 0 };
            let next = gateway.packet(number, 40_001, SYN);
            gateway.expect_held(&next, |held| held.preferred = server)?;
            let other = if family.name == V6.name { "2001:db8:1::8" } else { "198.51.100.8" };
            let stranger = next.clone().with(|f| f.src = other.parse().expect("an address"));
            gateway.expect_held(&stranger, |_| {})?;
            if is_told {
                let long_ago = entries::now().wrapping_sub(1_000) as u16 & TIME_MASK;
                let hash = client_hash(family.client.parse()?, service);
                change_affinity(&gateway.world, hash, |entry| entry.with(state::CLIENT, long_ago))?;
                gateway.expect_held(&next, |_| {})?;
            }
        }
    }
    Ok(())
}

/// Only resets of flows that are not known, and only while some wait.
fn gives_up(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        let mut gateway = Gateway::new(family, mode, 0)?;
        let service = gateway.service;
        let known = Flow::tcp(&mut gateway.world, service, family, mode, 39_000)?;
        gateway.waiting();
        for flags in [RST, RST | ACK] {
            let reset = gateway.packet(protocol::TCP, 40_000, flags);
            gateway.expect(&reset, "DROP", Outcome::QueueReset)?;
            let expected = Held { kind: kind::RESET, length: 0, ..gateway.held(&reset) };
            only_flow(&gateway.world, expected, &[])?;
        }
        known.send(&mut gateway.world, known.client(RST))?;
        gateway.expect_no_record().context("a known flow's")?;
        let unknown = |port| numbered(packet(&family, protocol::TCP, port, RST), 1);
        for (port, leases) in [
            (40_001, Leases { queue: later(), ..Leases::default() }),
            (40_002, Leases { queue: later(), waiting: past(), challenge: false }),
            (40_003, Leases { queue: past(), waiting: past(), challenge: true }),
        ] {
            gateway.lease(leases);
            if mode.mode == mode::NAT {
                gateway.expect(&unknown(port), "DROP", Outcome::UnknownFlow)?;
            } else {
                gateway.expect(&unknown(port), "REDIRECT", Outcome::Forwarded)?;
            }
            gateway.expect_no_record()?;
        }
        // A number that answers no challenge is not worth a record when nothing waits.
        gateway.lease(Leases { queue: later(), waiting: 0, challenge: true });
        gateway.expect(&unknown(40_004), "DROP", Outcome::UnknownFlow)?;
        gateway.expect_no_record()
    })
}

fn probes_pass(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let (mut world, service, backends) = probed(&family, &mode, number, 0, INGRESS)?;
        for id in &backends {
            world.change_backend(*id, |b| b.high_water = 0)?;
        }
        world.set_leases(service, Leases { queue: later(), waiting: later(), challenge: true });
        for flags in [SYN, ACK, RST] {
            reaches(&mut world, &mode, &family, service, &packet(&family, number, PORTS[1], flags), 1)?;
        }
        ensure!(world.records()?.is_empty(), "a probe waits");
    }
    Ok(())
}

fn room(family: Family, mode: Mode) -> Result<()> {
    for (end, is_client) in [(RST, true), (FIN | ACK, true), (RST, false)] {
        if !is_client && !mode.rewrites() {
            continue;
        }
        for (mark, is_waiting, records) in [(MARK, true, 1), (MARK - 1, true, 1), (MARK + 1, true, 0), (MARK, false, 0)]
        {
            let mut gateway = Gateway::new(family, mode, 0)?;
            let service = gateway.service;
            gateway.world.set_ring(service, &gateway.backends[..1])?;
            let flow = Flow::tcp(&mut gateway.world, service, family, mode, 40_000)?;
            let server = gateway.backends[0];
            gateway.world.set_active(server, MARK.into());
            gateway.world.change_backend(server, |b| b.high_water = mark)?;
            let waiting = if is_waiting { later() } else { 0 };
            gateway.lease(Leases { queue: later(), waiting, challenge: false });
            flow.send(&mut gateway.world, flow.client(ACK))?;
            gateway.expect_no_record()?;
            let epoch = gateway.world.room_epoch(service);
            // The second one changes nothing.
            for _ in 0..2 {
                if is_client {
                    flow.send(&mut gateway.world, flow.client(end))?;
                } else {
                    flow.reply(&mut gateway.world, flow.answer(end))?;
                }
            }
            let what = format!("mark {mark}, waiting {is_waiting}, flags {end:#x}");
            ensure!(gateway.world.active(server) == i64::from(MARK) - 1, "{what}: the flow has not ended");
            let lengths: Vec<usize> = gateway.world.records()?.iter().map(Vec::len).collect();
            ensure!(lengths == vec![8; records], "{what}: records of {lengths:?} bytes");
            let raised = gateway.world.room_epoch(service) - epoch;
            ensure!(raised == u64::from(mark <= MARK), "{what}: told {raised} times");
        }
    }
    Ok(())
}

fn two_processors(family: Family, mode: Mode) -> Result<()> {
    const ROUNDS: u16 = 20;
    const FLOWS: u16 = 16;
    let mut gateway = Gateway::full(family, mode, 0)?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    let queued = |gateway: &Gateway| Ok::<_, anyhow::Error>(gateway.world.totals()?[Outcome::Queued as usize]);
    let before = queued(&gateway)?;
    let mut left = 0;
    for round in 0..ROUNDS {
        gateway.backends.iter().for_each(|id| gateway.world.set_active(*id, 0));
        gateway.world.raise_room_epoch(gateway.service);
        let frames: Vec<Vec<u8>> = (0..2 * FLOWS)
            .map(|number| gateway.packet(protocol::TCP, 20_000 + round * 2 * FLOWS + number, SYN).bytes())
            .collect();
        let program = gateway.world.kernel_mut().program()?;
        let program = &*program;
        let start = Barrier::new(2);
        let half = |cpu: usize, frames: &[Vec<u8>]| -> Result<usize> {
            let mut only = CpuSet::new();
            let stays = only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
            start.wait();
            stays?;
            let mut dropped = 0;
            for frame in frames {
                let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
                dropped += usize::from(program.test_run(options)?.return_value == XDP_DROP);
            }
            Ok(dropped)
        };
        let dropped = thread::scope(|scope| -> Result<usize> {
            let (one, other) = frames.split_at(usize::from(FLOWS));
            let half = &half;
            let halves = [(cpus[0], one), (cpus[cpus.len() - 1], other)]
                .map(|(cpu, frames)| scope.spawn(move || half(cpu, frames)));
            halves.into_iter().map(|half| half.join().expect("nobody panics")).sum()
        })?;
        let active = gateway.active();
        ensure!(active == [i64::from(MARK); 2], "round {round}: {active:?} active flows, the mark is {MARK}");
        let waiting = 2 * usize::from(FLOWS) - 2 * MARK as usize;
        ensure!(dropped == waiting, "round {round}: {dropped} of {waiting} wait");
        left += waiting;
        let records = gateway.world.records()?.len();
        ensure!(records == waiting, "round {round}: {records} records of {waiting}");
    }
    ensure!(queued(&gateway)? - before == left as u64, "not all were counted");
    Ok(())
}
