//! Flows that no server takes: what is handed over to the controller, and what is refused all the same.

use std::net::IpAddr;
use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunOptions};
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::net::{AnyAddr, Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{BUFFER_BYTES, ClassKey, Held, LARGE_FRAME, SMALL_FRAME, cookie, kind};
use loadbalancer_common::service::{Service, mode};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::cases::{Family, MODES, Mode, V6, expect, expect_frame, expect_sound, packet, world};
use super::entries::{self, change_affinity, client_hash, flow_hash, in_one_tick};
use super::flow::{Flow, same};
use super::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, Transport, verify};
use super::probes::{PORTS, probed, reaches};
use super::runner::Case;
use super::world::{INGRESS, Leases, Ran, World};

pub(super) const SYN: u8 = tcp_flag::SYN;
pub(super) const ACK: u8 = tcp_flag::ACK;
pub(super) const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;

pub(super) const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];
/// Tags of frames: none, one, two.
pub(super) const TAGS: [&[u16]; 3] = [&[], &[100], &[200, 0xe064]];
/// Active flows of a server at its mark.
const MARK: u32 = 5;
/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;
/// Ticks for which a client need not show again where it is.
const VERIFIED_TICKS: u32 = 14;

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

/// Nanoseconds of the monotonic clock.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A time that no test lives to see, and one that has passed even for a clock some milliseconds behind.
pub(super) fn later() -> u64 {
    now_ns() + 600_000_000_000
}

fn past() -> u64 {
    now_ns() - 100_000_000
}

/// A service of two servers.
pub(super) struct Gateway {
    pub(super) world: World,
    pub(super) service: u16,
    pub(super) backends: Vec<u16>,
    pub(super) family: Family,
    pub(super) mode: Mode,
}

impl Gateway {
    pub(super) fn new(family: Family, mode: Mode, flags: u8) -> Result<Self> {
        let (world, service, backends) = world(&family, &mode, flags | Service::QUEUE_DATAGRAMS)?;
        Ok(Self { world, service, backends, family, mode })
    }

    /// One with all servers at their marks, whose new flows may wait.
    pub(super) fn full(family: Family, mode: Mode, flags: u8) -> Result<Self> {
        let gateway = Self::new(family, mode, flags)?;
        gateway.fill()?;
        gateway.lease(Leases { queue: later(), ..Leases::default() });
        Ok(gateway)
    }

    /// Puts all servers at their marks.
    pub(super) fn fill(&self) -> Result<()> {
        for id in &self.backends {
            self.world.change_backend(*id, |b| b.high_water = MARK)?;
            self.world.set_active(*id, MARK.into());
        }
        Ok(())
    }

    pub(super) fn lease(&self, leases: Leases) {
        self.world.set_leases(self.service, leases);
    }

    /// As long as some flow waits.
    pub(super) fn waiting(&self) {
        self.lease(Leases { queue: later(), waiting: later(), challenge: false });
    }

    pub(super) fn packet(&self, number: u8, port: u16, flags: u8) -> Frame {
        packet(&self.family, number, port, flags)
    }

    pub(super) fn run(&mut self, frame: &Frame) -> Result<Ran> {
        self.world.run(&frame.bytes())
    }

    pub(super) fn expect(&mut self, frame: &Frame, action: &str, outcome: Outcome) -> Result<()> {
        let ran = self.run(frame)?;
        expect(&ran, action, self.service, outcome)
    }

    /// Active flows of both servers.
    pub(super) fn active(&self) -> [i64; 2] {
        [self.world.active(self.backends[0]), self.world.active(self.backends[1])]
    }

    pub(super) fn flows(&self) -> Result<[u64; 2]> {
        Ok([self.world.flows(self.backends[0])?, self.world.flows(self.backends[1])?])
    }

    pub(super) fn packets(&self) -> Result<[u64; 2]> {
        Ok([self.world.packets(self.backends[0])?, self.world.packets(self.backends[1])?])
    }

    /// What the controller must be told of a frame; its time is left out.
    pub(super) fn held(&self, frame: &Frame) -> Held {
        let family = Family { client: frame.src.to_string().leak(), ..self.family };
        Held {
            hash: flow_hash(&family, frame.protocol(), frame.sport),
            src: AnyAddr::from(frame.src),
            ifindex: INGRESS,
            sequence: match &frame.transport {
                Transport::Tcp { sequence, .. } => *sequence,
                _ => 0,
            },
            service: self.service,
            length: frame.bytes().len() as u16,
            dport: Be16::new(80),
            kind: kind::FLOW,
            protocol: frame.protocol(),
            tos: frame.tos,
            ipv6: u8::from(frame.is_v6()),
            ..Held::default()
        }
    }

