//! Passive signals: what a watched flow's packets tell of its server, and what they do not.

mod rows;

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytemuck::Zeroable;
use loadbalancer::dataplane::ids::BackendNumber;
use loadbalancer::dataplane::signals::counters;
use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::hash;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::service::mode;
use loadbalancer_common::signal::{
    BUCKETS, Latencies, OFF, Observed, Pending, Signals, Who, is_sampled, mask_of, pending,
};
use loadbalancer_tests::frames::frame::{Frame, GATEWAY_MAC, SERVER_MAC, Transport};
use loadbalancer_tests::frames::world::{World, path};

use super::case::Case;
use super::entries;
use super::expect::source_port;
use super::family::Family;
use super::flow::Flow;
use super::mode::{MODES, Mode};
use super::world::{packet, world};
use rows::Step::{self, Client, Later, Server, Taken};
use rows::{AFTER, DATAGRAMS, FROM_SYN, NONE, OPEN, OPENED, Row, SECOND, Seen};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        for row in FROM_SYN.iter().chain(&AFTER) {
            cases.push(Case::new(format!("{}/tcp/{}/signals, {}", family.name, mode.name, row.name), move || {
                tells(family, mode, protocol::TCP, row)
            }));
        }
        for row in &DATAGRAMS {
            cases.push(Case::new(format!("{}/udp/{}/signals, {}", family.name, mode.name, row.name), move || {
                tells(family, mode, protocol::UDP, row)
            }));
        }
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/signals, {what}", family.name, mode.name), move || test(family, mode)));
        };
        case("flows that are not sampled leave no trace", not_sampled);
        case("what passed while a flow was not watched is not missed", unwatched);
        case("each flow counts for the channel that it takes", channels);
        case("a flow whose channel changes counts for the new one", channel_changes);
        case("of two flows in one place the younger is watched", collision);
        case("headers that say nonsense tell nothing", nonsense);
        case("fragments tell nothing", fragments);
        case("a SYN that another server gets was lost by the first", another_server);
        case("a server that there is not is not counted", no_such_server);
        if mode.rewrites() {
            case("latencies are those of the traffic", latencies);
            case("a large request is timed from its end, others from their beginning", long_requests);
            case("ICMP errors are refusals", icmp_errors);
        }
    }
    cases.push(Case::new(
        format!("{}/nat/signals, a flow is watched on though its reply's entry was evicted", family.name),
        move || evicted(family),
    ));
}

/// A flow that is watched, and whose packets are still to come.
struct Watched {
    world: World,
    family: Family,
    mode: Mode,
    number: u8,
    service: u16,
    backends: Vec<u16>,
    /// None before its first packet.
    flow: Option<Flow>,
    port: u16,
    /// Numbers of the SYNs, the client's and the server's.
    zero: (u32, u32),
}

impl Watched {
    fn new(family: Family, mode: Mode, number: u8, zero: (u32, u32)) -> Result<Self> {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        world.set_ring(service, &backends[..1])?;
        forget(&world)?;
        Ok(Self { world, family, mode, number, service, backends, flow: None, port: 40_000, zero })
    }

