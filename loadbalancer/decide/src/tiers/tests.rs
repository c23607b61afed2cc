//! An original whose latency follows its load, as fluid runs out of a vessel; mirrors with room for all.

use super::*;
use crate::quality::signal::Histogram;

const STEP: Duration = Duration::from_millis(250);
const ORIGINAL: ServerId = ServerId::numbered(1);
const MIRRORS: [ServerId; 2] = [ServerId::numbered(2), ServerId::numbered(3)];
/// Requests per second that the original can serve.
const CAPACITY: f64 = 400.0;
const LEVEL: Duration = Duration::from_millis(100);
/// Latency without any load.
const EMPTY: f64 = 0.02;

struct Plant {
    tiers: Tiers,
    now: Duration,
    present: Vec<Tier>,
    /// Requests per second of all clients.
    load: f64,
    /// Seconds of work that wait at the original.
    backlog: f64,
    told: bool,
    events: Vec<Event>,
    rings: Vec<Duration>,
}

fn tier(tier: u8, servers: &[ServerId], weight: u32) -> Tier {
    Tier {
        tier,
        active: 10,
        nominal: servers.len() as u64,
        servers: servers.iter().map(|key| (*key, weight)).collect(),
    }
}

fn shared() -> Shared {
    Shared::from(&crate::quality::Settings::default())
}

impl Plant {
    fn new(load: f64) -> Self {
        let levels = Levels { p90: Some(LEVEL), ..Levels::default() };
        Self::with(load, Settings { levels, ..Settings::default() })
    }

    fn with(load: f64, settings: Settings) -> Self {
        Self {
            tiers: Tiers::new(settings, Duration::ZERO),
            now: Duration::ZERO,
            present: vec![tier(0, &[ORIGINAL], 1000), tier(1, &MIRRORS, 1000)],
            load: load * CAPACITY,
            backlog: 0.0,
            told: true,
            events: Vec::new(),
            rings: Vec::new(),
        }
    }

    /// Share of the new flows that the first tier gets.
    fn kept(&self) -> f64 {
        let help: f64 = self.tiers.help.values().map(|help| f64::from(help.weight)).sum();
        let first = self.present.iter().find(|tier| tier.weight() > 0.0).map_or(0.0, Tier::weight);
        if first > 0.0 { first / (first + help) } else { 0.0 }
    }

    fn used(&self) -> f64 {
        self.kept() * self.load / CAPACITY
    }

    /// 90th percentile, in seconds.
    fn latency(&self) -> f64 {
        self.backlog + EMPTY / (1.0 - self.used()).max(0.02)
    }

    fn step(&mut self) {
        let dt = STEP.as_secs_f64();
        self.backlog = (self.backlog + (self.used() - 1.0) * dt).max(0.0);
        self.now += STEP;
        let served = (self.used().min(1.0) * CAPACITY * dt) as u64;
        if self.told && !self.present[0].servers.is_empty() {
            let mut latencies = Histogram::default();
            // Spread as an exponential distribution with that 90th percentile.
            let spread = |index: u64| -(1.0 - (index as f64 + 0.5) / served as f64).ln() / 10.0f64.ln();
            (0..served).for_each(|index| latencies.record(Duration::from_secs_f64(self.latency() * spread(index))));
            let counts = Counts { target: ORIGINAL.into(), kind: Kind::Response, latencies, losses: 0, errors: 0 };
            self.tiers.counts(0, &counts, self.now);
        }
        let step = self.tiers.step(&self.present, false, &shared(), self.now);
        self.events.extend(step.events);
        if step.publish {
            self.rings.push(self.now);
        }
    }

    fn go(&mut self, seconds: u64) {
        (0..seconds * 4).for_each(|_| self.step());
    }

    fn course(&self) -> Course {
        self.tiers.explain(0).course
    }
}

#[test]
fn within_its_levels_the_first_tier_keeps_everything() {
    for load in [0.1, 0.5, 0.7, 0.78] {
        let mut plant = Plant::new(load);
        plant.go(600);
        assert_eq!((plant.rings.len(), plant.kept(), plant.course()), (0, 1.0, Course::Alone), "load {load}");
        assert_eq!(plant.tiers.explain(1).role, Role::Waits);
    }
}

#[test]
fn above_its_capacity_mirrors_help_within_seconds_and_the_original_keeps_what_it_can_serve() {
    for load in [1.1, 1.5, 2.0] {
        let mut plant = Plant::new(0.5);
        plant.go(30);
        plant.load = load * CAPACITY;
        plant.go(if load < 2.0 { 10 } else { 20 });
        assert!(plant.latency() <= LEVEL.as_secs_f64(), "load {load}: {} s", plant.latency());
        plant.go(60);
        let (mut least, mut most) = (f64::INFINITY, 0.0f64);
        for _ in 0..240 {
            plant.step();
            assert!(plant.latency() <= 1.2 * LEVEL.as_secs_f64(), "load {load}: {} s", plant.latency());
            (least, most) = (least.min(plant.used()), most.max(plant.used()));
        }
        assert!(least > 0.65 && most < 0.9 && most / least < 1.15, "load {load}: {least} to {most}");
        let report = plant.tiers.explain(1);
        assert_eq!(report.role, Role::Helps);
        assert!((report.share - (1.0 - plant.kept())).abs() < 0.01, "{report:?}");
        plant.load = 0.5 * CAPACITY;
        plant.go(60);
        assert_eq!((plant.kept(), plant.course()), (1.0, Course::Alone), "load {load}");
        let begins = |event: &&Event| matches!(event, Event::Begins { tier: 1, cause: Some(_) });
        assert_eq!(plant.events.iter().filter(begins).count(), 1, "{:?}", plant.events);
        assert_eq!(plant.events.last(), Some(&Event::Ends { tier: 1 }));
        let apart = plant.rings.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(apart >= Some(Duration::from_secs(1)), "{apart:?}");
    }
}

