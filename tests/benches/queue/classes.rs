//! Five classes of clients that want more than there is.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use loadbalancer::api::types::QueueReport;
use loadbalancer::api::types::queue::ClassQueue;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::load::RunningLoad;

use super::overload;
use crate::qos::world::{self, Site, World, behaviour, vip};
use crate::scenario::{Round, Value};

const CLASSES: usize = 5;
const WEIGHTS: [f64; CLASSES] = [16.0, 8.0, 4.0, 2.0, 1.0];
const MEAN: Duration = Duration::from_millis(20);
const MARK: u32 = 8;
/// Until all classes wait, or those that have to.
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(20);

/// Each class wants more than its share: what each gets.
pub fn shares(round: Round) -> Result<Vec<Value>> {
    let [before, after] = drive(round, 3.0)?;
    let released = |number: usize| -> Result<f64> {
        Ok((released(class(&after, number)?) - released(class(&before, number)?)) as f64)
    };
    let released: Vec<f64> = (0..CLASSES).map(released).collect::<Result<_>>()?;
    let all: f64 = released.iter().sum();
    let sum: f64 = WEIGHTS.iter().sum();
    eprintln!("  released {released:?}");
    let off = released.iter().zip(WEIGHTS).map(|(got, weight)| ((got / all) / (weight / sum) - 1.0).abs() * 100.0);
    Ok(vec![
        Value::new("classes: share off its weight, at most", "%", off.fold(0.0, f64::max)).at_most(5.0),
        Value::new("classes: released of the lowest", "", released[CLASSES - 1]).at_least(1.0),
    ])
}

/// All classes want as much, and together twice what there is, so that the first has all that it wants.
pub fn waits(round: Round) -> Result<Vec<Value>> {
    let [_, after] = drive(round, 2.0)?;
    let wait = |number: usize| class(&after, number)?.wait_p99_s.context("something waited");
    let waits: Vec<f64> = (0..CLASSES).map(wait).collect::<Result<_>>()?;
    eprintln!("  p99 of waits {waits:?} s");
    Ok(vec![
        Value::new("classes: p99 of the first class's waits", "ms", waits[0] * 1e3),
        Value::new("classes: p99 of the last class's waits", "ms", waits[CLASSES - 1] * 1e3),
        Value::new("classes: p99 of waits, first / last", "", waits[0] / waits[CLASSES - 1]).at_most(0.1),
    ])
}

/// The reports when all is as it stays, and a while later.
fn drive(round: Round, of_capacity: f64) -> Result<[QueueReport; 2]> {
    let config = LabConfig { clients: CLASSES as u8, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(MEAN))?;
    let mut keys = "quality = { weights = \"configured\" }\n[service.queue]\ndeadline = \"9s\"\nmax_entries = 50000\n\
                    max_per_source = 50000\n"
        .to_owned();
    for (number, client) in site.lab.clients.iter().enumerate() {
        keys += &format!(
            "[[service.queue.class]]\nname = \"class{0}\"\npriority = {0}\nclients = [\"{1}/32\"]\n",
            number + 1,
            client.addresses.ipv4
        );
    }
    let hosts: Vec<(&Host, String)> =
        site.lab.servers.iter().map(|host| (host, format!("high_water = {MARK}"))).collect();
    let text = world::service("web", "nat", vip(1), &keys, &hosts)?;
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let rate = of_capacity * world.site.capacity() / CLASSES as f64;
    let time = SETTLE + WATCH + Duration::from_secs(5);
    let client = |(number, host): (usize, &Host)| {
        overload::clients(host.namespace(), rate, round.seed * 100 + number as u64, time)
    };
    let loads: Vec<RunningLoad> = world.site.lab.clients.iter().enumerate().map(client).collect::<Result<_>>()?;
    thread::sleep(SETTLE);
    let before = world.queue()?;
    thread::sleep(WATCH);
    let after = world.queue()?;
    if round.explain {
        eprintln!("{}", world.gateway.ask(&["queue"]));
    }
    drop(loads);
    Ok([before, after])
}

fn class(report: &QueueReport, number: usize) -> Result<&ClassQueue> {
    let name = format!("class{}", number + 1);
    let mut classes = report.services.iter().flat_map(|service| &service.classes);
    classes.find(|class| class.name.as_ref() == Some(&name)).with_context(|| format!("there is no {name}"))
}

fn released(class: &ClassQueue) -> u64 {
    class.ends.get("released").copied().unwrap_or(0)
}