    fn both_ways(&self) -> bool {
        self.mode.rewrites()
    }

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Client(flags, start, next, bytes) => {
                let template = packet(&self.family, self.number, self.port, flags);
                self.client(numbered(template, self.zero, (start, next), bytes))
            }
            Server(flags, start, next, bytes) if self.both_ways() => {
                let flow = self.flow.as_ref().context("the client begins")?;
                let zero = (self.zero.1, self.zero.0);
                let frame = numbered(flow.answer(flags), zero, (start, next), bytes);
                ran(&mut self.world, &frame, "TX")
            }
            Server(..) => Ok(()),
            Taken => self.change(|entry| *entry = Observed { who: Who::new(!0, 9, 0), ..*entry }),
            Later(ns) => {
                let hash = self.hash()?;
                self.change(|entry| {
                    let time = Pending::nothing(hash).0 ^ Pending::since(hash, pending::NOTHING, u64::MAX).0;
                    let word = entry.pending.0;
                    entry.pending = Pending(word & !time | word.wrapping_sub(ns) & time);
                })
            }
        }
    }

    /// Runs a client's frame, which is to be forwarded. In `nat` it may get a new source port.
    fn client(&mut self, frame: Frame) -> Result<()> {
        let out = self.world.run(&frame.bytes())?;
        ensure!(out.action == "REDIRECT", "the client's packet: {} and {:?}", out.action, out.counted);
        if self.flow.is_none() {
            // What opens a flow is the same for all; the port that `nat` gave is read from the output.
            let server = self.mode.servers(&self.family)[0].clone();
            let source = (self.family.client.to_owned(), self.port);
            let (family, mode, service) = (self.family, self.mode, self.service);
            self.flow = Some(Flow { family, mode, service, first: frame, server, source });
        }
        if let Some(flow) = &mut self.flow
            && self.mode.mode == mode::NAT
        {
            flow.source = (self.family.nat_source.to_owned(), source_port(&out, &self.family));
        }
        Ok(())
    }

    fn all(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| self.take(*step).with_context(|| format!("{step:?}")))
    }

    /// Hash by which the flow is watched.
    fn hash(&self) -> Result<u64> {
        if self.mode.mode != mode::NAT {
            return Ok(entries::flow_hash(&self.family, self.number, self.port));
        }
        let port = self.flow.as_ref().context("the flow has a source port")?.source.1;
        Ok(hash::nat_flow(loadbalancer_tests::frames::world::SEED, self.backends[0], Be16::new(port), self.number))
    }

    fn place(&self) -> Result<u32> {
        Ok((self.hash()? >> 32) as u32 & self.world.settings()?.observed_mask)
    }

    fn entry(&self) -> Result<Observed> {
        self.world.kernel().maps.observed.get(&self.place()?)?.context("the table has this place")
    }

    fn change(&self, change: impl FnOnce(&mut Observed)) -> Result<()> {
        let mut entry = self.entry()?;
        change(&mut entry);
        Ok(self.world.kernel().maps.observed.set(&self.place()?, &entry)?)
    }

    fn seen(&self) -> Seen {
        seen(&signals(&self.world, self.backends[0], 0))
    }
}

/// Empties the table of watched flows and all signals.
pub(super) fn forget(world: &World) -> Result<()> {
    let maps = &world.kernel().maps;
    for place in 0..maps.observed.entries() {
        maps.observed.set(&place, &Observed::zeroed())?;
    }
    maps.signals.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
    Ok(())
}

pub(super) fn signals(world: &World, backend: u16, channel: u8) -> Signals {
    counters(&world.kernel().maps, BackendNumber(backend), channel)
}

fn seen(signals: &Signals) -> Seen {
    Seen {
        handshakes: signals.handshakes.buckets.iter().sum(),
        lost_syns: signals.lost_syns,
        refused_syns: signals.refused_syns,
        responses: signals.responses.buckets.iter().sum(),
        segments: signals.segments,
        lost_segments: signals.lost_segments,
        refused_requests: signals.refused_requests,
        unanswered: signals.unanswered,
    }
}

fn ran(world: &mut World, frame: &Frame, action: &str) -> Result<()> {
    let ran = world.run(&frame.bytes())?;
    // The server's last words, after the client has gone, may be nobody's.
    ensure!(ran.action == action || ran.action == "PASS", "{} and {:?}", ran.action, ran.counted);
    Ok(())
}

/// Gives a frame its numbers and so many bytes of payload.
fn numbered(frame: Frame, zero: (u32, u32), (start, next): (u32, u32), bytes: u32) -> Frame {
    frame.with(|f| {
        f.payload = vec![7; bytes as usize];
        if let Transport::Tcp { sequence, acknowledged, .. } = &mut f.transport {
            (*sequence, *acknowledged) = (zero.0.wrapping_add(start), zero.1.wrapping_add(next));
        }
    })
}

fn tells(family: Family, mode: Mode, number: u8, row: &Row) -> Result<()> {
    // Also where the numbers of a side turn over in the middle.
    for zero in [(1_000, 2_000), (u32::MAX - 50, 7), (7, u32::MAX - 150)] {
        let mut watched = Watched::new(family, mode, number, zero)?;
        if AFTER.iter().any(|other| other.name == row.name) {
            watched.all(&OPEN)?;
        }
        watched.all(row.steps)?;
        let expected = if watched.both_ways() { row.both_ways } else { row.one_way };
        ensure!(watched.seen() == expected, "from {zero:?} on, expected\n  {expected:?}, got\n  {:?}", watched.seen());
    }
    Ok(())
}

/// A request and its response, from the handshake on.
const EXCHANGE: [Step; 5] = [OPEN[0], OPEN[1], OPEN[2], Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 200)];