    /// Runs a frame, which must be handed over.
    fn expect_held(&mut self, frame: &Frame, change: impl FnOnce(&mut Held)) -> Result<()> {
        let before = now_ns();
        self.expect(frame, "DROP", Outcome::Queued)?;
        let time = before..=now_ns();
        let mut expected = self.held(frame);
        change(&mut expected);
        let held = only_flow(&self.world, expected, &frame.bytes())?;
        ensure!(time.contains(&held.time), "it came at {}, not in {time:?}", held.time);
        Ok(())
    }

    /// Runs a reset, of which the controller must be told.
    fn expect_reset(&mut self, frame: &Frame, kind: u8) -> Result<()> {
        self.expect(frame, "DROP", Outcome::QueueReset)?;
        let expected = Held { kind, length: 0, ..self.held(frame) };
        only_flow(&self.world, expected, &[])?;
        Ok(())
    }

    pub(super) fn expect_no_record(&self) -> Result<()> {
        let records = self.world.records()?;
        ensure!(records.is_empty(), "{} records, the first of {} bytes", records.len(), records[0].len());
        Ok(())
    }

    /// The table of flows, and those that `nat` tracks, are empty.
    pub(super) fn expect_no_entry(&self) -> Result<()> {
        let maps = &self.world.kernel().maps;
        let words = maps.affinity.words().iter();
        let mut entries =
            words.filter(|word| !Entry(word.load(std::sync::atomic::Ordering::Relaxed)).is_free()).count();
        maps.conntrack4.for_each(|_, _| entries += 1)?;
        maps.conntrack6.for_each(|_, _| entries += 1)?;
        maps.last_hops4.for_each(|_, _| entries += 1)?;
        maps.last_hops6.for_each(|_, _| entries += 1)?;
        ensure!(entries == 0, "{entries} entries");
        Ok(())
    }

    fn set_verified(&self, ago: u32) -> Result<()> {
        let client = AnyAddr::from(self.family.client.parse::<IpAddr>()?).0;
        Ok(self.world.kernel().maps.verified.set(&client, &entries::now().wrapping_sub(ago))?)
    }

    fn is_verified(&self) -> Result<bool> {
        let client = AnyAddr::from(self.family.client.parse::<IpAddr>()?).0;
        Ok(self.world.kernel().maps.verified.get(&client)? == Some(entries::now()))
    }
}

/// The ring buffer's only record, which must be this; gives it with its time.
pub(super) fn only_flow(world: &World, expected: Held, frame: &[u8]) -> Result<Held> {
    let records = world.records()?;
    ensure!(records.len() == 1, "{} records: {records:02x?}", records.len());
    let room = match frame.len() {
        0 => 0,
        length if length <= SMALL_FRAME => SMALL_FRAME,
        _ => LARGE_FRAME,
    };
    ensure!(records[0].len() == size_of::<Held>() + room, "a record of {} bytes", records[0].len());
    let (held, rest) = records[0].split_at(size_of::<Held>());
    let held: Held = bytemuck::pod_read_unaligned(held);
    ensure!(Held { time: 0, ..held } == expected, "expected {expected:?}, got {held:?}");
    same(&rest[..frame.len()], frame).context("the frame that is handed over")?;
    Ok(held)
}

/// The first packet of a connection, with a frame of so many bytes.
fn of_length(gateway: &Gateway, number: u8, length: usize) -> Frame {
    let empty = gateway.packet(number, 40_000, SYN).with(|f| f.payload.clear());
    let payload = length - empty.bytes().len();
    empty.with(|f| f.payload = (0..payload).map(|at| at as u8).collect())
}

fn numbered(frame: Frame, number: u32) -> Frame {
    frame.with(|f| {
        f.payload.clear();
        if let Transport::Tcp { sequence, .. } = &mut f.transport {
            *sequence = number;
        }
    })
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

/// A gateway that challenges clients before they may wait.
fn challenging(family: Family, mode: Mode) -> Result<Gateway> {
    let gateway = Gateway::full(family, mode, 0)?;
    gateway.lease(Leases { queue: later(), waiting: 0, challenge: true });
    Ok(gateway)
}

fn challenged(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        let mut gateway = challenging(family, mode)?;
        for tags in TAGS {
            for (payload, options) in [(0, 0), (0, 40), (200, 0), (1_400, 12)] {
                let syn = gateway.packet(protocol::TCP, 40_000, SYN).with(|f| {
                    (f.tags, f.tos, f.payload) = (tags.to_vec(), 0x48, vec![7; payload]);
                    f.transport = Transport::Tcp {
                        flags: SYN,
                        sequence: 0x7fff_fff0,
                        acknowledged: 0,
                        options: vec![1; options],
                    };
                });
                let ran = gateway.run(&syn)?;
                expect(&ran, "TX", gateway.service, Outcome::Challenged)?;
                expect_challenge(&gateway, &ran, &syn)
                    .with_context(|| format!("tags {tags:?}, {payload} bytes of data, {options} of options"))?;
            }
        }
        gateway.expect_no_record()?;
        gateway.expect_no_entry()?;
        // UDP has nothing to answer with.
        let datagram = gateway.packet(protocol::UDP, 40_000, 0);
        gateway.expect_held(&datagram, |_| {})?;
        // Where there is room nobody is challenged.
        gateway.world.change_backend(gateway.backends[0], |b| b.high_water += 1)?;
        gateway.world.raise_room_epoch(gateway.service);
        let syn = gateway.packet(protocol::TCP, 40_000, SYN);
        gateway.expect(&syn, "REDIRECT", Outcome::Forwarded)
    })
}

