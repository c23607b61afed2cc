//! The loop of a group: who serves, with what weight, and when a ring is due.

use super::*;
use crate::quality::marks;

const TICK: Duration = Duration::from_millis(250);
const BAD: ServerId = ServerId::numbered(0);

/// Four servers, of which one gives the results that it is told while the others are good.
struct Bench {
    group: Group,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        let mut group = Group::new(Settings::default(), Duration::ZERO);
        for key in 0..4 {
            let nominal = Nominal { weight: 1, high_water: None };
            group.set_server(ServerId::numbered(key), nominal, Entry::Known, Duration::ZERO);
        }
        let mut bench = Self { group, now: Duration::ZERO };
        bench.probe(40, true);
        bench
    }

    /// One probe of each server in each of so many ticks.
    fn probe(&mut self, ticks: u32, good: bool) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..ticks {
            self.now += TICK;
            for key in 0..4 {
                let target = ServerId::numbered(key).into();
                let good = good || ServerId::numbered(key) != BAD;
                let result = if good { Ok(Duration::from_millis(5)) } else { Err(Failure::Error) };
                self.group.sample(&Sample { target, kind: Kind::Check, result }, self.now);
            }
            events.extend(self.group.step(self.now).events);
        }
        events
    }

    /// Down by its check after two failures for so long, then up again.
    fn crash(&mut self, ticks: u32) -> Vec<Event> {
        let mut events = self.probe(2, false);
        self.group.set_up(BAD, false);
        events.extend(self.probe(ticks, false));
        events.extend(self.probe(1, true));
        self.group.set_up(BAD, true);
        events
    }

    fn is_serving(&mut self) -> bool {
        self.group.step(self.now).servers[0].weight > 0
    }
}

#[test]
fn a_server_that_was_down_serves_as_soon_as_its_check_says_that_it_is_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.crash(40), [], "a check that takes it down needs no ejection");
    assert!(bench.is_serving());
    assert_eq!(bench.probe(200, true), []);
}

#[test]
fn failures_in_a_row_until_it_was_taken_down_do_not_keep_it_out_afterwards() {
    let mut bench = Bench::new();
    let events = bench.probe(5, false);
    assert!(matches!(events[..], [Event::Ejected { server: BAD, .. }]), "{events:?}");
    bench.group.set_up(BAD, false);
    bench.probe(10, false);
    bench.probe(1, true);
    bench.group.set_up(BAD, true);
    assert!(bench.is_serving());
}

#[test]
fn a_slow_server_that_its_check_takes_down_does_not_come_back_as_if_nothing_was() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        for (up, result) in [
            (true, Ok(Duration::from_millis(900))),
            (true, Err(Failure::Late(Duration::from_secs(1)))),
            (false, Err(Failure::Late(Duration::from_secs(1)))),
            (true, Ok(Duration::from_millis(900))),
        ] {
            bench.group.set_up(BAD, up);
            for _ in 0..2 {
                bench.now += TICK;
                for key in 0..4 {
                    let target = ServerId::numbered(key).into();
                    let result = if ServerId::numbered(key) == BAD { result } else { Ok(Duration::from_millis(5)) };
                    bench.group.sample(&Sample { target, kind: Kind::Check, result }, bench.now);
                }
                bench.group.step(bench.now);
            }
        }
    }
    let report = &bench.group.explain(bench.now).servers[0];
    assert!(report.ejection.is_some() || report.factor < 0.1, "{report:?}");
}

#[test]
fn after_slow_start_a_server_that_was_down_has_the_share_that_it_had() {
    let mut bench = Bench::new();
    bench.probe(4, false);
    bench.crash(8);
    bench.probe(4 * 31, true);
    let share = bench.group.explain(bench.now).servers[0].published_share;
    assert!((share / 0.25 - 1.0).abs() <= 0.05, "{share}");
}

fn group(servers: u32) -> (Group, Duration) {
    let mut group = Group::new(Settings::default(), Duration::ZERO);
    let nominal = Nominal { weight: 1, high_water: None };
    for key in 0..servers {
        group.set_server(ServerId::numbered(key), nominal, Entry::Known, Duration::ZERO);
    }
    assert!(group.step(TICK).publish, "the first ring");
    (group, TICK)
}