fn not_sampled(family: Family, mode: Mode) -> Result<()> {
    let mut sampled = Vec::new();
    for share in [OFF, mask_of(4)] {
        for port in 40_000..40_040 {
            let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
            watched.world.watch(watched.service, share)?;
            watched.port = port;
            watched.all(&EXCHANGE)?;
            let is_watched = is_sampled(watched.hash()?, mask_of(4));
            let expected = share != OFF && is_watched;
            ensure!((watched.seen() != NONE) == expected, "port {port}: {:?}", watched.seen());
            let place = watched.place()?;
            let entry = watched.world.kernel().maps.observed.get(&place)?;
            ensure!((entry != Some(Observed::zeroed())) == expected, "port {port}: {entry:?}");
            sampled.extend(expected.then_some(port));
        }
    }
    ensure!((2..25).contains(&sampled.len()), "{} of 40 flows were watched", sampled.len());
    Ok(())
}

/// The share of watched flows changes between a request and its response, and again before the next request: to another one,
/// or back to the same.
fn unwatched(family: Family, mode: Mode) -> Result<()> {
    for (meanwhile, after) in [(OFF, mask_of(2)), (mask_of(2), mask_of(1))] {
        let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
        let passes_unseen = |port: &u16| {
            let hash = entries::flow_hash(&family, protocol::TCP, *port);
            !is_sampled(hash, meanwhile) && is_sampled(hash, after)
        };
        watched.port = (40_000..40_100).find(passes_unseen).context("half of the flows are watched")?;
        watched.all(&EXCHANGE[..4])?;
        watched.world.watch(watched.service, meanwhile)?;
        watched.take(EXCHANGE[4])?;
        watched.world.watch(watched.service, after)?;
        watched.all(&[Client(ACK, 101, 201, 100), Server(ACK, 201, 201, 200)])?;
        watched.all(&[Client(ACK, 201, 401, 100), Server(ACK, 401, 301, 200)])?;
        let expected = match mode.mode {
            // A flow is watched from its beginning to its end, or not at all.
            mode::NAT => Seen { responses: 3, segments: 6, ..OPENED },
            // The first exchange after it tells only where both sides are.
            mode::DNAT => Seen { responses: 1, segments: 4, ..OPENED },
            _ => Seen { segments: 2, ..OPENED },
        };
        ensure!(watched.seen() == expected, "expected\n  {expected:?}, got\n  {:?}", watched.seen());
    }
    Ok(())
}

/// Gives the server as many paths as it has slots, one per channel.
fn all_channels(watched: &Watched) -> Result<()> {
    let server = &watched.mode.servers(&watched.family)[0];
    let paths: [u32; PATH_SLOTS] = std::array::from_fn(|slot| 50 + slot as u32);
    for (channel, id) in paths.into_iter().enumerate() {
        let server = server.clone().with(|server| server.channel = channel as u8);
        watched.world.kernel().maps.paths.set(&id, &path(&server))?;
    }
    watched.world.change_backend(watched.backends[0], |backend| backend.paths = paths)
}

fn channels(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    all_channels(&watched)?;
    for port in 30_000..30_400 {
        (watched.port, watched.flow) = (port, None);
        watched.all(&EXCHANGE)?;
    }
    let of: Vec<Seen> = (0..8).map(|channel| seen(&signals(&watched.world, watched.backends[0], channel))).collect();
    let handshakes: Vec<u32> = of.iter().map(|seen| seen.handshakes).collect();
    ensure!(handshakes.iter().sum::<u32>() == 400, "{handshakes:?} handshakes");
    // 50 expected in each; 5 sigma are 33.
    ensure!(handshakes.iter().all(|count| (17..=83).contains(count)), "{handshakes:?} handshakes");
    for seen in of {
        let count = seen.handshakes;
        let expected = if mode.rewrites() {
            Seen { responses: count, segments: 2 * count, ..NONE }
        } else {
            Seen { segments: count, ..NONE }
        };
        ensure!(seen == Seen { handshakes: count, ..expected }, "{seen:?}");
    }
    Ok(())
}

fn channel_changes(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    watched.all(&EXCHANGE)?;
    let before = watched.seen();
    all_channels(&watched)?;
    watched.world.change_backend(watched.backends[0], |backend| backend.paths = [53; PATH_SLOTS])?;
    // The first segment over the new channel is where it is picked up.
    for request in 0..3u32 {
        let (start, next) = (101 + request * 100, 201 + request * 200);
        watched.all(&[Client(ACK, start, next, 100), Server(ACK, next, start + 100, 200)])?;
    }
    ensure!(watched.seen() == before, "{:?} over the old channel", watched.seen());
    let now = seen(&signals(&watched.world, watched.backends[0], 3));
    let expected =
        if watched.both_ways() { Seen { responses: 2, segments: 5, ..NONE } } else { Seen { segments: 2, ..NONE } };
    ensure!(now == expected, "{now:?} over the new channel");
    Ok(())
}

