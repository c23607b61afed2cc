//! Cost of the packet path, by mode and number of flows.
//!
//! A generator in the kernel makes a frame of another flow and tail-calls the program under test; the same with a program
//! that does nothing is subtracted. All runs are on one CPU, in turn, and of each figure the median is told.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use clap::{Parser, ValueEnum};
use loadbalancer::dataplane::kernel::Sizes;
use loadbalancer::dataplane::signals::{Source, Tracker};
use loadbalancer_common::affinity::Bucket;
use loadbalancer_common::checksum::fold;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_common::service::mode;
use loadbalancer_common::signal::{index, mask_of};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::plot::{self, Line};
use super::report::{self, Bar, Figure, median};
use crate::packet::frame::{Frame, Transport};
use crate::packet::world::{Server, World};

static GENERATOR: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator-ebpf"));

const FLOWS: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
const SERVERS: usize = 100;
const TEMPLATE: usize = 80;
/// Bytes of payload with which a frame is as long as one that the generator knows.
const PAYLOAD: usize = 12;
/// As the configuration has it by default.
const USUAL_FLOWS_PER_SAMPLE: u16 = 16;
/// Room for the largest number of flows, and for new ones beside.
const SIZES: Sizes =
    Sizes { services: 16, backends: 1024, rings: 16, flows: 1_000_000, nat_flows: 1_200_000, vips: 1024 };

/// Measures what the packet path costs per packet.
#[derive(Parser)]
#[command(name = "cargo xtask bench packet", bin_name = "cargo xtask bench packet")]
struct Arguments {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Packets of each round
    #[arg(long, default_value_t = 1_000_000)]
    packets: u32,
    /// Only modes whose name has this in it
    #[arg(default_value = "")]
    filter: String,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only one of the tables
    #[arg(long)]
    only: Option<Table>,
    /// Draw plots: FILE with `-established` and `-new` before its end
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// What a packet costs
    Packets,
    /// What watching flows costs
    Watching,
}

/// A mode as it is measured.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    mode: u8,
    encap: u8,
    v6: bool,
    udp: bool,
    /// With the options that TCP segments usually have.
    options: bool,
}

const MODES: [Mode; 8] = [
    Mode { name: "dsr-l2", mode: mode::DSR, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "dsr-ipip", mode: mode::DSR, encap: encap::IPV4, v6: false, udp: false, options: false },
    Mode { name: "dsr-ipip UDP", mode: mode::DSR, encap: encap::IPV4, v6: false, udp: true, options: false },
    Mode { name: "dsr-ipip IPv6", mode: mode::DSR, encap: encap::IPV6, v6: true, udp: false, options: false },
    Mode { name: "dsr-gue", mode: mode::DSR, encap: encap::GUE_IPV4, v6: false, udp: false, options: false },
    Mode { name: "dnat", mode: mode::DNAT, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "nat", mode: mode::NAT, encap: encap::NONE, v6: false, udp: false, options: false },
    Mode { name: "nat timestamps", mode: mode::NAT, encap: encap::NONE, v6: false, udp: false, options: true },
];

/// As Linux sends them: segment size, SACK permitted, timestamps and window scale with a SYN, then timestamps alone.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 5, 5, 6, 7, 8];

/// As the generator has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    flows: u32,
    next: u32,
    length: u32,
    address_at: u32,
    port_at: u32,
    address: u32,
    random: u32,
    ip_checksum_at: u32,
    checksum_at: u32,
    ip_sum: u32,
    sum: u32,
    template: [u8; TEMPLATE],
}

// SAFETY: only numbers, without padding.
unsafe impl Pod for Config {}

pub fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

/// Keeps this thread on the last processor: interrupts tend to go to the first one.
fn stay() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(std::thread::available_parallelism()?.get() - 1)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpu)?)
}

