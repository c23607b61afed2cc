//! The scenarios of the bench, and a table of what comes of them.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{Change, Model, Passive, Policy, Run, Scenario, run};
use crate::quality::Settings;

/// When the first change of a scenario comes, in seconds.
pub const CHANGE_AT: usize = 30;

/// Servers under a load, as a part of what they can serve together.
pub fn under_load(servers: Vec<Model>, load: f64, duration_s: u64) -> Scenario {
    let capacity: f64 = servers.iter().map(Model::capacity).sum();
    Scenario {
        servers,
        rate: load * capacity,
        duration: Duration::from_secs(duration_s),
        probe_every: Duration::from_millis(250),
        probe_timeout: Duration::from_secs(1),
        delay: Duration::ZERO,
        passive: Passive::Buckets,
        seed: 1,
    }
}

/// Equal servers of which the first changes.
pub fn one_of_four(changes: Vec<(Duration, Change)>, load: f64, duration_s: u64) -> Scenario {
    let mut servers = vec![Model::default(); 4];
    servers[0].changes = changes;
    under_load(servers, load, duration_s)
}

/// One of four servers becomes 10 times slower for a minute.
pub fn slow(load: f64) -> Scenario {
    let at = |seconds: usize, speed| (Duration::from_secs(seconds as u64), Change::Speed(speed));
    one_of_four(vec![at(CHANGE_AT, 0.1), at(CHANGE_AT + 60, 1.0)], load, 210)
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

/// One of four servers is slow for 5 s and normal for 5 s, in turn.
pub fn flapping(load: f64) -> Scenario {
    let change = |turn: u64| {
        let speed = if turn.is_multiple_of(2) { 0.1 } else { 1.0 };
        (Duration::from_secs(CHANGE_AT as u64 + 5 * turn), Change::Speed(speed))
    };
    one_of_four((0..24).map(change).collect(), load, 150)
}

/// Policies that are compared.
pub fn policies() -> Vec<Policy> {
    vec![
        Policy::Fixed,
        Policy::Measured(Settings::default()),
        Policy::Gradient,
        Policy::LeastConnections,
        Policy::RandomOfTwo,
    ]
}

/// What one policy made of a scenario.
#[derive(Clone, Debug)]
pub struct Row {
    pub scenario: String,
    pub policy: &'static str,
    /// 99th percentile of the 20 s before the change, of the 5 s after it, from 10 s after it for 50 s, in seconds.
    pub p99_s: [f64; 3],
    /// Seconds until the 99th percentile is below half of that with fixed weights.
    pub recovered_s: Option<usize>,
    /// Largest difference of a share of requests from the share of capacity, from 30 s to 40 s after the beginning and
    /// from 40 s on, as a part of it. Only where capacities do not change.
    pub share_error: Option<[f64; 2]>,
    /// Largest difference of a weight from its mean.
    pub deviation: f64,
    pub rings_per_minute: f64,
    pub ejections: usize,
}

/// All scenarios with all policies.
pub fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, scenario: &Scenario, policies: &[Policy]| {
        let fixed = run(scenario, &Policy::Fixed);
        for policy in policies {
            rows.push(Row::new(name, scenario, policy, &run(scenario, policy), &fixed));
        }
    };
    let measured = [Policy::Fixed, Policy::Measured(Settings::default()), Policy::Gradient];
    for load in [0.5, 0.7] {
        add(&format!("10 x slower, load {load}"), &slow(load), &policies());
    }
    for passive in [Passive::Sums, Passive::Absent] {
        add(&format!("10 x slower, passive {passive:?}"), &Scenario { passive, ..slow(0.7) }, &measured[1..2]);
    }
    let delay = Duration::from_millis(500);
    add("10 x slower, told 0.5 s late", &Scenario { delay, ..slow(0.7) }, &measured[1..2]);
    for load in [0.5, 0.7, 0.85, 0.92] {
        add(&format!("speeds 1:2:4, load {load}"), &different(load), &policies());
        add(&format!("  perfect weights, load {load}"), &different_with_perfect_weights(load), &measured[..1]);
    }
    for load in [0.3, 0.7, 0.9] {
        let steady = under_load(vec![Model::default(); 4], load, 600);
        add(&format!("steady, load {load}"), &steady, &measured);
    }
    add("flapping, load 0.6", &flapping(0.6), &policies());
    let changed = |change| vec![(Duration::from_secs(CHANGE_AT as u64), change)];
    for (name, change) in [("loses 5 %", Change::Loss(0.05)), ("answers 500", Change::Errors(1.0))] {
        add(name, &one_of_four(changed(change), 0.7, 60), &measured[..2]);
    }
    let distance = Duration::from_millis(50);
    add("50 ms farther away", &one_of_four(changed(Change::Distance(distance)), 0.5, 120), &measured);
    let mut all_slow = vec![Model::default(); 4];
    all_slow.iter_mut().for_each(|server| server.changes = changed(Change::Speed(0.5)));
    add("all at half speed, load 0.4", &under_load(all_slow, 0.4, 120), &measured);
    rows
}

