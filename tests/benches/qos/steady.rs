//! Equal servers, whose weights are to stay, and one that flaps, whose flows are to live.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::hold::Protocol;

use super::world::{self, MEASURED, Site, World, behaviour, clients, harmed, hold, plain, vip};
use crate::scenario::{Round, Value, both};

const MEAN: Duration = Duration::from_millis(40);
const UTILISATION: f64 = 0.7;
const SETTLE: Duration = Duration::from_secs(30);
const WATCH: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const FLAP_EVERY: Duration = Duration::from_secs(3);

pub fn round(round: Round) -> Result<Vec<Value>> {
    let (mut steady, flapping) = both(|| steady(round), || flapping(round))?;
    steady.extend(flapping);
    Ok(steady)
}

fn up() -> Result<World> {
    let site = Site::up(&LabConfig::default(), behaviour(MEAN))?;
    let text = world::service("web", "nat", vip(1), MEASURED, &plain(&site.lab.servers))?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    Ok(world)
}

fn steady(round: Round) -> Result<Vec<Value>> {
    let world = up()?;
    let rate = UTILISATION * world.site.capacity();
    let from = world.site.lab.clients[0].namespace();
    let load = clients(from, vip(1), rate, round.seed, SETTLE + WATCH + Duration::from_secs(5))?;
    thread::sleep(SETTLE);
    let rings = world.quality()?.rings;
    let begun = Instant::now();
    let mut off: f64 = 0.0;
    while begun.elapsed() < WATCH {
        for service in world.quality()?.services {
            let even = 1.0 / service.servers.len() as f64;
            off = service.servers.iter().fold(off, |off, it| off.max((it.published_share / even - 1.0).abs()));
        }
        thread::sleep(LOOK_EVERY);
    }
    let rings = world.quality()?.rings - rings;
    let report = load.stop();
    if rings > 1 || round.explain {
        eprintln!("  steady: {:?}\n{}", report.errors, world.gateway.ask(&["quality"]));
    }
    Ok(vec![
        Value::new("steady: most that a weight was off", "", off).at_most(0.1),
        Value::new("steady: rings in a minute", "", rings as f64).at_most(1.0),
    ])
}

fn flapping(round: Round) -> Result<Vec<Value>> {
    let world = up()?;
    // The rest can do it without the server that flaps.
    let rate = 0.5 * world.site.capacity();
    let [client, holder] = [0, 1].map(|index| world.site.lab.clients[index].namespace());
    let load = clients(client, vip(1), rate, round.seed, SETTLE + WATCH)?;
    let tcp = hold(holder, vip(1), Protocol::Tcp, 50, Duration::from_millis(200))?;
    let udp = hold(holder, vip(1), Protocol::Udp, 50, Duration::from_millis(200))?;
    let rings = world.quality()?.rings;
    let begun = Instant::now();
    let mut busiest: f64 = 0.0;
    let mut before = rings;
    for number in 0.. {
        if begun.elapsed() >= WATCH {
            break;
        }
        let server = &world.site.servers[2];
        let mut behaviour = server.behaviour();
        behaviour.speed = if number % 2 == 0 { 0.1 } else { 1.0 };
        server.set_behaviour(behaviour);
        thread::sleep(FLAP_EVERY);
        let now = world.quality()?.rings;
        busiest = busiest.max((now - before) as f64 / FLAP_EVERY.as_secs_f64());
        before = now;
    }
    let rate = (before - rings) as f64 / begun.elapsed().as_secs_f64();
    let report = load.stop();
    tcp.wait_exchanges(2, world::PATIENCE)?;
    eprintln!("  flapping: {} answers, errors {:?}", report.ok, report.errors);
    Ok(vec![
        Value::new("flapping: rings a second", "", rate).at_most(1.0),
        Value::new("flapping: rings a second in the busiest 3 s", "", busiest).at_most(1.0),
        Value::new("flapping: flows broken or moved, of 100", "", harmed(&tcp) + harmed(&udp)).at_most(0.0),
    ])
}