fn run(arguments: &Arguments) -> Result<bool> {
    stay()?;
    let mut figures = Vec::new();
    if arguments.only != Some(Table::Watching) {
        println!(
            "net cost per packet in ns, and as a ratio to generator and null program alone; medians of {} rounds\n",
            arguments.rounds
        );
        println!(
            "{:<16} {:<12} {:>9} {:>9} {:>8} {:>7}  bar",
            "mode", "packets", "flows", "null ns", "net ns", "ratio"
        );
    }
    let mut lines = [Vec::new(), Vec::new()];
    let modes = MODES.iter().filter(|mode| mode.name.contains(&arguments.filter));
    for mode in modes.filter(|_| arguments.only != Some(Table::Watching)) {
        let mut bench = Bench::new(*mode)?;
        for (kind, lines) in [Kind::Established, Kind::New].into_iter().zip(&mut lines) {
            let mut line = Line { name: mode.name.to_owned(), points: Vec::new() };
            for flows in FLOWS {
                let [null, net, ratio, to_lru] = bench.measure(kind, flows, arguments)?;
                let (null, net_ns) = (median(&null), median(&net));
                line.points.push((f64::from(flows), net_ns));
                let name = format!("{}, {}, {flows} flows", mode.name, kind.label());
                let ratio = Figure::new(format!("{name}: net / null"), "", ratio);
                let mut figure = Figure::new(format!("{name}: net"), "ns", net);
                if let Some(bar) = bar(mode.name, kind, flows) {
                    figure = figure.with_bar(Bar::AtMost((bar * REFERENCE_NULL).round()));
                }
                println!(
                    "{:<16} {:<12} {:>9} {:>9.1} {:>8.1} {:>7.2}  {}",
                    mode.name,
                    kind.label(),
                    flows,
                    null,
                    net_ns,
                    ratio.value,
                    figure.bar_text()
                );
                figures.push(figure);
                figures.push(ratio);
                if !to_lru.is_empty() {
                    let figure = Figure::new(format!("{name}: net / net of a plain LRU balancer"), "", to_lru);
                    println!(
                        "{:<16} {:<12} {:>9} {:>28.2}  of a plain balancer with the kernel's LRU map",
                        "", "", "", figure.value
                    );
                    figures.push(figure);
                }
            }
            lines.push(line);
        }
    }
    if arguments.only != Some(Table::Packets) {
        watching(arguments, &mut figures)?;
    }
    let cost = |name: &str| {
        let name = format!("{name}, established, 1 flows: net");
        figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    };
    if let (Some(l2), Some(ipip)) = (cost("dsr-l2"), cost("dsr-ipip")) {
        figures.push(
            Figure::new("dsr-l2 / dsr-ipip, established, 1 flow", "", vec![l2 / ipip]).with_bar(Bar::AtMost(1.0)),
        );
    }
    let memory = f64::from(SIZES.buckets()) * size_of::<Bucket>() as f64 / f64::from(1 << 20);
    figures.push(Figure::new("affinity table for 1,000,000 flows", "MiB", vec![memory]).with_bar(Bar::AtMost(16.0)));
    println!("\naffinity table for 1,000,000 flows: {memory} MiB (bar: <= 16)");
    if let Some(path) = &arguments.json {
        report::write_json(path, &figures)?;
    }
    if let Some(path) = &arguments.svg {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        for (kind, lines) in [Kind::Established, Kind::New].into_iter().zip(&lines) {
            let title = format!("Cost of a packet, {} flows", kind.label());
            let file = path.with_file_name(format!("{stem}-{}.svg", kind.label()));
            plot::lines(&file, &title, "flows in the table", "net ns per packet", lines)?;
        }
    }
    Ok(report::verdict(&figures))
}

