//! Flows keep their servers while weights change all the time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::hold::Protocol;

use super::world::{self, MEASURED, PATIENCE, Site, World, behaviour, harmed, hold, vip};
use crate::scenario::{Round, Value};

const CHANGE_EVERY: Duration = Duration::from_millis(100);
const TCP_FLOWS: usize = 200;
const UDP_FLOWS: usize = 100;

pub fn round(round: Round) -> Result<Vec<Value>> {
    let site = Site::up(&LabConfig::default(), behaviour(Duration::from_millis(1)))?;
    let text = world::service("web", "nat", vip(1), MEASURED, &world::plain(&site.lab.servers))?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let client = world.site.lab.clients[1].namespace();
    let every = Duration::from_millis(200);
    let tcp = hold(client, vip(1), Protocol::Tcp, TCP_FLOWS, every)?;
    let udp = hold(client, vip(1), Protocol::Udp, UDP_FLOWS, every)?;
    let mut random = fastrand::Rng::with_seed(round.seed);
    let rings = world.quality()?.rings;
    let begun = Instant::now();
    let mut changes: u32 = 0;
    while begun.elapsed() < round.long {
        let server = random.usize(..world.site.servers.len());
        world.set_weight(world.site.servers[server].name(), random.u16(10..=1_000))?;
        changes += 1;
        thread::sleep((CHANGE_EVERY * changes).saturating_sub(begun.elapsed()));
    }
    tcp.wait_exchanges(2, PATIENCE)?;
    udp.wait_exchanges(2, PATIENCE)?;
    let rings = world.quality()?.rings - rings;
    let what = |what: &str| format!("weights changed for {} s: {what}", round.long.as_secs());
    Ok(vec![
        Value::new(what("changes"), "", changes.into()),
        Value::new(what("rings"), "", rings as f64),
        Value::new(what("TCP flows broken or moved, of 200"), "", harmed(&tcp)).at_most(0.0),
        Value::new(what("UDP flows broken or moved, of 100"), "", harmed(&udp)).at_most(0.0),
    ])
}