impl Row {
    fn new(name: &str, scenario: &Scenario, policy: &Policy, run: &Run, fixed: &Run) -> Self {
        let end = scenario.duration.as_secs() as usize;
        let steady = scenario.servers.iter().all(|server| server.changes.is_empty());
        let bad = CHANGE_AT..CHANGE_AT + 10;
        let (late, most) = (CHANGE_AT + 10, (CHANGE_AT + 60).min(end));
        let bound = 0.5 * fixed.quantile(late..most, 0.99);
        let servers = 0..scenario.servers.len();
        let capacity: f64 = scenario.servers.iter().map(Model::capacity).sum();
        let share_error = |span: std::ops::Range<usize>| {
            let error = |server: usize| {
                let due = scenario.servers[server].capacity() / capacity;
                (run.load(server, span.clone()) / due - 1.0).abs()
            };
            servers.clone().map(error).fold(0.0, f64::max)
        };
        Self {
            scenario: name.to_owned(),
            policy: policy.name(),
            p99_s: [
                run.quantile(CHANGE_AT - 20..CHANGE_AT, 0.99),
                run.quantile(bad.start..bad.start + 5, 0.99),
                run.quantile(late..most, 0.99),
            ],
            recovered_s: if steady { None } else { run.recovered_after(CHANGE_AT, most, bound) },
            share_error: steady.then(|| [share_error(30..40), share_error(40..end)]),
            deviation: servers.clone().map(|it| run.largest_deviation(it, CHANGE_AT..end)).fold(0.0, f64::max),
            rings_per_minute: run.rings_per_minute(CHANGE_AT..end),
            ejections: run.ejections.len(),
        }
    }

    /// Names of the columns of [`Row`]'s display.
    pub fn header() -> String {
        format!(
            "{:30} {:10} {:>9} {:>9} {:>9} {:>9} {:>17} {:>9} {:>9} {:>7}",
            "scenario",
            "policy",
            "before",
            "0-5 s",
            "10-60 s",
            "recovered",
            "share error",
            "deviation",
            "rings/min",
            "ejected"
        )
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recovered = self.recovered_s.map_or("-".to_owned(), |seconds| format!("{seconds} s"));
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let error = self.share_error.map_or("-".to_owned(), |[soon, late]| format!("{}, {}", percent(soon), percent(late)));
        write!(f, "{:30} {:10}", self.scenario, self.policy)?;
        for p99_s in self.p99_s {
            write!(f, " {:>9}", format!("{:.0} ms", p99_s * 1e3))?;
        }
        write!(f, " {recovered:>9} {error:>17} {:>9}", percent(self.deviation))?;
        write!(f, " {:>9.1} {:>7}", self.rings_per_minute, self.ejections)
    }
}