/// To the byte: an acknowledgement of what the client never sent, with no window and no identification.
fn expect_challenge(gateway: &Gateway, ran: &Ran, syn: &Frame) -> Result<()> {
    let hash = gateway.held(syn).hash;
    let expected = Frame::tcp(gateway.family.vip, 80, gateway.family.client, syn.sport, ACK).with(|f| {
        f.macs = (CLIENT_MAC, GATEWAY_MAC);
        f.tags.clone_from(&syn.tags);
        f.payload.clear();
        let acknowledged = cookie(hash, entries::now());
        f.transport = Transport::Tcp { flags: ACK, sequence: 0, acknowledged, options: Vec::new() };
    });
    let l3 = 14 + 4 * syn.tags.len();
    verify(&ran.frame[l3..]).map_err(anyhow::Error::msg)?;
    let mut expected = expected.bytes();
    let (l4, own) = if syn.is_v6() { (l3 + 40, vec![]) } else { (l3 + 20, vec![l3 + 10, l3 + 11]) };
    if !syn.is_v6() {
        expected[l3 + 4..l3 + 6].fill(0);
    }
    expected[l4 + 14..l4 + 16].fill(0);
    // Checksums have been looked at, and follow from the rest.
    for at in own.into_iter().chain([l4 + 16, l4 + 17]) {
        expected[at] = ran.frame[at];
    }
    expect_frame(ran, &expected)
}

/// The reset with which a client answers a challenge of so many ticks ago.
fn answer(gateway: &Gateway, port: u16, ago: u32) -> Frame {
    let reset = gateway.packet(protocol::TCP, port, RST);
    let number = cookie(gateway.held(&reset).hash, entries::now().wrapping_sub(ago));
    numbered(reset, number)
}

fn verified(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        // Whether something waits already makes no difference.
        for waiting in [0, later()] {
            let mut gateway = challenging(family, mode)?;
            gateway.lease(Leases { queue: later(), waiting, challenge: true });
            let syn = gateway.packet(protocol::TCP, 40_000, SYN);
            gateway.expect(&syn, "TX", Outcome::Challenged)?;
            let reset = answer(&gateway, 40_000, 0);
            gateway.expect_reset(&reset, kind::VERIFIED).with_context(|| format!("waiting until {waiting}"))?;
            ensure!(gateway.is_verified()?, "the client is not verified");
            gateway.expect_held(&syn, |held| held.verified = 1)?;
            let other = gateway.packet(protocol::TCP, 40_001, SYN);
            gateway.expect_held(&other, |held| held.verified = 1).context("another flow of the client")?;
            gateway.lease(Leases { queue: later(), waiting, challenge: false });
            gateway.expect_held(&syn, |held| held.verified = 1).context("nobody is challenged any more")?;
            gateway.expect_no_entry()?;
        }
        Ok(())
    })
}

fn old_cookie(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        for (ago, is_good) in [(0, true), (1, true), (2, false), (u32::MAX, false)] {
            let mut gateway = challenging(family, mode)?;
            gateway.lease(Leases { queue: later(), waiting: later(), challenge: true });
            let reset = answer(&gateway, 40_000, ago);
            gateway.expect_reset(&reset, if is_good { kind::VERIFIED } else { kind::RESET })?;
            ensure!(gateway.is_verified()? == is_good, "a challenge of {ago} ticks ago");
        }
        // The right number, but another flow's.
        let mut gateway = challenging(family, mode)?;
        gateway.lease(Leases { queue: later(), waiting: later(), challenge: true });
        let other = answer(&gateway, 40_000, 0).with(|f| f.sport = 40_001);
        gateway.expect_reset(&other, kind::RESET)?;
        let syn = gateway.packet(protocol::TCP, 40_001, SYN);
        gateway.expect(&syn, "TX", Outcome::Challenged)
    })
}

fn verified_for_a_minute(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        let mut gateway = challenging(family, mode)?;
        let syn = gateway.packet(protocol::TCP, 40_000, SYN);
        gateway.set_verified(VERIFIED_TICKS)?;
        gateway.expect_held(&syn, |held| held.verified = 1)?;
        gateway.set_verified(VERIFIED_TICKS + 1)?;
        gateway.expect(&syn, "TX", Outcome::Challenged)?;
        let datagram = gateway.packet(protocol::UDP, 40_000, 0);
        gateway.expect_held(&datagram, |_| {})
    })
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
