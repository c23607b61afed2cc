//! What is simulated: servers, clients and what becomes of them.

use std::time::Duration;

use decide::standby::need::Levels;
use decide::tiers;

use super::server::{Change, Model};

/// When the first change of a scenario comes, in seconds.
pub const CHANGE_AT: usize = 30;

/// 90th percentile of latency that the original of a mirrored service is to have.
pub const LEVEL: Duration = Duration::from_millis(100);

/// What passive signals are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passive {
    /// Response gaps in buckets of a factor of 2, and their sum.
    Sums,
    /// Response gaps in buckets alone.
    Buckets,
    /// None: both directions do not pass the gateway.
    Absent,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub servers: Vec<Model>,
    /// Requests per second of all clients together, and what becomes of it in the order of time.
    pub rate: f64,
    pub rates: Vec<(Duration, f64)>,
    /// When lower tiers help the first, if they do.
    pub tiers: Option<tiers::Settings>,
    pub duration: Duration,
    pub probe_every: Duration,
    pub probe_timeout: Duration,
    /// How much later than they were made measurements come in.
    pub delay: Duration,
    pub passive: Passive,
    pub seed: u64,
}

/// Servers under a load, as a part of what they can serve together.
pub fn under_load(servers: Vec<Model>, load: f64, duration_s: u64) -> Scenario {
    let capacity: f64 = servers.iter().map(Model::capacity).sum();
    Scenario {
        servers,
        rate: load * capacity,
        rates: Vec::new(),
        tiers: None,
        duration: Duration::from_secs(duration_s),
        probe_every: Duration::from_millis(250),
        probe_timeout: Duration::from_secs(1),
        delay: Duration::ZERO,
        passive: Passive::Buckets,
        seed: 1,
    }
}

/// Equal servers of which the first changes.
fn one_of_four(changes: Vec<(Duration, Change)>, load: f64, duration_s: u64) -> Scenario {
    let mut servers = vec![Model::default(); 4];
    servers[0].changes = changes;
    under_load(servers, load, duration_s)
}

fn seconds(seconds: usize) -> Duration {
    Duration::from_secs(seconds as u64)
}

/// Equal servers to which nothing happens.
pub fn steady(load: f64) -> Scenario {
    one_of_four(Vec::new(), load, 600)
}

/// All servers lose as much from the beginning on: nobody is to be blamed for it.
pub fn all_lossy(load: f64, loss: f64) -> Scenario {
    let changes = vec![(Duration::ZERO, Change::Loss(loss))];
    under_load(vec![Model { changes, ..Model::default() }; 4], load, 600)
}

/// One of four servers becomes 10 times slower for a minute.
pub fn slow(load: f64) -> Scenario {
    let changes = [(CHANGE_AT, 0.1), (CHANGE_AT + 60, 1.0)];
    one_of_four(changes.map(|(at, speed)| (seconds(at), Change::Speed(speed))).to_vec(), load, 210)
}

/// One of four servers loses some of the SYNs for a while.
pub fn lossy(load: f64) -> Scenario {
    let changes = [(CHANGE_AT, 0.05), (CHANGE_AT + 60, 0.0)];
    one_of_four(changes.map(|(at, loss)| (seconds(at), Change::Loss(loss))).to_vec(), load, 210)
}

/// One of four servers answers with errors, and fast, for a while.
pub fn failing(load: f64) -> Scenario {
    let changes = [(CHANGE_AT, 1.0), (CHANGE_AT + 60, 0.0)];
    one_of_four(changes.map(|(at, errors)| (seconds(at), Change::Errors(errors))).to_vec(), load, 210)
}

/// One of four servers is slow for 5 s and normal for 5 s, in turn.
pub fn flapping(load: f64) -> Scenario {
    let change = |turn: usize| {
        let speed = if turn.is_multiple_of(2) { 0.1 } else { 1.0 };
        (seconds(CHANGE_AT + 5 * turn), Change::Speed(speed))
    };
    one_of_four((0..24).map(change).collect(), load, 150)
}

/// One of four servers gets 50 ms farther away.
pub fn far(load: f64) -> Scenario {
    one_of_four(vec![(seconds(CHANGE_AT), Change::Distance(Duration::from_millis(50)))], load, 120)
}

/// All servers get half as fast: there is nobody to give load to.
pub fn all_slow(load: f64) -> Scenario {
    let changes = vec![(seconds(CHANGE_AT), Change::Speed(0.5))];
    under_load(vec![Model { changes, ..Model::default() }; 4], load, 120)
}

/// Servers of speed 1, 2 and 4 that the configuration takes for equal.
pub fn different(load: f64) -> Scenario {
    let server = |speed| Model { speed, ..Model::default() };
    under_load([1.0, 2.0, 4.0].map(server).to_vec(), load, 150)
}

/// The same with weights as they should be.
pub fn different_with_perfect_weights(load: f64) -> Scenario {
    let mut scenario = different(load);
    for (server, weight) in scenario.servers.iter_mut().zip([1, 2, 4]) {
        server.weight = weight;
    }
    scenario
}

/// An original and two mirrors of the same speed; the load is a part of what the original can serve, and changes at
/// times in seconds.
pub fn mirrored(load: f64, loads: &[(usize, f64)], duration_s: u64) -> Scenario {
    let mirror = Model { tier: 1, ..Model::default() };
    let servers = vec![Model::default(), mirror.clone(), mirror];
    let capacity = servers[0].capacity();
    let levels = Levels { p90: Some(LEVEL), ..Levels::default() };
    Scenario {
        rates: loads.iter().map(|(at, load)| (seconds(*at), load * capacity)).collect(),
        tiers: Some(tiers::Settings { levels, ..tiers::Settings::default() }),
        ..under_load(servers, load / 3.0, duration_s)
    }
}

/// The load is suddenly half as much again as the original can serve, and after a minute and a half half of it.
pub fn surge() -> Scenario {
    mirrored(0.5, &[(CHANGE_AT, 1.5), (CHANGE_AT + 90, 0.5)], 240)
}

/// The load rises to twice what the original can serve in two minutes, and falls again.
pub fn swell() -> Scenario {
    let load = |second: usize| 0.5 + 1.5 * (1.0 - (second as f64 - 120.0).abs() / 120.0);
    let loads: Vec<(usize, f64)> = (0..=240).map(|second| (CHANGE_AT + second, load(second))).collect();
    mirrored(0.5, &loads, 330)
}

/// Nothing happens to the load.
pub fn constant(load: f64) -> Scenario {
    mirrored(load, &[], 300)
}

/// Measurements come in late.
pub fn told_late(scenario: Scenario, delay: Duration) -> Scenario {
    Scenario { delay, ..scenario }
}