fn collision(family: Family, mode: Mode) -> Result<()> {
    let mut older = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    // One place for all.
    older.world.change_settings(|settings| settings.observed_mask = 0)?;
    older.take(OPEN[0])?;
    let older_flow = older.flow.take();
    older.port += 1;
    older.take(OPEN[0])?;
    let younger_flow = std::mem::replace(&mut older.flow, older_flow);
    older.port -= 1;
    older.take(OPEN[1])?;
    if !older.both_ways() {
        older.take(OPEN[2])?;
    }
    ensure!(older.seen() == NONE, "the older one counted: {:?}", older.seen());
    older.flow = younger_flow;
    older.port += 1;
    older.all(&OPEN[1..])?;
    ensure!(older.seen() == OPENED, "the younger one: {:?}", older.seen());
    Ok(())
}

fn nonsense(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    watched.all(&OPEN)?;
    let offset_at = if family.name == "v6" { 54 + 12 } else { 34 + 12 };
    for words in [0u8, 4, 15] {
        let frame = packet(&family, protocol::TCP, 40_000, ACK);
        let mut bytes = numbered(frame, (1, 1), (1, 1), 30).bytes();
        // The header is shorter than the least, or ends behind the packet.
        bytes[offset_at] = words << 4;
        watched.world.run(&bytes)?;
    }
    // Flags that do not go together.
    for flags in [SYN | ACK, SYN | FIN, SYN | RST, 0xff, 0] {
        let frame = packet(&family, protocol::TCP, 40_001, flags);
        watched.world.run(&numbered(frame, (1, 1), (1, 1), 0).bytes())?;
    }
    ensure!(watched.seen() == OPENED, "{:?}", watched.seen());
    Ok(())
}

fn fragments(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    watched.all(&OPEN)?;
    let frame = packet(&family, protocol::TCP, 40_000, ACK);
    for part in numbered(frame, (1, 1), (1, 1), 400).fragments(7, &[200]) {
        watched.client(part)?;
    }
    ensure!(watched.seen() == OPENED, "{:?}", watched.seen());
    Ok(())
}

fn another_server(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    watched.take(OPEN[0])?;
    let [first, second] = watched.backends[..] else { anyhow::bail!("there are two servers") };
    watched.world.change_backend(first, |backend| backend.flags |= Backend::DOWN)?;
    watched.world.set_ring(watched.service, &[second])?;
    watched.take(OPEN[0])?;
    let of = [first, second].map(|id| seen(&signals(&watched.world, id, 0)));
    // In `nat` the second one is another flow: its tuple there is another.
    let lost = u32::from(mode.mode != mode::NAT);
    ensure!(of == [Seen { lost_syns: lost, ..NONE }, NONE], "{of:?}");
    if !watched.both_ways() {
        watched.take(OPEN[2])?;
        ensure!(seen(&signals(&watched.world, second, 0)) == OPENED, "the second server's handshake is not timed");
    }
    Ok(())
}

fn no_such_server(family: Family, mode: Mode) -> Result<()> {
    let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
    watched.all(&OPEN)?;
    let hash = watched.hash()?;
    for backend in [0, 65, u16::MAX] {
        watched.change(|entry| {
            entry.who = Who::new(hash, backend, 7);
            entry.pending = Pending::since(hash, pending::RESPONSE, 0);
        })?;
        watched.all(&[Server(ACK, 1, 1, 10), Server(RST, 11, 1, 0)])?;
    }
    ensure!(watched.seen() == OPENED, "{:?}", watched.seen());
    Ok(())
}

