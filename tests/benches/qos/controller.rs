//! What the controller takes of a processor with a thousand servers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use loadbalancer_tests::lab::plan::LabConfig;
use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use super::world::{Site, World, behaviour, vip};
use crate::scenario::{Round, Value};

const SERVERS: usize = 1_000;
/// Slow start is over, as after any start of a gateway.
const SETTLE: Duration = Duration::from_secs(40);
const WATCH: Duration = Duration::from_secs(20);
const PLAIN: Duration = Duration::from_secs(10);

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
        writeln!(text, "[[service.server]]\naddress = \"{}\"", address(number))?;
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
    for change in report.services.iter().flat_map(|it| &it.servers).filter_map(|it| it.last_change) {
        let reason = format!("{:?}", change.reason);
        *reasons.entry(reason.split([' ', '(']).next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    eprintln!("  controller: {} rings while it was watched; last changes: {reasons:?}", report.rings - rings);
    let of_a_core = |used: Duration, time: Duration| 100.0 * used.as_secs_f64() / time.as_secs_f64();
    let share = of_a_core(used, WATCH);
    let plain = of_a_core(world.site.lab.gateway.namespace.run(plain_connections)??, PLAIN);
    Ok(vec![
        Value::new("controller, 1,000 servers probed every second", "% of a core", share),
        Value::new("the same connections opened in turn by a plain loop", "% of a core", plain),
        Value::new("controller / plain loop", "", share / plain).at_most(1.4),
    ])
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, (number >> 8) as u8, (number & 0xff) as u8)
}

/// Processor time of the least that can be done: ten connections every 10 ms, each reset at once, with nobody to tell. The
/// kernel's work for them is in it as it is in the controller's: on virtual links the sender does the receiver's, too.
fn plain_connections() -> Result<Duration> {
    let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let begun = Instant::now();
    for number in 0..SERVERS * PLAIN.as_secs() as usize {
        if number % 10 == 0 {
            let due = begun + Duration::from_millis(number as u64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let stream =
            TcpStream::connect_timeout(&(address(number % SERVERS + 1), 80).into(), Duration::from_millis(500))?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok((clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before).into())
}

/// Of all threads of a process.
pub fn processor_time(process: u32) -> Result<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let first = text.split_whitespace().next().context("schedstat has no figures")?;
        sum += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}
