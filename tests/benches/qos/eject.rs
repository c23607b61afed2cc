//! A server that begins to fail is left out, and comes back by slow start.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use loadbalancer_tests::lab::impair::Impairment;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::behaviour::Behaviour;

use super::world::{self, Site, World, behaviour, clients, seconds, until, vip};
use crate::scenario::{Round, Value, all};

const MEAN: Duration = Duration::from_millis(10);
const RATE: f64 = 200.0;
const LONGEST: Duration = Duration::from_secs(15);
const LONGEST_BACK: Duration = Duration::from_secs(45);
/// An answer takes longer than this only if a packet of it was lost.
const KEYS: &str = "check = { type = \"http\", interval = \"100ms\", timeout = \"150ms\", port = 80 }\n\
                    quality = { eject = { base = \"5s\" } }\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// One flow in sixteen is watched. What checks and these can tell within 3 s is a matter of luck: see `eject` in the loops.
    Loss,
    /// All flows are watched.
    LossWatched,
    Errors,
}

pub fn round(round: Round) -> Result<Vec<Value>> {
    let values = all(&[Fault::Loss, Fault::LossWatched, Fault::Errors], |fault| case(*fault, round))?;
    Ok(values.into_iter().flatten().collect())
}

fn case(fault: Fault, round: Round) -> Result<Vec<Value>> {
    // A server's own link loses, in both directions: what it gets and what it sends.
    let config = LabConfig { clients: 1, server_relays: true, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(MEAN))?;
    let passive = if fault == Fault::LossWatched { "passive = \"1/1\"\n" } else { "" };
    let keys = format!("{KEYS}{passive}");
    let text = world::service("web", "nat", vip(1), &keys, &world::plain(&site.lab.servers))?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let from = world.site.lab.clients[0].namespace();
    let load = clients(from, vip(1), RATE, round.seed, Duration::from_secs(120))?;
    thread::sleep(Duration::from_secs(5));
    let bad = &world.site.servers[1];
    let relay = world.site.lab.servers[1].relay.as_ref().context("the lab has relays on the servers' links")?;
    let name = match fault {
        Fault::Loss => "5 % loss",
        Fault::LossWatched => "5 % loss, all flows watched",
        Fault::Errors => "status 500",
    };
    match fault {
        Fault::Loss | Fault::LossWatched => relay.set(Impairment::loss(0.05)),
        Fault::Errors => bad.set_behaviour(Behaviour { error_share: 1.0, ..behaviour(MEAN) }),
    }
    let is_out = || Ok(!world.server(bad.name())?.serving);
    let out = until(LONGEST, is_out)?;
    let why = world.server(bad.name())?;
    eprintln!("  eject, {name}: out after {out:?}: ejection {:?}, up {}", why.ejection, why.up);
    if out.is_none() {
        eprintln!("{}", world.gateway.ask(&["quality"]));
    }
    relay.set(Impairment::NONE);
    bad.set_behaviour(behaviour(MEAN));
    let back = until(LONGEST_BACK, || Ok(!is_out()?))?;
    let first = world.server(bad.name())?.slow_start;
    let report = load.stop();
    eprintln!("  eject, {name}: back after {back:?}; errors {:?}", report.errors);
    Ok(vec![
        Value::new(format!("{name}: time until the server is left out"), "s", seconds(out)).at_most(3.0),
        Value::new(format!("{name}: time until it is back, `base` at 5 s"), "s", seconds(back)).at_most(30.0),
        Value::new(format!("{name}: part of its weight with which it comes back"), "", first).at_most(0.5),
    ])
}
