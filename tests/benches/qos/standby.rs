//! Standby servers come to the service that needs them, and go without breaking a flow.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use decide::standby::explain::Phase;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::server::Live;

use super::world::{self, MEASURED, PATIENCE, Site, World, behaviour, clients, harmed, hold, seconds, until, vip};
use crate::scenario::{Round, Value, both};

const MEAN: Duration = Duration::from_millis(40);
/// So many that the servers, when they are slow, still serve enough requests for the first answer of a new one, which begins
/// with a tenth of its weight, to be a matter of its start and not of chance.
const WORKERS: u32 = 16;
const RATE: f64 = 160.0;

pub fn round(round: Round) -> Result<Vec<Value>> {
    let (mut one, two) = both(|| one_service(round), two_services)?;
    one.extend(two);
    Ok(one)
}

fn pool(host: &Host, keys: &str) -> String {
    let address = host.addresses.ipv4;
    format!("[standby]\n{keys}\n[[standby.server]]\nname = {:?}\naddress = \"{address}\"\n", host.name)
}

fn wait_phase(world: &World, phase: Phase, at_most: Duration) -> Result<Option<Duration>> {
    until(at_most, || Ok(world.standby()?.servers.iter().any(|server| server.state == phase)))
}

fn one_service(round: Round) -> Result<Vec<Value>> {
    let site = Site::up(&LabConfig::default(), Behaviour::workers(WORKERS, MEAN))?;
    let (pooled, own) = site.lab.servers.split_last().expect("there are four");
    let keys = format!(
        "{MEASURED}standby = {{ p90 = \"250ms\", hold = \"500ms\", recovery_for = \"2s\", settle = \"1s\" }}\n\
         quality = {{ slow_start = {{ ramp = \"5s\" }} }}\n"
    );
    let text = pool(pooled, "") + &world::service("web", "nat", vip(1), &keys, &world::plain(own))?;
    let pooled = pooled.name.clone();
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    let [client, holder] = [0, 1].map(|index| world.site.lab.clients[index].namespace());
    let load = clients(client, vip(1), RATE, round.seed, Duration::from_secs(120))?;
    thread::sleep(Duration::from_secs(3));
    let speed = |speed: f64| {
        for server in world.site.servers.iter().filter(|server| server.name() != pooled) {
            let behaviour = server.behaviour();
            server.set_behaviour(Behaviour { speed, ..behaviour });
        }
    };
    speed(0.2);
    let decided = until(PATIENCE, || {
        let pool = world.standby()?.servers;
        Ok(pool.iter().any(|server| server.state != Phase::Idle))
    })?;
    if decided.is_none() {
        bail!(
            "no standby server was allocated:\n{}\n{}",
            world.gateway.ask(&["standby"]),
            world.gateway.ask(&["quality"])
        );
    }
    let served = until(PATIENCE, || Ok(load.report().by_server.contains_key(&pooled)))?;
    thread::sleep(Duration::from_secs(6));
    let held = hold(holder, vip(1), Protocol::Tcp, 60, Duration::from_millis(100))?;
    let on_pooled = held.by_server().get(&pooled).copied().unwrap_or_default();
    speed(1.0);
    let draining = wait_phase(&world, Phase::Draining, Duration::from_secs(60))?;
    held.wait_exchanges(5, PATIENCE)?;
    let report = load.stop();
    let broken = harmed(&held) + report.errors.values().sum::<u64>() as f64;
    eprintln!(
        "  standby: decided {decided:?} after the quality fell, answered {served:?} later; {on_pooled} of 60 held flows on it; \
         drained {draining:?} after recovery; errors {:?}",
        report.errors
    );
    drop(held);
    let returned = wait_phase(&world, Phase::Idle, Duration::from_secs(30))?;
    Ok(vec![
        Value::new("standby: time from the decision to the first answer", "s", seconds(served)).at_most(2.0),
        Value::new("standby: connections broken when drained", "", broken).at_most(0.0),
        Value::new("standby: time until it drains after recovery", "s", seconds(draining)),
        Value::new("standby: time until it is back in the pool, once its flows have ended", "s", seconds(returned)),
    ])
}

/// Both are in need when the only standby server becomes usable.
fn two_services() -> Result<Vec<Value>> {
    let config = LabConfig { servers: 5, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
    let (pooled, own) = site.lab.servers.split_last().expect("there are five");
    let keys = "check = { type = \"tcp\", interval = \"100ms\", timeout = \"300ms\", rise = 2, fall = 2, port = 80 }\n\
                standby = { active_per_weight = 3, hold = \"500ms\", settle = \"1s\" }\n";
    let mut text = pool(pooled, "check_timeout = \"1s\"\nretry_after = \"2s\"\nretry_most = \"2s\"");
    for (index, hosts) in own.chunks(2).enumerate() {
        let name = ["quiet", "busy"][index];
        text += &world::service(name, "dnat", vip(1 + index as u8), keys, &world::plain(hosts))?;
    }
    let mut world = World::up(site, &text)?;
    world.wait_ready()?;
    world.site.servers[4].stop(Live::Reset);
    let every = Duration::from_millis(200);
    let quiet = hold(world.site.lab.clients[0].namespace(), vip(1), Protocol::Tcp, 20, every)?;
    let busy = hold(world.site.lab.clients[1].namespace(), vip(2), Protocol::Tcp, 60, every)?;
    let in_need = || Ok(world.standby()?.services.iter().all(|service| service.breach.is_some()));
    if until(PATIENCE, in_need)?.is_none() || wait_phase(&world, Phase::Failed, PATIENCE)?.is_none() {
        bail!("not both services are in need without a server:\n{}", world.gateway.ask(&["standby"]));
    }
    world.site.servers[4].restart()?;
    if wait_phase(&world, Phase::Serving, PATIENCE)?.is_none() {
        bail!("the standby server does not serve:\n{}\n{}", world.gateway.ask(&["standby"]), world.gateway.log());
    }
    let to = world.standby()?.servers[0].leased_to.clone().unwrap_or_default();
    let broken = harmed(&quiet) + harmed(&busy);
    Ok(vec![
        Value::new("standby: two services in need, the busier has it", "", f64::from(u8::from(to == "busy")))
            .at_least(1.0),
        Value::new("standby: two services in need, flows broken", "", broken).at_most(0.0),
    ])
}
