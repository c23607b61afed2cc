//! The controller is killed while a thousand wait.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::hold::{Hold, Protocol};
use nix::sys::signal::Signal;

use crate::qos::world::{self, Site, World, behaviour, until, vip};
use crate::scenario::{Round, Value};

const WAITING: usize = 1_000;
/// Until the service manager starts it again.
const DOWN: Duration = Duration::from_millis(500);
/// First packets are sent again after 1, 3, 7 and 15 seconds.
const PATIENCE: Duration = Duration::from_secs(40);

pub fn round(_round: Round) -> Result<Vec<Value>> {
    let config = LabConfig { clients: 2, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
    let text = |mark: u32| {
        let hosts: Vec<(&Host, String)> =
            site.lab.servers.iter().map(|host| (host, format!("high_water = {mark}"))).collect();
        let keys =
            "quality = { weights = \"configured\" }\n[service.queue]\ndeadline = \"1m\"\nmax_per_source = 5000\n";
        world::service("web", "nat", vip(1), keys, &hosts)
    };
    let (full, open) = (text(2)?, text(1_000)?);
    let mut world = World::up(site, &full)?;
    world.wait_ready()?;
    let first =
        world::hold(world.site.lab.clients[0].namespace(), vip(1), Protocol::Tcp, 8, Duration::from_millis(50))?;
    let hold = Hold {
        target: (vip(1), 7).into(),
        protocol: Protocol::Tcp,
        flows: WAITING,
        every: Duration::from_millis(500),
        timeout: Duration::from_secs(60),
        max_time: Duration::from_secs(120),
    };
    let waiting = hold.start(world.site.lab.clients[1].namespace())?;
    let count = || -> Result<u64> { Ok(world.queue()?.services.iter().map(|it| it.waiting).sum()) };
    if until(PATIENCE, || Ok(count()? >= WAITING as u64))?.is_none() {
        bail!("only {} wait:\n{}", count()?, world.gateway.ask(&["queue"]));
    }
    world.gateway.stop(Signal::SIGKILL);
    thread::sleep(DOWN);
    world.gateway.write(&open)?;
    world.gateway.spawn()?;
    let served = || waiting.reports().iter().filter(|flow| flow.exchanges > 0).count();
    let time = until(PATIENCE, || Ok(served() == WAITING))?;
    let broken = waiting.broken();
    if let Some(flow) = broken.first() {
        eprintln!("  {} broken, the first: {:?}", broken.len(), flow.broken);
    }
    drop(first);
    Ok(vec![
        Value::new("kill: clients not served after the restart", "", (WAITING - served()) as f64).at_most(0.0),
        Value::new("kill: until all are served", "s", world::seconds(time)),
    ])
}
