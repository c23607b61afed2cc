//! Cost of the packet path, by mode and number of flows.
//!
//! A generator in the kernel makes a frame of another flow and tail-calls the program under test; the same with a program
//! that does nothing is subtracted. All runs are on one CPU, in turn, and of each figure the median is told.

mod against;
mod driver;

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use loadbalancer::dataplane::ids::BackendNumber;
use loadbalancer::dataplane::signals::{Source, Tracker};
use loadbalancer_common::affinity::Bucket;
use loadbalancer_common::service::ServiceState;
use loadbalancer_common::signal::index;
use loadbalancer_tests::frames::world::World;
use loadbalancer_tests::report::{self, Bar, Figure, median};
use model::ids::{BackendId, ServerId, ServiceId};

use super::plot::{self, Line};
use driver::{Bench, Extent, FLOWS, Kind, MODES, SIZES, Target, stay};

/// Packets of a round, where nothing else is asked for.
const PACKETS: u32 = 1_000_000;
/// The most that reading signals may take, against a plain sum of their words.
const READING: f64 = 20.0;

/// Measures what the packet path costs per packet.
#[derive(Parser)]
pub struct Arguments {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Packets of each round
    #[arg(long, default_value_t = PACKETS)]
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
    /// Compare with the packet path of another build: its file `loadbalancer-ebpf`
    #[arg(long, value_name = "OBJECT", conflicts_with_all = ["only", "svg"])]
    against: Option<PathBuf>,
    /// Draw plots: FILE with `-established` and `-new` before its end
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Arguments {
    fn extent(&self) -> Extent {
        Extent { rounds: self.rounds, packets: self.packets }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// What a packet costs
    Packets,
    /// What watching flows costs
    Watching,
}

pub fn run(arguments: &Arguments) -> Result<bool> {
    stay()?;
    if let Some(object) = &arguments.against {
        let figures = against::measure(object, &arguments.filter, arguments.extent())?;
        if let Some(path) = &arguments.json {
            report::write_json(path, &figures)?;
        }
        return Ok(report::verdict(&figures));
    }
    let mut figures = Vec::new();
    let mut lines = [Vec::new(), Vec::new()];
    if arguments.only != Some(Table::Watching) {
        lines = packets(arguments, &mut figures)?;
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

/// What a packet costs. Gives the lines of both plots.
fn packets(arguments: &Arguments, figures: &mut Vec<Figure>) -> Result<[Vec<Line>; 2]> {
    println!(
        "net cost per packet in ns, and as a ratio to generator and null program alone and to a plain balancer with the \
         kernel's LRU map; medians of {} rounds\n",
        arguments.rounds
    );
    println!(
        "{:<16} {:<12} {:>9} {:>9} {:>8} {:>7} {:>7}  bar",
        "mode", "packets", "flows", "null ns", "net ns", "/ null", "/ plain"
    );
    let mut lines = [Vec::new(), Vec::new()];
    for mode in MODES.iter().filter(|mode| mode.name.contains(&arguments.filter)) {
        let mut bench = Bench::new(*mode)?;
        for (kind, lines) in [Kind::Established, Kind::New].into_iter().zip(&mut lines) {
            let mut line = Line { name: mode.name.to_owned(), points: Vec::new() };
            for flows in FLOWS {
                let costs = bench.measure(kind, flows, arguments.extent())?;
                let (null, net) = (median(&costs.null), median(&costs.net));
                line.points.push((f64::from(flows), net));
                let name = format!("{}, {}, {flows} flows", mode.name, kind.label());
                let to_null = Figure::new(format!("{name}: net / null"), "", costs.to_null);
                let to_plain = (!costs.to_plain.is_empty()).then(|| {
                    let figure = Figure::new(format!("{name}: net / net of a plain balancer"), "", costs.to_plain);
                    Figure { bar: bar(mode.name, kind, flows).map(Bar::AtMost), ..figure }
                });
                let (ratio, bar) =
                    to_plain.as_ref().map_or_else(Default::default, |it| (format!("{:.2}", it.value), it.bar_text()));
                println!(
                    "{:<16} {:<12} {:>9} {:>9.1} {:>8.1} {:>7.2} {:>7}  {}",
                    mode.name,
                    kind.label(),
                    flows,
                    null,
                    net,
                    to_null.value,
                    ratio,
                    bar
                );
                figures.extend([Figure::new(format!("{name}: net"), "ns", costs.net), to_null]);
                figures.extend(to_plain);
            }
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Net ns of packets of established flows in a mode, while nothing waits and while something does and clients are challenged.
/// On a thread of its own, which stays on one processor.
pub fn while_waiting(name: &str, flows: u32, rounds: usize) -> Result<[Vec<f64>; 2]> {
    let measure = || -> Result<[Vec<f64>; 2]> {
        stay()?;
        let mode = MODES.iter().find(|mode| mode.name == name).with_context(|| format!("there is no mode {name}"))?;
        let mut bench = Bench::new(*mode)?;
        bench.prime(flows)?;
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (costs, until) in costs.iter_mut().zip([0, u64::MAX]) {
                // Leases, and whether clients are challenged.
                let state = bench.world.kernel().maps.service_state.value(usize::from(bench.service));
                for word in [ServiceState::QUEUE_UNTIL, ServiceState::WAITING_UNTIL, ServiceState::CHALLENGE] {
                    state[word].store(until, Ordering::SeqCst);
                }
                let run = bench.packets(Kind::Established, flows, round as u32 + 1, PACKETS);
                let full = bench.generate(Target::Gateway, &run)?;
                costs.push(full - bench.generate(Target::Null, &run)?);
            }
        }
        Ok(costs)
    };
    thread::scope(|scope| scope.spawn(measure).join().expect("the bench does not panic"))
}

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
            let [off, usual, every] = bench.measure_passive(kind, flows, arguments.extent())?;
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

/// What the controller takes to read the signals of a thousand servers, of each of which there is something new, against what it
/// takes to sum up the same words.
fn reading(rounds: usize) -> Result<Figure> {
    const SERVERS: u16 = 1_000;
    let world = World::with_sizes(SIZES)?;
    let maps = &world.kernel().maps;
    let server = |backend: u16| ServerId { service: ServiceId(1), backend: BackendId(backend.into()) };
    let source = |backend| Source { server: server(backend), backend: BackendNumber(backend), channel: 0 };
    let sources: Vec<Source> = (1..=SERVERS).map(source).collect();
    let words = |source: &Source| maps.signals.value(index(source.backend.0, source.channel) as usize);
    let mut tracker = Tracker::default();
    tracker.read(maps, &sources);
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) * 10 {
        for word in sources.iter().flat_map(words) {
            word.fetch_add(1, Ordering::Relaxed);
        }
        let begun = Instant::now();
        let sum = sources.iter().flat_map(words).fold(0u64, |sum, word| sum.wrapping_add(word.load(Ordering::Relaxed)));
        black_box(sum);
        let plain = begun.elapsed();
        let begun = Instant::now();
        let news = tracker.read(maps, &sources);
        let took = begun.elapsed();
        times.push(took.as_secs_f64() * 1e6);
        ratios.push(took.as_secs_f64() / plain.as_secs_f64());
        if news.len() != usize::from(SERVERS) {
            bail!("{} of {SERVERS} servers had news", news.len());
        }
    }
    let us = median(&times);
    let ratio = Figure::new("reading the signals of 1,000 servers / summing up their words", "", ratios);
    let ratio = ratio.with_bar(Bar::AtMost(READING));
    println!(
        "\nreading the signals of 1,000 servers: {us:.0} us, {:.1} x a plain sum ({})",
        ratio.value,
        ratio.bar_text()
    );
    Ok(ratio)
}

/// The most that a packet may cost, against what it costs a plain balancer. One flow is the least that there is to look up: the
/// product's checks and counters show; with a million, memory does.
fn bar(mode: &str, kind: Kind, flows: u32) -> Option<f64> {
    match (mode, kind, flows) {
        ("dsr-ipip", Kind::Established, 1) => Some(4.0),
        ("dsr-ipip", Kind::Established, 1_000_000) => Some(1.0),
        ("nat", Kind::Established, 1) => Some(5.0),
        _ => None,
    }
}