/// Seconds until a ring is published after one server's factor became another, all else being as it was.
fn published_after(servers: u32, factor: f64) -> Option<f64> {
    let (mut group, mut now) = group(servers);
    // Long enough for no ring to be held back, and short beside what noise has to wait for.
    now += Duration::from_secs(1);
    assert!(!group.step(now).publish, "nothing changed");
    let begun = now;
    group.servers.get_mut(&ServerId::numbered(0)).expect("it is there").factor = factor;
    while now < begun + Duration::from_secs(600) {
        if group.step(now).publish {
            return Some((now - begun).as_secs_f64());
        }
        now += TICK;
    }
    None
}

#[test]
fn a_small_change_of_one_server_is_published_the_later_the_more_servers_there_are() {
    let cases = [
        ("of four", 4, 0.93, 0.0..=0.5),
        ("of a hundred", 100, 0.93, 10.0..=60.0),
        ("of a thousand", 1_000, 0.93, 60.0..=300.0),
        ("much slower", 1_000, 0.7, 0.0..=0.0),
        ("faster", 1_000, 1.3, 0.0..=0.0),
    ];
    for (name, servers, factor, wanted) in cases {
        let after = published_after(servers, factor);
        assert!(after.is_some_and(|after| wanted.contains(&after)), "{name}: {after:?}");
    }
    assert_eq!(published_after(1_000, 0.97), None, "less than is worth a look");
}

#[test]
fn a_server_goes_on_with_what_an_earlier_controller_made_of_it() {
    let mut group = Group::new(Settings::default(), Duration::ZERO);
    let nominal = Nominal { weight: 1, high_water: None };
    let as_before = Adopted { factor: 1.0, starting: false, ejected: false };
    for (key, adopted) in [
        Adopted { factor: 0.05, ..as_before },
        Adopted { factor: 1.95, ..as_before },
        as_before,
        Adopted { ejected: true, ..as_before },
    ]
    .into_iter()
    .enumerate()
    {
        group.set_server(ServerId::numbered(key as u32), nominal, Entry::Adopted(adopted), Duration::ZERO);
    }
    let mut now = Duration::ZERO;
    let mut weights = |seconds| {
        let mut step = Step::default();
        let end = now + Duration::from_secs(seconds);
        while now < end {
            now += TICK;
            step = group.step(now);
        }
        step.servers.iter().map(|server| server.weight).collect::<Vec<u32>>()
    };
    assert_eq!(weights(1), [50, 1_950, 1_000, 0]);
    assert_eq!(weights(28), [50, 1_950, 1_000, 0], "with nothing measured, nothing moves");
    assert!((100..200).contains(&weights(2)[3]), "the ejection is over, and slow start begins");
    let configured = Settings { measured: false, ..Settings::default() };
    let mut group = Group::new(configured, Duration::ZERO);
    for (key, ejected) in [(0, false), (1, true)] {
        let adopted = Adopted { factor: 0.05, ejected, ..as_before };
        group.set_server(ServerId::numbered(key), nominal, Entry::Adopted(adopted), Duration::ZERO);
    }
    assert!(group.step(TICK).servers.iter().all(|server| server.weight == 1_000), "weights are as configured");
}

#[test]
fn an_ejected_server_of_a_thousand_is_published_at_once() {
    let (mut group, now) = group(1_000);
    let now = now + Duration::from_secs(1);
    for _ in 0..5 {
        let target = ServerId::numbered(7).into();
        group.sample(&Sample { target, kind: Kind::Check, result: Err(Failure::Error) }, now);
    }
    let step = group.step(now);
    assert!(step.publish, "{:?}", step.events);
    assert!(
        matches!(step.events[..], [Event::Ejected { server, .. }] if server == ServerId::numbered(7)),
        "{:?}",
        step.events
    );
}

/// Two servers whose marks follow latency.
struct Marked {
    group: Group,
    now: Duration,
}

impl Marked {
    fn new(high_water: Option<u32>, entry: Entry) -> Self {
        let settings = Settings { marks: Some(marks::Settings::default()), ..Settings::default() };
        let mut group = Group::new(settings, Duration::ZERO);
        for key in 0..2 {
            group.set_server(ServerId::numbered(key), Nominal { weight: 1, high_water }, entry, Duration::ZERO);
        }
        Self { group, now: Duration::ZERO }
    }

