//! Twice as much as the servers can do, for half a minute.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aya::programs::loaded_programs;
use loadbalancer::dataplane::attached_program::attached_program;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::GatewayLink;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::load::{Load, Pace, RunningLoad};
use loadbalancer_tests::traffic::span::Span;

use crate::plot::{self, Line, Panel};
use crate::qos::controller::processor_time;
use crate::qos::haproxy;
use crate::qos::world::{self, Site, World, behaviour, vip};
use crate::scenario::{Round, Value, all};

const MEAN: Duration = Duration::from_millis(80);
const TIME: Duration = Duration::from_secs(30);
/// From when on servers are saturated, in seconds after the begin of the load.
const FROM: usize = 5;
/// Of a client.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is measured decides nothing here, and no check takes servers down.
const FIXED: &str = "quality = { weights = \"configured\" }\n";
/// Beyond that of clients, so that none is refused before.
const DEADLINE: &str = "15s";
/// Flows at a time that keep the four workers of a server at work.
const MARK: u32 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What limits the flows that a server has at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    /// A queue, with a fixed mark for each server.
    Queue,
    /// A queue whose marks follow from latency.
    Adaptive,
    None,
    /// HAProxy's queue and its `maxconn`.
    Haproxy,
}

const LIMITS: [Limit; 4] = [Limit::Queue, Limit::Adaptive, Limit::None, Limit::Haproxy];

struct Seen {
    ok_per_second: f64,
    /// Of clients, in seconds, of all requests.
    p50: f64,
    p99: f64,
    /// From when a server takes a request to its answer.
    server_p99: f64,
    refused: u64,
    /// Most flows that a server had at a time.
    most: f64,
    /// Processor time of the balancer for a request, in microseconds.
    balancer_us: f64,
    /// Second by second.
    course: Course,
}

/// By seconds since the begin of the load.
#[derive(Default)]
struct Course {
    waiting: Vec<(f64, f64)>,
    p50_s: Vec<(f64, f64)>,
    ok: Vec<(f64, f64)>,
}

pub fn round(round: Round) -> Result<Vec<Value>> {
    let seen = all(&LIMITS, |limit| measure(*limit, round))?;
    let [queue, adaptive, none, haproxy] = &seen[..] else {
        return Err(anyhow!("{} limits were measured", seen.len()));
    };
    if let Some(directory) = round.plots {
        draw(directory, [queue, adaptive, none, haproxy])?;
    }
    let capacity = 4.0 * behaviour(MEAN).capacity();
    let cpus = thread::available_parallelism()?.get() as f64;
    Ok(vec![
        Value::new("overload: flows at a server above its mark", "", queue.most - f64::from(MARK)).at_most(cpus),
        Value::new("overload: clients refused before their deadline", "", queue.refused as f64).at_most(0.0),
        Value::new("overload: goodput / capacity", "", queue.ok_per_second / capacity).at_least(0.97),
        Value::new("overload: goodput with adaptive marks / capacity", "", adaptive.ok_per_second / capacity)
            .at_least(0.95),
        Value::new("overload: goodput without a limit / capacity", "", none.ok_per_second / capacity),
        Value::new("overload: goodput of HAProxy / capacity", "", haproxy.ok_per_second / capacity),
        Value::new("overload: p99 at the server, queue / no limit", "", queue.server_p99 / none.server_p99)
            .at_most(0.5),
        Value::new("overload: p99 at the server, adaptive / no limit", "", adaptive.server_p99 / none.server_p99)
            .at_most(0.5),
        Value::new("overload: flows at a server at most, adaptive", "", adaptive.most),
        Value::new("overload: clients refused before their deadline, adaptive", "", adaptive.refused as f64)
            .at_most(0.0),
        Value::new("overload: p50 of clients", "s", queue.p50),
        Value::new("overload: p50 of clients, adaptive", "s", adaptive.p50),
        Value::new("overload: p50 of clients, no limit", "s", none.p50),
        Value::new("overload: p50 of clients, HAProxy", "s", haproxy.p50),
        Value::new("overload: p99 of clients", "s", queue.p99),
        Value::new("overload: p99 of clients, HAProxy", "s", haproxy.p99),
        Value::new("overload: p99 of clients / HAProxy", "", queue.p99 / haproxy.p99).at_most(1.0),
        Value::new("overload: balancer's time for a request", "us", queue.balancer_us),
        Value::new("overload: balancer's time for a request, HAProxy", "us", haproxy.balancer_us),
        Value::new("overload: balancer's time / HAProxy", "", queue.balancer_us / haproxy.balancer_us).at_most(0.5),
    ])
}

fn measure(limit: Limit, round: Round) -> Result<Seen> {
    let site = Site::up(&LabConfig { clients: 1, ..LabConfig::default() }, behaviour(MEAN))?;
    if limit == Limit::Haproxy {
        let defaults = "timeout connect 5s\n timeout queue 15s";
        let process = haproxy::up_with(&site, "leastconn", &format!("maxconn {MARK}"), defaults)?;
        let before = processor_time(process.id())?;
        let mut seen = drive(&site, round, || Ok(None))?;
        let used = processor_time(process.id())?.saturating_sub(before);
        seen.balancer_us = used.as_secs_f64() * 1e6 / (seen.ok_per_second * TIME.as_secs_f64());
        return Ok(seen);
    }
    let queue = format!("{FIXED}[service.queue]\ndeadline = \"{DEADLINE}\"\nmax_per_source = 10000\n");
    let (service, server) = match limit {
        Limit::Queue => (queue, format!("high_water = {MARK}")),
        Limit::Adaptive => (format!("{queue}marks = \"adaptive\"\n"), String::new()),
        Limit::None | Limit::Haproxy => (FIXED.to_owned(), String::new()),
    };
    let hosts: Vec<(&Host, String)> = site.lab.servers.iter().map(|host| (host, server.clone())).collect();
    let text = world::service("web", "nat", vip(1), &service, &hosts)?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let process = world.gateway.process().context("the gateway runs")?;
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let before = processor_time(process)? + packet_path_time(&world.site)?;
    let waiting = || {
        let report = if limit == Limit::None { None } else { Some(world.queue()?) };
        Ok(report.map(|report| report.services.iter().map(|it| it.waiting).sum()))
    };
    let mut seen = drive(&world.site, round, waiting)?;
    let used = (processor_time(process)? + packet_path_time(&world.site)?).saturating_sub(before);
    seen.balancer_us = used.as_secs_f64() * 1e6 / (seen.ok_per_second * TIME.as_secs_f64());
    if round.explain {
        let reports = [["queue"], ["stats"], ["quality"]].map(|what| world.gateway.ask(&what));
        eprintln!("{limit:?}\n{}", reports.join("\n"));
    }
    Ok(seen)
}

