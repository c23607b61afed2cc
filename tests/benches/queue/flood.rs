//! Five million forged first packets while honest clients wait for their turn.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::report::median;
use loadbalancer_tests::traffic::forge::{self, Target};
use loadbalancer_tests::traffic::load::LoadReport;

use super::many::resident;
use super::overload;
use crate::packet;
use crate::plot::{self, Line, Panel};
use crate::qos::world::{self, Site, World, behaviour, vip};
use crate::scenario::{Round, Value};

const FORGED: u64 = 5_000_000;
const SOURCES: u32 = 1_000_000;
const MEAN: Duration = Duration::from_millis(40);
/// As many as a server has workers: every second client or so has to wait.
const MARK: u32 = 4;
const UTILISATION: f64 = 0.75;
/// Of honest clients, before the flood and after its longest.
const BEFORE: Duration = Duration::from_secs(3);
const TIME: Duration = Duration::from_secs(60);
/// Of the packet's cost, of which the median is taken: one alone strays by some percent.
const ROUNDS: usize = 15;

pub fn round(round: Round) -> Result<Vec<Value>> {
    let mut values = flood(round)?;
    for mode in ["dsr-ipip", "nat"] {
        let [quiet, waiting] = packet::while_waiting(mode, 100_000, ROUNDS)?;
        let ratios: Vec<f64> = waiting.iter().zip(&quiet).map(|(waiting, quiet)| waiting / quiet).collect();
        let name = format!("flood: packet of an established flow, {mode}, challenged / quiet");
        values.push(Value::new(name, "", median(&ratios)).at_most(1.05));
    }
    Ok(values)
}

fn flood(round: Round) -> Result<Vec<Value>> {
    let site = Site::up(&LabConfig { clients: 2, ..LabConfig::default() }, behaviour(MEAN))?;
    let hosts: Vec<(&Host, String)> =
        site.lab.servers.iter().map(|host| (host, format!("high_water = {MARK}"))).collect();
    let keys = "quality = { weights = \"configured\" }\n[service.queue]\ndeadline = \"9s\"\n";
    let text = world::service("web", "nat", vip(1), keys, &hosts)?;
    let world = World::up(site, &format!("[queue]\nmemory = \"16MiB\"\n{text}"))?;
    world.wait_ready()?;
    let process = world.gateway.process().context("the gateway runs")?;
    let before = resident(process)?;
    let forger = &world.site.lab.clients[1];
    let target = Target {
        macs: [forge::mac_of(&forger.far)?, forge::mac_of(&forger.near)?],
        vip: loadbalancer_tests::lab::vip4(1),
        port: 80,
        first_source: "100.64.0.0".parse()?,
        sources: SOURCES,
    };
    let stop = AtomicBool::new(false);
    let waiting = Mutex::new(vec![(0.0, 0.0)]);
    let (most, limit, most_resident) = (AtomicU64::new(0), AtomicU64::new(1), AtomicU64::new(before));
    let honest = world.site.lab.clients[0].namespace();
    let load = overload::clients(honest, UTILISATION * world.site.capacity(), round.seed, TIME)?;
    let took = thread::scope(|scope| -> Result<_> {
        thread::sleep(BEFORE);
        let flood = scope.spawn(|| -> Result<Duration> {
            let begun = Instant::now();
            forger.namespace().run(|| forge::send(&forger.near.device, &target, FORGED))??;
            stop.store(true, Ordering::Relaxed);
            Ok(begun.elapsed())
        });
        while !stop.load(Ordering::Relaxed) && !flood.is_finished() {
            let report = world.queue()?;
            let waits: u64 = report.services.iter().map(|it| it.waiting).sum();
            waiting.lock().expect("nobody panics").push((load.elapsed().as_secs_f64(), waits as f64));
            most.fetch_max(report.memory, Ordering::Relaxed);
            limit.store(report.memory_limit, Ordering::Relaxed);
            most_resident.fetch_max(resident(process)?, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(50));
        }
        flood.join().expect("the thread of the flood does not panic")
    })?;
    let report = load.wait();
    if round.explain {
        eprintln!("{}\n{}", world.gateway.ask(&["queue"]), world.gateway.ask(&["stats"]));
    }
    if let Some(directory) = round.plots {
        draw(directory, &report, waiting.into_inner().expect("nobody panics"))?;
    }
    eprintln!("  {} honest requests, {:?}; {FORGED} forged packets in {took:?}", report.ok, report.errors);
    let p99 = report.latency_us.value_at_quantile(0.99) as f64 / 1e6;
    Ok(vec![
        Value::new("flood: honest clients that are not served", "", report.failed() as f64).at_most(0.0),
        Value::new("flood: p99 of honest clients", "s", p99),
        Value::new("flood: forged packets", "/s", FORGED as f64 / took.as_secs_f64()),
        Value::new(
            "flood: memory of what waits / its bound",
            "",
            most.load(Ordering::Relaxed) as f64 / limit.load(Ordering::Relaxed) as f64,
        )
        .at_most(1.0),
        Value::new(
            "flood: growth of the controller's memory",
            "MiB",
            (most_resident.load(Ordering::Relaxed) - before) as f64 / f64::from(1 << 20),
        ),
    ])
}

/// Honest clients and what waits, second by second.
fn draw(directory: &Path, report: &LoadReport, waiting: Vec<(f64, f64)>) -> Result<()> {
    let at = |share: f64| {
        let seconds = report.seconds.len();
        let of = |second: usize| report.between(second, second + 1).latency(share).unwrap_or_default();
        (0..seconds).map(|second| (second as f64, of(second).as_secs_f64())).collect()
    };
    let line = |name: &str, points| Line { name: name.to_owned(), points };
    let panels = [
        Panel {
            y_title: "honest clients, s",
            lines: vec![line("p50", at(0.5)), line("p99", at(0.99))],
            logarithmic: false,
        },
        Panel { y_title: "connections", lines: vec![line("waiting SYNs", waiting)], logarithmic: false },
    ];
    plot::panels(&directory.join("queue-flood.svg"), "5,000,000 forged SYNs from second 3 on", "seconds", &panels)
}