/// Net ns of packets of established flows in a mode, while nothing waits and while something does and clients are challenged.
/// On a thread of its own, which stays on one processor.
pub fn while_waiting(name: &str, flows: u32, rounds: usize) -> Result<[Vec<f64>; 2]> {
    let measure = || -> Result<[Vec<f64>; 2]> {
        stay()?;
        let mode = MODES.iter().find(|mode| mode.name == name).with_context(|| format!("there is no mode {name}"))?;
        let arguments = Arguments::parse_from(["packet", "--rounds", &rounds.to_string()]);
        let mut bench = Bench::new(*mode)?;
        bench.prime(flows)?;
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (costs, until) in costs.iter_mut().zip([0, u64::MAX]) {
                // Leases, and whether clients are challenged.
                for word in &bench.world.kernel().maps.service_state.value(usize::from(bench.service))[2..5] {
                    word.store(until, Ordering::SeqCst);
                }
                let run = bench.packets(Kind::Established, flows, round as u32 + 1, &arguments);
                let full = bench.generate(Target::Gateway, &run)?;
                costs.push(full - bench.generate(Target::Null, &run)?);
            }
        }
        Ok(costs)
    };
    thread::scope(|scope| scope.spawn(measure).join().expect("the bench does not panic"))
}

/// The most that a packet may cost, in units of generator and null program as they were when the bars were set. These cost
/// less here, by as much as the generator does less, so the unit and not the ratio is what is comparable.
const REFERENCE_NULL: f64 = 77.0;

fn watching(arguments: &Arguments, figures: &mut Vec<Figure>) -> Result<()> {
    println!("\nnet ns per packet with no flow watched, one in sixteen, and all");
    println!(
        "{:<16} {:<12} {:>9} {:>8} {:>8} {:>8} {:>7}  bar",
        "mode", "packets", "flows", "none", "1/16", "all", "ratio"
    );
    for mode in MODES.iter().filter(|mode| mode.name.contains(&arguments.filter)) {
        passive(&mut Bench::new(*mode)?, arguments, figures)?;
    }
    figures.push(reading(arguments.rounds)?);
    Ok(())
}

/// What watching flows costs, by their share: net ns with none, one in sixteen and all of them watched.
fn passive(bench: &mut Bench, arguments: &Arguments, figures: &mut Vec<Figure>) -> Result<()> {
    for kind in [Kind::Established, Kind::Data, Kind::New] {
        if kind == Kind::Data && !bench.has_room_for_data() {
            continue;
        }
        for flows in [FLOWS[0], FLOWS[FLOWS.len() - 1]] {
            let [off, usual, every] = bench.measure_passive(kind, flows, arguments)?;
            let name = format!("{}, {}, {flows} flows", bench.mode.name, kind.label());
            let ratio = usual.iter().zip(&off).map(|(usual, off)| usual / off).collect();
            let ratio = Figure::new(format!("{name}: 1/16 watched / none"), "", ratio).with_bar(Bar::AtMost(1.1));
            println!(
                "{:<16} {:<12} {:>9} {:>8.1} {:>8.1} {:>8.1} {:>7.2}  {}",
                bench.mode.name,
                kind.label(),
                flows,
                median(&off),
                median(&usual),
                median(&every),
                ratio.value,
                ratio.bar_text()
            );
            for (share, rounds) in [("none", off), ("1/16", usual), ("all", every)] {
                figures.push(Figure::new(format!("{name}: net, {share} watched"), "ns", rounds));
            }
            figures.push(ratio);
        }
    }
    Ok(())
}

/// What the controller takes to read the signals of a thousand servers, of each of which there is something new.
fn reading(rounds: usize) -> Result<Figure> {
    const SERVERS: u16 = 1_000;
    let world = World::with_sizes(SIZES)?;
    let maps = &world.kernel().maps;
    let source = |backend: u16| Source { server: (1, backend.into()), backend, channel: 0 };
    let sources: Vec<Source> = (1..=SERVERS).map(source).collect();
    let mut tracker = Tracker::default();
    tracker.read(maps, &sources);
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) * 10 {
        for source in &sources {
            let words = maps.signals.value(index(source.backend, source.channel) as usize);
            for word in words {
                word.fetch_add(1, Ordering::Relaxed);
            }
        }
        let begun = Instant::now();
        let news = tracker.read(maps, &sources);
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        if news.len() != usize::from(SERVERS) {
            bail!("{} of {SERVERS} servers had news", news.len());
        }
    }
    let figure = Figure::new("reading the signals of 1,000 servers", "us", times).with_bar(Bar::AtMost(1_000.0));
    println!("\nreading the signals of 1,000 servers: {:.0} us ({})", figure.value, figure.bar_text());
    Ok(figure)
}