/// Time that the programs on the gateway's interfaces have taken, with what they continue with.
fn packet_path_time(site: &Site) -> Result<Duration> {
    let gateway = &site.lab.gateway;
    let ids: BTreeSet<u32> = gateway.namespace.run(|| -> Result<_> {
        let of_link = |link: &GatewayLink| {
            let told = attached_program(&link.device)?.context("the interface has a program")?;
            let id = told.split_once("(id ").and_then(|(_, rest)| rest.split_once(')')).map(|(id, _)| id);
            Ok(id.context("a program has a number")?.parse()?)
        };
        gateway.links.iter().map(of_link).collect()
    })??;
    Ok(loaded_programs().flatten().filter(|program| ids.contains(&program.id())).map(|it| it.run_time()).sum())
}

/// Clients that come at random times, each with a connection and a request.
pub fn clients(from: &Namespace, per_second: f64, seed: u64, time: Duration) -> Result<RunningLoad> {
    let mut load = Load::new((vip(1), 80).into());
    load.query.close = true;
    load.pace = Pace::Poisson { per_second, max_in_flight: 50_000, seed };
    load.timeout = TIMEOUT;
    load.max_time = time;
    Ok(load.start(from)?)
}

fn drive(site: &Site, round: Round, waiting: impl Fn() -> Result<Option<u64>>) -> Result<Seen> {
    let stop = AtomicBool::new(false);
    let most = AtomicU64::new(0);
    let report = thread::scope(|scope| -> Result<_> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for server in &site.servers {
                    most.fetch_max(server.counts().in_flight, Ordering::Relaxed);
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        let load = clients(site.lab.clients[0].namespace(), 2.0 * site.capacity(), round.seed, TIME);
        let report = load.and_then(|load| {
            let mut course = Course::default();
            let mut counts = vec![0];
            for second in 1..=TIME.as_secs() {
                thread::sleep(Duration::from_secs(second).saturating_sub(load.elapsed()));
                let ok = load.report().ok;
                course.ok.push((second as f64, (ok - counts[counts.len() - 1]) as f64));
                counts.push(ok);
                if let Some(waiting) = waiting()? {
                    course.waiting.push((second as f64, waiting as f64));
                }
            }
            let ok = counts[counts.len() - 1] - counts[FROM];
            Ok((ok as f64 / (TIME.as_secs() as usize - FROM) as f64, course, load.wait()))
        });
        stop.store(true, Ordering::Relaxed);
        report
    })?;
    let (ok_per_second, mut course, report) = report;
    let p50 = |span: &Span| span.latency_of_all(0.5).unwrap_or(TIMEOUT).min(TIMEOUT).as_secs_f64();
    course.p50_s = (0..TIME.as_secs() as usize).map(|s| (s as f64, p50(&report.between(s, s + 1)))).collect();
    let span = report.between(FROM, TIME.as_secs() as usize);
    eprintln!("  {:?} {:?} p50 {:?}", span.by_server, span.errors, span.latency(0.5));
    let refused = ["refused", "reset", "closed"].iter().filter_map(|error| report.errors.get(error)).sum();
    Ok(Seen {
        ok_per_second,
        p50: p50(&span),
        p99: span.latency_of_all(0.99).unwrap_or(TIMEOUT).min(TIMEOUT).as_secs_f64(),
        server_p99: site.servers.iter().map(|server| server.latency(0.99).as_secs_f64()).fold(0.0, f64::max),
        refused,
        most: most.load(Ordering::Relaxed) as f64,
        balancer_us: 0.0,
        course,
    })
}

/// What happens while there is twice as much as the servers can do.
fn draw(directory: &Path, seen: [&Seen; 4]) -> Result<()> {
    let names = ["queue", "queue, adaptive marks", "no limit", "HAProxy, maxconn"];
    let lines = |read: fn(&Course) -> &Vec<(f64, f64)>| {
        let line = |(name, seen): (&str, &Seen)| Line { name: name.to_owned(), points: read(&seen.course).clone() };
        names.into_iter().zip(seen).map(line).collect()
    };
    let waiting = ["waiting SYNs", "waiting SYNs, adaptive marks"]
        .into_iter()
        .zip(seen)
        .map(|(name, seen)| Line { name: name.to_owned(), points: seen.course.waiting.clone() });
    let panel = |y_title, lines| Panel { y_title, lines, logarithmic: false };
    let panels = [
        panel("answers per second", lines(|it| &it.ok)),
        panel("p50 of clients that come, s", lines(|it| &it.p50_s)),
        panel("connections", waiting.collect()),
    ];
    plot::panels(&directory.join("queue-overload.svg"), "Twice the capacity for 30 s", "seconds", &panels)
}
