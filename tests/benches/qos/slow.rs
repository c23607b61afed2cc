//! One of four servers becomes ten times slower.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use loadbalancer_tests::lab::plan::LabConfig;

use super::haproxy;
use super::world::{self, FIXED, MEASURED, Site, World, behaviour, p99_ms, plain, vip};
use crate::scenario::{Round, Value, all};

const MEAN: Duration = Duration::from_millis(40);
const UTILISATION: f64 = 0.7;
/// When the server becomes slow, from when requests count, and until when; in seconds after the begin of the load.
const SLOW_AT: usize = 10;
const FROM: usize = SLOW_AT + 10;
const TO: usize = FROM + 10;

/// Begins the names of the latencies.
pub const P99_OF: &str = "slow server: p99, ";

#[derive(Clone, Copy, Debug)]
enum Balancer {
    /// With such keys of the service.
    Ours(&'static str),
    /// With such an algorithm.
    Haproxy(&'static str),
}

const BALANCERS: [(&str, Balancer); 4] = [
    ("fixed weights", Balancer::Ours(FIXED)),
    ("measured", Balancer::Ours(MEASURED)),
    ("HAProxy leastconn", Balancer::Haproxy("leastconn")),
    ("HAProxy random(2)", Balancer::Haproxy("random(2)")),
];

pub fn round(round: Round) -> Result<Vec<Value>> {
    let p99s = all(&BALANCERS, |(_, balancer)| p99_of(*balancer, round))?;
    let mut values: Vec<Value> =
        BALANCERS.iter().zip(&p99s).map(|((name, _), p99)| Value::new(format!("{P99_OF}{name}"), "ms", *p99)).collect();
    let [fixed, measured, leastconn, random] = p99s[..] else {
        return Err(anyhow!("{} balancers were measured", p99s.len()));
    };
    values.push(Value::new("slow server: p99 measured / fixed", "", measured / fixed).at_most(0.5));
    let better = leastconn.min(random);
    values.push(Value::new("slow server: p99 measured / better HAProxy", "", measured / better).at_most(1.0));
    Ok(values)
}

fn p99_of(balancer: Balancer, round: Round) -> Result<f64> {
    let site = Site::up(&LabConfig { clients: 1, ..LabConfig::default() }, behaviour(MEAN))?;
    match balancer {
        Balancer::Ours(keys) => {
            let text = world::service("web", "nat", vip(1), keys, &plain(&site.lab.servers))?;
            let world = World::up(site, &text)?;
            world.wait_ready()?;
            let p99 = drive(&world.site, round)?;
            if round.explain {
                eprintln!("{}", world.gateway.ask(&["quality"]));
            }
            Ok(p99)
        }
        Balancer::Haproxy(balance) => {
            let _haproxy = haproxy::up(&site, balance)?;
            drive(&site, round)
        }
    }
}

fn drive(site: &Site, round: Round) -> Result<f64> {
    let rate = UTILISATION * site.capacity();
    let from = site.lab.clients[0].namespace();
    let load = world::clients(from, vip(1), rate, round.seed, Duration::from_secs(TO as u64))?;
    thread::sleep(Duration::from_secs(SLOW_AT as u64).saturating_sub(load.elapsed()));
    let slow = &site.servers[1];
    let mut behaviour = slow.behaviour();
    behaviour.speed = 0.1;
    slow.set_behaviour(behaviour);
    let report = load.wait();
    let span = report.between(FROM, TO);
    eprintln!("  {:?} {:?} p50 {:?}", span.by_server, span.errors, span.latency(0.5));
    Ok(p99_ms(&span))
}