fn bar(mode: &str, kind: Kind, flows: u32) -> Option<f64> {
    match (mode, kind, flows) {
        ("dsr-ipip", Kind::Established, 1) => Some(1.2),
        ("dsr-ipip", Kind::Established, 1_000_000) => Some(3.0),
        ("nat", Kind::Established, 1) => Some(2.2),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Packets of flows that are in the table.
    Established,
    /// The same with a little payload, always the same, which a watched flow takes for sent again: the most that there is
    /// to count.
    Data,
    /// First packets of ever new flows, beside those in the table.
    New,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Data => "data",
            Self::New => "new",
        }
    }
}

struct Bench {
    world: World,
    generator: Ebpf,
    service: u16,
    mode: Mode,
}

impl Bench {
    fn new(mode: Mode) -> Result<Self> {
        if GENERATOR.is_empty() {
            bail!("this was built without the generator; run it with `cargo xtask bench packet`");
        }
        let mut world = World::with_sizes(SIZES)?;
        let servers: Vec<Server> = (0..SERVERS)
            .map(|number| {
                let address = if mode.v6 { format!("fd00::1:{number:x}") } else { format!("10.0.1.{number}") };
                Server::at(&address).with(|server| server.encap = mode.encap)
            })
            .collect();
        let vip = if mode.v6 { "2001:db8::10" } else { "192.0.2.10" };
        let number = if mode.udp { protocol::UDP } else { protocol::TCP };
        let (service, _) = world.service(mode.mode, 0, &[(vip, 80, number)], &servers)?;
        // All ports that there are: a million flows go to a hundred servers.
        world.change_service(service, |service| (service.nat_port_first, service.nat_port_last) = (1_024, 65_535))?;
        let mut generator = EbpfLoader::new().load(GENERATOR)?;
        for name in ["null", "lru", "generator"] {
            program(&mut generator, name)?.load()?;
        }
        let map = generator.map_mut("OUTER").context("the generator has outer headers")?;
        let mut outer: Array<_, [u32; 5]> = Array::try_from(map)?;
        for backend in 0..outer.len() {
            let words: [[u8; 4]; 5] = [[0x45, 0, 0, 0], [0, 0, 0x40, 0], [64, 4, 0, 0], [10, 0, 0, 1], [10, 0, 1, 9]];
            outer.set(backend, words.map(u32::from_ne_bytes), 0)?;
        }
        world.watch(service, mask_of(USUAL_FLOWS_PER_SAMPLE))?;
        Ok(Self { world, generator, service, mode })
    }

    /// Costs of rounds: null program, net, net / null, and net / net of the reference, where there is one.
    fn measure(&mut self, kind: Kind, flows: u32, arguments: &Arguments) -> Result<[Vec<f64>; 4]> {
        self.prime(flows)?;
        let mut costs = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for round in 0..arguments.rounds {
            let run = self.packets(kind, flows, round as u32 + 1, arguments);
            let before = self.forwarded()?;
            let full = self.generate(Target::Gateway, &run)?;
            let forwarded = self.forwarded()? - before;
            if forwarded < u64::from(run.packets) * 99 / 100 {
                bail!("{}: only {forwarded} of {} packets were forwarded", self.mode.name, run.packets);
            }
            let null = self.generate(Target::Null, &run)?;
            if self.has_reference() {
                let lru = self.generate(Target::Lru, &run)?;
                costs[3].push((full - null) / (lru - null));
            }
            costs[0].push(null);
            costs[1].push(full - null);
            costs[2].push((full - null) / null);
        }
        Ok(costs)
    }

