//! What the controller takes of a processor with a thousand servers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::world::{Site, World, behaviour, vip};
use super::{Round, Value};
use crate::support::plan::LabConfig;

const SERVERS: usize = 1_000;
/// Slow start is over, as after any start of a gateway.
const SETTLE: Duration = Duration::from_secs(40);
const WATCH: Duration = Duration::from_secs(20);

pub fn round(_round: Round) -> Result<Vec<Value>> {
    let config = LabConfig { clients: 1, servers: 1, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
    let host = &site.lab.servers[0];
    // All on one host, each with an address of its own.
    host.namespace().ip(&["route add local 10.78.0.0/22 dev lo"])?;
    let next_hop = host.addresses.ipv4;
    site.lab.gateway.namespace.ip(&[format!("route add 10.78.0.0/22 via {next_hop}")])?;
    let mut text = format!(
        "[[service]]\nname = \"web\"\nmode = \"dnat\"\nlisten = [\"{}:80/tcp\"]\ncheck = {{ type = \"tcp\", interval = \"1s\", \
         timeout = \"500ms\", port = 80 }}\n",
        vip(1)
    );
    for number in 1..=SERVERS {
        writeln!(text, "[[service.server]]\naddress = \"10.78.{}.{}\"", number >> 8, number & 0xff)?;
    }
    let world = World::up(site, &text)?;
    world.wait_ready()?;
    thread::sleep(SETTLE);
    let process = world.gateway.process().context("the gateway runs")?;
    let rings = world.quality()?.rings;
    let before = processor_time(process)?;
    thread::sleep(WATCH);
    let used = processor_time(process)?.saturating_sub(before);
    let report = world.quality()?;
    // Whether rings that are published are a matter of weights, and of which.
    let mut reasons = BTreeMap::<String, u32>::new();
    for change in report.services.iter().flat_map(|it| &it.servers).filter_map(|it| it.report.last_change) {
        let reason = format!("{:?}", change.reason);
        *reasons.entry(reason.split([' ', '(']).next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    eprintln!("  controller: {} rings while it was watched; last changes: {reasons:?}", report.rings - rings);
    let share = 100.0 * used.as_secs_f64() / WATCH.as_secs_f64();
    Ok(vec![Value::new("controller, 1,000 servers probed every second", "% of a core", share).at_most(5.0)])
}

/// Of all threads of a process.
fn processor_time(process: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let first = text.split_whitespace().next().context("schedstat has no figures")?;
        sum += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}
