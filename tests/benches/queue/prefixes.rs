//! A hundred thousand prefixes that tell classes.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::loaded_maps;
use loadbalancer::api::types::queue::ClassQueue;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::traffic::hold::{Hold, Protocol};
use nix::sys::signal::Signal;

use super::many::resident;
use crate::qos::world::{self, PATIENCE, Site, World, behaviour, until, vip};
use crate::scenario::{Round, Value};

const PREFIXES: u32 = 100_000;
/// Prefixes that another file has instead.
const CHANGED: u32 = 1_000;
const WAITING: usize = 20;

pub fn round(_round: Round) -> Result<Vec<Value>> {
    let before = start(0)?;
    let after = start(PREFIXES)?;
    Ok(vec![
        Value::new("100,000 prefixes: start", "s", after.start),
        Value::new("100,000 prefixes: start without them", "s", before.start),
        Value::new("100,000 prefixes: reload with 1,000 others", "s", after.reload),
        Value::new("100,000 prefixes: memory of each in the kernel", "bytes", after.map / f64::from(PREFIXES)),
        Value::new(
            "100,000 prefixes: memory of each in the controller",
            "bytes",
            (after.resident - before.resident) / f64::from(PREFIXES),
        ),
        Value::new("100,000 prefixes: clients in another class than the longest's", "", after.wrong).at_most(0.0),
    ])
}

struct Seen {
    /// Seconds until the gateway forwards.
    start: f64,
    reload: f64,
    /// Bytes.
    resident: f64,
    map: f64,
    wrong: f64,
}

/// A file that goes with it.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // If it was never written, there is nothing to remove.
        drop(fs::remove_file(self.0));
    }
}

fn start(prefixes: u32) -> Result<Seen> {
    let config = LabConfig { clients: 2, servers: 2, ..LabConfig::default() };
    let site = Site::up(&config, behaviour(Duration::from_millis(1)))?;
    let hosts: Vec<(&Host, String)> = site.lab.servers.iter().map(|host| (host, "high_water = 1".to_owned())).collect();
    let client = site.lab.clients[0].addresses.ipv4;
    let around = Ipv4Addr::from(u32::from(client) & 0xffff_0000);
    // Of the file, of a shorter prefix in a class that comes first, and of none.
    let mut keys = format!(
        "quality = {{ weights = \"configured\" }}\n[service.queue]\ndeadline = \"1m\"\n\
         [[service.queue.class]]\nname = \"around\"\npriority = 5\nclients = [\"{around}/16\"]\n\
         [[service.queue.class]]\nname = \"file\"\npriority = 1\n"
    );
    let file = std::env::temp_dir().join(format!("loadbalancer-prefixes-{}", std::process::id()));
    let _removed = Removed(&file);
    let text = |first: u32| -> Result<String> {
        let mut text = format!("{client}/32\n");
        for number in first..first + prefixes.saturating_sub(1) {
            // Half of them are within others, which are the longer ones.
            writeln!(text, "{}/{}", Ipv4Addr::from(0x1600_0000 + (number / 2 * 256)), 24 + number % 2)?;
        }
        Ok(text)
    };
    fs::write(&file, text(0)?)?;
    writeln!(keys, "clients_file = {:?}", file.display())?;
    let text_of_service = world::service("web", "nat", vip(1), &keys, &hosts)?;
    let begun = Instant::now();
    let world = World::up(site, &text_of_service)?;
    let start = begun.elapsed().as_secs_f64();
    world.wait_ready()?;
    let process = world.gateway.process().context("the gateway runs")?;
    let resident = resident(process)? as f64;
    let classes = loaded_maps().flatten().find(|map| map.name_as_str() == Some("CLASSES"));
    let classes = classes.context("there is a map of classes")?;
    let descriptor = classes.fd()?;
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd()))?;
    let memory = told.lines().find_map(|line| line.strip_prefix("memlock:")).context("a map has memory")?;
    let map = memory.trim().parse()?;
    // Two connections fill the servers; what comes then waits in its class.
    let hold = |client: usize, flows| {
        let hold = Hold {
            target: (vip(1), 7).into(),
            protocol: Protocol::Tcp,
            flows,
            every: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
            max_time: Duration::from_secs(60),
        };
        hold.start(world.site.lab.clients[client].namespace())
    };
    let first = hold(1, 2)?;
    first.wait_exchanges(1, PATIENCE)?;
    let waiting = hold(0, WAITING)?;
    let counts = || -> Result<[u64; 2]> {
        let report = world.queue()?;
        let classes = report.services.iter().flat_map(|service| &service.classes);
        let count = |of_file| move |class: &&ClassQueue| (class.name.as_deref() == Some("file")) == of_file;
        let sum = |of_file: bool| classes.clone().filter(count(of_file)).map(|class| class.waiting).sum();
        Ok([sum(true), sum(false)])
    };
    let all_wait = until(PATIENCE, || Ok(counts()?.iter().sum::<u64>() >= WAITING as u64))?;
    ensure!(all_wait.is_some(), "only {:?} wait:\n{}", counts()?, world.gateway.ask(&["queue"]));
    let [_, wrong] = counts()?;
    fs::write(&file, text(CHANGED)?)?;
    let log = world.gateway.log().len();
    let begun = Instant::now();
    world.gateway.signal(Signal::SIGHUP);
    let reloaded = until(PATIENCE, || Ok(world.gateway.log()[log..].contains("configuration reloaded")))?;
    ensure!(reloaded.is_some(), "it does not reload:\n{}", world.gateway.log());
    let reload = begun.elapsed().as_secs_f64();
    drop((waiting, first));
    Ok(Seen { start, reload, resident, map, wrong: wrong as f64 })
}