fn latencies(family: Family, mode: Mode) -> Result<()> {
    for number in [protocol::TCP, protocol::UDP] {
        for wait in [0, SECOND / 1_000, 3 * SECOND] {
            let mut watched = Watched::new(family, mode, number, (1, 1))?;
            let steps = if number == protocol::TCP { &EXCHANGE[..] } else { &[Client(0, 0, 0, 9), Server(0, 0, 0, 9)] };
            let (last, before) = steps.split_last().context("there are steps")?;
            let begun = Instant::now();
            watched.all(before)?;
            watched.all(&[Later(wait), *last])?;
            let most = wait + begun.elapsed().as_nanos() as u64;
            let signals = signals(&watched.world, watched.backends[0], 0);
            let ns = signals.response_ns;
            ensure!((wait..=most).contains(&ns), "{ns} ns, between {wait} and {most}");
            let mut expected = [0; BUCKETS];
            expected[Latencies::bucket(ns)] = 1;
            ensure!(signals.responses.buckets == expected, "{ns} ns in {:?}", signals.responses);
            ensure!(signals.handshake_ns <= most - wait, "a handshake of {} ns", signals.handshake_ns);
        }
    }
    Ok(())
}

fn long_requests(family: Family, mode: Mode) -> Result<()> {
    // Longer than anything stands still here.
    const LONG: u64 = 60 * SECOND;
    // Bytes of the second segment, and whether the first tells when the request began.
    for (bytes, from_first) in [(100, true), (13_600, true), (13_601, false), (20_000, false)] {
        let mut watched = Watched::new(family, mode, protocol::TCP, (1, 1))?;
        watched.all(&OPEN)?;
        let server = &watched.mode.servers(&watched.family)[0];
        let wide = path(&server.clone().with(|server| server.mtu = u16::MAX));
        watched.world.kernel().maps.paths.set(&1, &wide)?;
        watched.all(&[Client(ACK, 1, 1, 1_000), Later(LONG)])?;
        // The kernel's test run takes a page at a time, as do clients.
        let mut start = 1_001;
        while start < 1_001 + bytes {
            let part = (1_001 + bytes - start).min(1_400);
            watched.take(Client(ACK, start, 1, part))?;
            start += part;
        }
        watched.take(Server(ACK, 1, start, 200))?;
        let ns = signals(&watched.world, watched.backends[0], 0).response_ns;
        ensure!((ns >= LONG) == from_first, "{bytes} bytes: {ns} ns");
    }
    Ok(())
}

fn icmp_errors(family: Family, mode: Mode) -> Result<()> {
    let v6 = family.name == "v6";
    // Type and code; whether it says that nobody gets what was sent.
    let kinds: &[(u8, u8, bool)] = if v6 {
        &[(1, 4, true), (1, 0, true), (2, 0, false), (3, 0, false)]
    } else {
        &[(3, 3, true), (3, 1, true), (3, 4, false), (11, 0, false)]
    };
    for (kind, code, counts) in kinds {
        let count = u32::from(*counts);
        for (number, steps, expected) in [
            (protocol::TCP, &OPEN[..1], Seen { refused_syns: count, ..NONE }),
            (protocol::TCP, &EXCHANGE[..4], Seen { refused_requests: count, segments: 1, ..OPENED }),
            (protocol::UDP, &[Client(0, 0, 0, 30)], Seen { refused_requests: count, ..NONE }),
        ] {
            let mut watched = Watched::new(family, mode, number, (1, 1))?;
            watched.all(steps)?;
            let flow = watched.flow.as_ref().context("the flow is open")?;
            let quoted = flow.at_server(flow.client(SYN)).packet();
            let (server, source) = (flow.server.addr.to_string(), flow.source.0.clone());
            // Twice: the second is about nothing that is outstanding.
            for _ in 0..2 {
                let frame = Frame::icmp(&server, &source, *kind, *code, 0).with(|f| {
                    f.payload = quoted[..quoted.len().min(60)].to_vec();
                    f.macs = (GATEWAY_MAC, SERVER_MAC);
                });
                ran(&mut watched.world, &frame, "TX")?;
            }
            ensure!(watched.seen() == expected, "type {kind}, code {code}: {:?}", watched.seen());
        }
    }
    Ok(())
}

fn evicted(family: Family) -> Result<()> {
    let mut watched = Watched::new(family, MODES[0], protocol::TCP, (1, 1))?;
    watched.all(&OPEN)?;
    let flow = watched.flow.as_ref().context("the flow is open")?;
    entries::evict(&watched.world, flow, loadbalancer_common::conntrack::TO_CLIENT)?;
    entries::change_translation(&watched.world, flow, loadbalancer_common::conntrack::TO_SERVER, |part| {
        part.time -= 1
    })?;
    watched.all(&EXCHANGE[3..])?;
    ensure!(watched.seen() == Seen { responses: 1, segments: 2, ..OPENED }, "{:?}", watched.seen());
    Ok(())
}