    /// Opens flows.
    fn prime(&mut self, flows: u32) -> Result<()> {
        self.forget()?;
        // Each flow once as new, once more as established.
        for flags in [tcp_flag::SYN, tcp_flag::ACK] {
            let run = Run { order: Order::Sequence, flags, address: 0x0b00_0000, flows, packets: flows, payload: 0 };
            self.generate(Target::Gateway, &run)?;
            if self.has_reference() {
                self.generate(Target::Lru, &run)?;
            }
        }
        Ok(())
    }

    /// Net costs of rounds with no flow watched, one in sixteen, and all.
    fn measure_passive(&mut self, kind: Kind, flows: u32, arguments: &Arguments) -> Result<[Vec<f64>; 3]> {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        let mut runs = 1;
        for round in 0..arguments.rounds {
            let mut nets = [0.0; 3];
            for (net, flows_per_sample) in nets.iter_mut().zip([0, 16, 1]) {
                self.world.watch(self.service, mask_of(flows_per_sample))?;
                // Flows of `nat` are chosen when they begin.
                if self.mode.mode == mode::NAT || round == 0 {
                    self.prime(flows)?;
                }
                let run = self.packets(kind, flows, runs, arguments);
                runs += 1;
                let full = self.generate(Target::Gateway, &run)?;
                *net = full - self.generate(Target::Null, &run)?;
            }
            if flows == 1 && kind != Kind::New {
                // The one flow is watched or it is not; of many, one in sixteen is.
                nets[1] = nets[0] + (nets[2] - nets[0]) / 16.0;
            }
            costs.iter_mut().zip(nets).for_each(|(costs, net)| costs.push(net));
        }
        self.world.watch(self.service, mask_of(USUAL_FLOWS_PER_SAMPLE))?;
        Ok(costs)
    }

    fn has_room_for_data(&self) -> bool {
        !self.mode.v6 && !self.mode.udp && !self.mode.options
    }

    /// The reference program encapsulates IPv4 in IPv4.
    fn has_reference(&self) -> bool {
        self.mode.name == "dsr-ipip"
    }

    fn forget(&self) -> Result<()> {
        let maps = &self.world.kernel().maps;
        for word in maps.affinity.words().iter().chain(maps.active.words()) {
            word.store(0, Ordering::Relaxed);
        }
        if self.mode.mode == mode::NAT {
            let mut keys = Vec::new();
            maps.conntrack4.for_each(|key, _| keys.push(*key))?;
            keys.iter().try_for_each(|key| maps.conntrack4.remove(key).map(drop))?;
        }
        Ok(())
    }

    fn forwarded(&self) -> Result<u64> {
        let stats = loadbalancer::dataplane::stats::read(&self.world.kernel().maps)?;
        Ok(stats.services[&self.service].outcomes[Outcome::Forwarded as usize])
    }

    /// The packets of a round; numbers of rounds are from 1 on and differ for what is to be new each time.
    fn packets(&self, kind: Kind, flows: u32, round: u32, arguments: &Arguments) -> Run {
        match kind {
            Kind::Established | Kind::Data => Run {
                order: Order::Random,
                flags: tcp_flag::ACK,
                address: 0x0b00_0000,
                flows,
                packets: arguments.packets,
                payload: if kind == Kind::Data { PAYLOAD } else { 0 },
            },
            // Never the same twice; few enough that those in the table are not pushed out.
            Kind::New => {
                let packets = arguments.packets.min(100_000);
                Run {
                    order: Order::Sequence,
                    flags: tcp_flag::SYN,
                    address: 0x0c00_0000 + (round << 16),
                    flows: packets,
                    packets,
                    payload: 0,
                }
            }
        }
    }

