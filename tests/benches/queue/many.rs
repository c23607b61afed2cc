//! A hundred thousand that wait.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::forge::{self, Target};

use crate::qos::world::{self, Site, World, behaviour, vip};
use crate::scenario::{Round, Value};

const ENTRIES: u64 = 100_000;
const PATIENCE: Duration = Duration::from_secs(30);

pub fn round(round: Round) -> Result<Vec<Value>> {
    let config = LabConfig { clients: 1, servers: 2, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
    let text = |mark: u32| {
        let hosts: Vec<(&Host, String)> =
            site.lab.servers.iter().map(|host| (host, format!("high_water = {mark}"))).collect();
        // Servers that are no end of a tunnel, so that they do little with what they get.
        let keys = "quality = { weights = \"configured\" }\n[service.queue]\ndeadline = \"5m\"\nmax_entries = 200000\n\
                    max_per_source = 200000\nverify = \"never\"\n";
        world::service("web", "dsr-ipip", vip(1), keys, &hosts)
    };
    let (full, open) = (text(1)?, text(1_000_000)?);
    let world = World::up(site, &format!("[queue]\nmemory = \"1GiB\"\n{full}"))?;
    world.wait_ready()?;
    let process = world.gateway.process().context("the gateway runs")?;
    let client = &world.site.lab.clients[0];
    let target = Target {
        macs: [forge::mac_of(&client.far)?, forge::mac_of(&client.near)?],
        vip: loadbalancer_tests::lab::vip4(1),
        port: 80,
        first_source: "100.64.0.0".parse()?,
        sources: 1 << 20,
    };
    let before = resident(process)?;
    let waiting = || -> Result<u64> { Ok(world.queue()?.services.iter().map(|it| it.waiting).sum()) };
    let (mut sent, mut sending) = (0, Duration::ZERO);
    while waiting()? < ENTRIES {
        ensure!(sent < 10 * ENTRIES, "only {} of {sent} wait:\n{}", waiting()?, world.gateway.ask(&["queue"]));
        // In parts, so that none is lost for want of a reader.
        let target = Target { first_source: (u32::from(target.first_source) + sent as u32).into(), ..target };
        let begun = Instant::now();
        client.namespace().run(|| forge::send(&client.near.device, &target, 5_000))??;
        sending += begun.elapsed();
        sent += 5_000;
        std::thread::sleep(Duration::from_millis(20));
    }
    let all = waiting()?;
    let bytes = (resident(process)? - before) as f64 / all as f64;
    if round.explain {
        eprintln!("{}", world.gateway.ask(&["queue"]));
    }
    world.gateway.write(&format!("[queue]\nmemory = \"1GiB\"\n{open}"))?;
    // With the reload, which is over before the first is released.
    let begun = Instant::now();
    world.gateway.signal(nix::sys::signal::Signal::SIGHUP);
    while waiting()? > 0 {
        if begun.elapsed() > PATIENCE {
            bail!("{} still wait:\n{}\n{}", waiting()?, world.gateway.ask(&["queue"]), world.gateway.log());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begun.elapsed();
    let rate = all as f64 / took.as_secs_f64();
    let forged = sent as f64 / sending.as_secs_f64();
    let stats = world.gateway.snapshot();
    let forwarded = stats.services.iter().filter_map(|service| service.outcomes.get("forwarded")).sum::<u64>();
    eprintln!("  {all} were released within {took:?} of the reload, {forwarded} frames were forwarded");
    Ok(vec![
        Value::new("100,000 entries: memory of each", "bytes", bytes).at_most(512.0),
        Value::new("100,000 entries: released", "/s", rate),
        // Which is a thread that does nothing but send frames, of which the packet path takes each.
        Value::new("100,000 entries: released / forged packets that one thread sends", "", rate / forged).at_least(0.1),
        Value::new("100,000 entries: released that reached a server", "%", 100.0 * forwarded as f64 / all as f64)
            .at_least(99.0),
    ])
}

/// Bytes of memory that a process has.
pub fn resident(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the process has memory")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}