    /// So many steps in which each server has as many flows as it may have, and answers ten times.
    fn step(&mut self, steps: u32, kind: Kind, latency_ms: u64) -> Step {
        let mut step = Step::default();
        for _ in 0..steps {
            self.now += TICK;
            for key in 0..2 {
                let target = ServerId::numbered(key).into();
                for _ in 0..10 {
                    let result = Ok(Duration::from_millis(latency_ms));
                    self.group.sample(&Sample { target, kind, result }, self.now);
                }
            }
            step = self.group.step(self.now);
            for server in &step.servers {
                self.group.set_active(server.server, server.high_water.expect("it has a mark"));
            }
        }
        step
    }

    fn high_water(&mut self) -> Option<u32> {
        self.group.step(self.now).servers[0].high_water
    }

    fn report(&self) -> crate::quality::explain::MarkReport {
        self.group.explain(self.now).servers[0].mark.expect("it has a mark")
    }
}

#[test]
fn the_mark_of_a_server_follows_its_latency_and_is_told_with_its_baseline() {
    let mut marked = Marked::new(None, Entry::Known);
    assert_eq!(marked.high_water(), Some(4), "nothing measured yet");
    assert_eq!(marked.report().signal, None);
    let grown = marked.step(60, Kind::Response, 10).servers[0].high_water;
    assert!(grown > Some(40), "{grown:?}");
    let report = marked.report();
    assert_eq!((Some(report.flows), report.signal), (grown, Some(Kind::Response)));
    assert!(report.baseline_s.is_some_and(|it| (it - 0.01).abs() < 1e-6), "{report:?}");
    let slow = marked.step(4, Kind::Response, 100).servers[0].high_water;
    assert!(slow < grown, "{slow:?}");
    assert_eq!(marked.report().latency_s, Some(0.1));
}

#[test]
fn the_smallest_of_the_configured_the_said_and_the_adaptive_mark_holds() {
    for (high_water, said, wanted) in [
        (None, None, 41..=100),
        (Some(30), None, 30..=30),
        (Some(30), Some(20), 20..=20),
        (Some(1_000), Some(20), 20..=20),
        (Some(1_000), Some(500), 41..=100),
    ] {
        let mut marked = Marked::new(high_water, Entry::Known);
        for key in 0..2 {
            marked.group.set_self_report(
                ServerId::numbered(key),
                SelfReport { max_connections: said, ..SelfReport::default() },
            );
        }
        let given = marked.step(60, Kind::Check, 10).servers[0].high_water;
        assert!(given.is_some_and(|it| wanted.contains(&it)), "{high_water:?}, {said:?}: {given:?}");
    }
}

#[test]
fn slow_start_gives_a_part_of_the_adaptive_mark() {
    let mut marked = Marked::new(None, Entry::New);
    assert_eq!(marked.high_water(), Some(1), "a tenth of four");
    let given = marked.step(60, Kind::Response, 10).servers[0].high_water;
    let flows = marked.report().flows;
    assert!(given < Some(flows), "{given:?} of {flows}");
}

#[test]
fn handshakes_alone_move_no_mark() {
    let mut marked = Marked::new(None, Entry::Known);
    assert_eq!(marked.step(200, Kind::Handshake, 1).servers[0].high_water, Some(4));
}

#[test]
fn without_adaptive_marks_only_what_is_configured_holds_and_they_go_with_a_reload() {
    let mut marked = Marked::new(None, Entry::Known);
    marked.step(40, Kind::Response, 10);
    marked.group.set_settings(&Settings::default());
    assert_eq!(marked.high_water(), None);
    assert_eq!(marked.group.explain(marked.now).servers[0].mark, None);
}

#[test]
fn marks_are_lowered_of_one_server_at_a_time() {
    let mut marked = Marked::new(None, Entry::Known);
    for key in 0..2 {
        // As an earlier controller has left them: their baseline is looked for at once.
        marked.group.set_active(ServerId::numbered(key), 100);
    }
    let mut lowered = [false; 2];
    for _ in 0..400 {
        marked.step(1, Kind::Response, 10);
        let now: Vec<bool> = marked
            .group
            .explain(marked.now)
            .servers
            .iter()
            .map(|server| server.mark.is_some_and(|mark| mark.lowered))
            .collect();
        assert_ne!(now, [true; 2]);
        lowered = [lowered[0] || now[0], lowered[1] || now[1]];
    }
    assert_eq!(lowered, [true; 2]);
}
