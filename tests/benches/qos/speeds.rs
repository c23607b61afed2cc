//! Servers of speed 1 : 2 : 4 without weights in the configuration.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::report::reaches;
use loadbalancer_tests::traffic::behaviour::Behaviour;

use super::world::{self, Site, World, behaviour, clients, p99_ms, plain, vip};
use crate::scenario::{Round, Value, both};

/// Of a request at the slowest server.
const MEAN: Duration = Duration::from_millis(80);
const SPEEDS: [f64; 3] = [1.0, 2.0, 4.0];
const TARGET_MS: f64 = 800.0;
const UTILISATION: f64 = 0.7;
const STEPS: [f64; 4] = [0.80, 0.85, 0.90, 0.95];
/// Seconds after which shares are to be right, and of looking at them.
const SETTLE: usize = 30;
/// In 10 s the slowest server gets 340 requests, and even the right shares look 10 % off now and then.
const LOOK: usize = 30;
/// Seconds of a step, of which the first do not count.
const STEP: usize = 8;
const STEP_FROM: usize = 2;

/// Answers of the slowest server take long: the check waits longer than elsewhere.
const CHECK: &str = "check = { type = \"http\", interval = \"100ms\", timeout = \"3s\", port = 80 }\n";

pub fn round(round: Round) -> Result<Vec<Value>> {
    let (measured, perfect) = both(|| drive(true, round), || drive(false, round))?;
    Ok(vec![
        Value::new("speeds 1:2:4: most that a share is off after 30 s, perfect weights", "", perfect.off),
        Value::new("speeds 1:2:4: most that a share is off after 30 s, measured", "", measured.off).at_most(0.1),
        Value::new("speeds 1:2:4: throughput at the p99 target, perfect weights", "of capacity", perfect.throughput),
        Value::new("speeds 1:2:4: throughput at the p99 target, measured", "of capacity", measured.throughput),
        Value::new("speeds 1:2:4: measured / perfect", "", measured.throughput / perfect.throughput).at_least(0.95),
    ])
}

struct Measured {
    /// Most relative difference between share of requests and of capacity.
    off: f64,
    throughput: f64,
}

fn drive(measured: bool, round: Round) -> Result<Measured> {
    let config = LabConfig { clients: 1, servers: SPEEDS.len() as u8, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(MEAN))?;
    for (server, speed) in site.servers.iter().zip(SPEEDS) {
        let behaviour = server.behaviour();
        server.set_behaviour(Behaviour { speed, ..behaviour });
    }
    let mut hosts = plain(&site.lab.servers);
    let mut keys = CHECK.to_owned();
    if !measured {
        keys += "quality = { weights = \"configured\" }\n";
        hosts.iter_mut().zip(SPEEDS).for_each(|((_, keys), speed)| *keys = format!("weight = {}", 100.0 * speed));
    }
    let text = world::service("web", "nat", vip(1), &keys, &hosts)?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let capacity = world.site.capacity();
    let run = |utilisation: f64, seed: u64, seconds: usize| {
        let from = world.site.lab.clients[0].namespace();
        let time = Duration::from_secs(seconds as u64);
        clients(from, vip(1), utilisation * capacity, seed, time)
    };
    let settled = run(UTILISATION, round.seed, SETTLE + LOOK)?.wait().between(SETTLE, SETTLE + LOOK);
    let off = world.site.servers.iter().map(|server| {
        let right = server.behaviour().capacity() / capacity;
        (settled.share(server.name()) / right - 1.0).abs()
    });
    let off = off.fold(0.0, f64::max);
    let mut steps = Vec::new();
    // The next step begins while the last requests of the one before it are answered, as load that rises.
    let mut before = None;
    for (number, utilisation) in STEPS.into_iter().enumerate() {
        let load = run(utilisation, 100 * round.seed + number as u64, STEP)?;
        thread::sleep(Duration::from_secs(STEP as u64).saturating_sub(load.elapsed()));
        if let Some((utilisation, load)) = before.replace((utilisation, load)) {
            steps.push((utilisation, finish(load)));
        }
    }
    steps.extend(before.map(|(utilisation, load)| (utilisation, finish(load))));
    eprintln!("  speeds, {}: p99 in ms by utilisation: {steps:.2?}", if measured { "measured" } else { "perfect" });
    if round.explain {
        eprintln!("{:?}\n{}", settled.by_server, world.gateway.ask(&["quality"]));
    }
    Ok(Measured { off, throughput: reaches(&steps, TARGET_MS) })
}

fn finish(load: loadbalancer_tests::traffic::load::RunningLoad) -> f64 {
    p99_ms(&load.wait().between(STEP_FROM, STEP))
}