    /// Mean time of a packet in ns.
    fn generate(&mut self, target: Target, run: &Run) -> Result<f64> {
        let fd = match target {
            Target::Gateway => fd(self.world.kernel_mut().program()?)?,
            Target::Null => fd(program(&mut self.generator, "null")?)?,
            Target::Lru => fd(program(&mut self.generator, "lru")?)?,
        };
        let map = self.generator.map_mut("TARGET").context("the generator has a program array")?;
        ProgramArray::try_from(map)?.set(0, &fd, 0)?;
        let frame = self.frame(run.flags, run.payload);
        let mut template = [0; TEMPLATE];
        template[..frame.len()].copy_from_slice(&frame);
        let (address_at, port_at) = if self.mode.v6 { (14 + 8 + 12, 54) } else { (14 + 12, 34) };
        let checksum_at = port_at + if self.mode.udp { 6 } else { 16 };
        let ip_checksum_at = if self.mode.v6 { 0 } else { 14 + 10 };
        let word = |at: u32| u16::from_ne_bytes([frame[at as usize], frame[at as usize + 1]]);
        // What a checksum sums, less what the generator fills in.
        let without = |checksum: u16, parts: &[u16]| -> u32 {
            let sum = u64::from(!checksum) + parts.iter().map(|part| u64::from(!part)).sum::<u64>();
            u32::from(fold(sum))
        };
        let addresses = [word(address_at), word(address_at + 2)];
        let config = Config {
            flows: run.flows,
            next: 0,
            length: frame.len() as u32,
            address_at,
            port_at,
            address: run.address,
            random: u32::from(run.order == Order::Random),
            ip_checksum_at,
            checksum_at,
            ip_sum: if self.mode.v6 { 0 } else { without(word(ip_checksum_at), &addresses) },
            sum: without(word(checksum_at), &[addresses[0], addresses[1], word(port_at)]),
            template,
        };
        let map = self.generator.map_mut("CONFIG").context("the generator has a configuration")?;
        Array::try_from(map)?.set(0, config, 0)?;
        let options = TestRunOptions { data_in: Some(&frame), repeat: run.packets, ..TestRunOptions::default() };
        let result = program(&mut self.generator, "generator")?.test_run(options)?;
        if result.return_value == 0 {
            bail!("{}: the generator or the program under test aborted", self.mode.name);
        }
        Ok(result.duration.as_nanos() as f64)
    }

    fn frame(&self, flags: u8, payload: usize) -> Vec<u8> {
        let (client, vip) = if self.mode.v6 { ("2001:db8:1::7", "2001:db8::10") } else { ("11.0.0.0", "192.0.2.10") };
        if self.mode.udp {
            // As long as a TCP header.
            Frame::udp(client, 1_024, vip, 80).with(|frame| frame.payload = vec![0; 12]).bytes()
        } else {
            Frame::tcp(client, 1_024, vip, 80, flags)
                .with(|frame| {
                    frame.payload = vec![0; payload];
                    if let Transport::Tcp { options, .. } = &mut frame.transport
                        && self.mode.options
                    {
                        *options = if flags == tcp_flag::SYN { SYN_OPTIONS.to_vec() } else { OPTIONS.to_vec() };
                    }
                })
                .bytes()
        }
    }
}

/// Packets that are generated.
struct Run {
    order: Order,
    flags: u8,
    /// Of the first flow's client.
    address: u32,
    flows: u32,
    packets: u32,
    /// Bytes behind the transport header.
    payload: usize,
}

#[derive(Clone, Copy)]
enum Target {
    Null,
    Gateway,
    /// The least that a balancer with the kernel's LRU hash map does.
    Lru,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Sequence,
    Random,
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the generator has a program {name}"))?.try_into()?)
}

fn fd(program: &Xdp) -> Result<ProgramFd> {
    Ok(program.fd()?.try_clone()?)
}