#[test]
fn what_does_not_last_is_no_reason() {
    let mut plant = Plant::new(0.5);
    plant.go(10);
    for _ in 0..20 {
        plant.load = 3.0 * CAPACITY;
        plant.step();
        plant.load = 0.5 * CAPACITY;
        plant.backlog = 0.0;
        plant.go(20);
    }
    assert_eq!((plant.rings.len(), plant.events.as_slice()), (0, &[][..]));
}

#[test]
fn silence_moves_nothing_and_no_flows_need_no_help() {
    let mut plant = Plant::new(1.5);
    plant.go(20);
    let (kept, rings) = (plant.kept(), plant.rings.len());
    assert!(kept < 0.9);
    plant.told = false;
    plant.go(60);
    assert_eq!((plant.course(), plant.rings.len()), (Course::Unknown, rings));
    assert_eq!(plant.kept(), kept);
    plant.present[0].active = 0;
    plant.go(60);
    assert_eq!((plant.kept(), plant.course()), (1.0, Course::Alone));
}

#[test]
fn losses_count_as_late_answers() {
    let mut plant = Plant::new(0.5);
    plant.told = false;
    for _ in 0..40 {
        let sample =
            Sample { target: ORIGINAL.into(), kind: Kind::Check, result: Err(crate::quality::signal::Failure::Loss) };
        plant.tiers.sample(0, &sample, plant.now);
        plant.step();
    }
    assert!(plant.kept() < 0.9, "{:?}", plant.tiers.explain(0));
}

#[test]
fn the_third_tier_helps_when_all_of_the_second_is_not_enough() {
    let mut plant = Plant::new(2.0);
    plant.present = vec![tier(0, &[ORIGINAL], 1000), tier(1, &MIRRORS[..1], 200), tier(2, &MIRRORS[1..], 2000)];
    plant.go(10);
    plant.go(60);
    let reports = [1, 2].map(|tier| plant.tiers.explain(tier));
    assert_eq!(reports.map(|report| report.role), [Role::Helps; 2]);
    assert_eq!(reports[0].of_weight, 1.0);
    assert!(reports[1].of_weight > 0.1 && plant.latency() < LEVEL.as_secs_f64(), "{reports:?}");
    let order: Vec<u8> = plant
        .events
        .iter()
        .filter_map(|event| if let Event::Begins { tier, .. } = event { Some(*tier) } else { None })
        .collect();
    assert_eq!(order, [1, 2]);
    plant.load = CAPACITY * 0.6;
    plant.go(60);
    assert_eq!(plant.tiers.explain(2).role, Role::Waits, "the last to help is the first to stop");
}

#[test]
fn never_less_than_its_fair_share_and_that_is_told() {
    let mut plant = Plant::new(6.0);
    plant.go(60);
    assert!((plant.kept() - 1.0 / 3.0).abs() < 0.01, "{}", plant.kept());
    assert_eq!(plant.course(), Course::Spent);
}

#[test]
fn when_the_original_is_down_the_mirror_is_first_and_what_comes_back_gets_its_share_step_by_step() {
    let mut plant = Plant::new(0.5);
    plant.go(10);
    let servers = std::mem::take(&mut plant.present[0].servers);
    plant.go(10);
    assert_eq!(plant.events, [Event::First { tier: 1, before: 0 }]);
    assert_eq!(plant.tiers.explain(1).role, Role::First);
    assert!(plant.tiers.help.is_empty());
    plant.present[0].servers = servers;
    plant.step();
    assert!((plant.kept() - 1.0 / 3.0).abs() < 0.01, "{}", plant.kept());
    plant.go(20);
    assert!((0.4..0.9).contains(&plant.kept()), "{}", plant.kept());
    plant.go(90);
    assert_eq!(plant.kept(), 1.0);
}

#[test]
fn mirrors_that_go_or_come_leave_the_original_what_it_has() {
    let mut plant = Plant::new(1.5);
    plant.go(60);
    let kept = plant.kept();
    plant.present[1].servers.pop();
    plant.go(2);
    assert!((plant.kept() / kept - 1.0).abs() < 0.1, "{kept} {}", plant.kept());
    assert_eq!(plant.tiers.help(MIRRORS[1]), None);
    plant.present[1].servers.clear();
    plant.go(2);
    assert_eq!((plant.kept(), plant.tiers.help(MIRRORS[0])), (1.0, None));
}

#[test]
fn flows_per_weight_are_a_level_that_needs_no_signals() {
    let levels = Levels { load: Some(50.0), ..Levels::default() };
    let mut plant = Plant::with(0.5, Settings { levels, ..Settings::default() });
    plant.told = false;
    for (active, course) in [(50, Course::Alone), (60, Course::Rises), (45, Course::Steady), (20, Course::Falls)] {
        plant.present[0].active = active;
        plant.go(4);
        assert_eq!(plant.course(), course, "{active}");
    }
    plant.go(60);
    assert_eq!((plant.kept(), plant.course()), (1.0, Course::Alone));
}

#[test]
fn a_ring_that_is_made_anyway_takes_what_is_due_and_the_next_one_waits() {
    let mut plant = Plant::new(1.5);
    while plant.rings.is_empty() {
        plant.step();
    }
    let first = plant.now;
    plant.step();
    plant.now += STEP;
    let step = plant.tiers.step(&plant.present, true, &shared(), plant.now);
    assert!(step.publish && plant.now - first < Duration::from_secs(1));
    let anyway = plant.now;
    plant.rings.clear();
    while plant.rings.is_empty() {
        plant.step();
    }
    assert!(plant.now - anyway >= Duration::from_secs(1));
}
