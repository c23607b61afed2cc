//! When the checks run, on a paused clock and against probes that only take time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Ask, MAX_CONCURRENT};
use crate::health::{Answer, CheckKind, CheckSpec, Checker, Part, ProbeError, ProbeKey, ProbeReport, Target, Via};
use model::ids::ServerId;

const SECOND: Duration = Duration::from_secs(1);
/// What tokio's timers round up to.
const TIMER_STEP: Duration = Duration::from_millis(1);

/// Servers that are told apart by their port, and a record of how they were asked.
#[derive(Clone, Default)]
struct Servers(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    starts: HashMap<u16, Vec<Instant>>,
    asked_now: HashMap<u16, usize>,
    /// The most that was ever seen of one server, and of all together.
    most_of_one: usize,
    most_of_all: usize,
}

impl Servers {
    /// A probe that takes what `duration` says for the n-th probe of a port, from 0.
    fn ask(&self, duration: impl Fn(u16, usize) -> Duration + Send + Sync + 'static) -> Ask {
        let servers = self.clone();
        let duration = Arc::new(duration);
        Arc::new(move |spec, _| {
            let (servers, duration) = (servers.clone(), duration.clone());
            Box::pin(async move {
                let port = spec.target.address.port();
                let (probe, _asking) = servers.begin(port);
                let duration = duration(port, probe);
                tokio::time::sleep(duration).await;
                Ok(answer(duration))
            })
        })
    }

    fn begin(&self, port: u16) -> (usize, Asking) {
        let mut record = self.0.lock().unwrap();
        let starts = record.starts.entry(port).or_default();
        starts.push(now());
        let probe = starts.len() - 1;
        let asked = record.asked_now.entry(port).or_default();
        *asked += 1;
        let of_one = *asked;
        record.most_of_one = record.most_of_one.max(of_one);
        record.most_of_all = record.most_of_all.max(record.asked_now.values().sum());
        (probe, Asking(self.clone(), port))
    }

    fn starts(&self, port: u16) -> Vec<Instant> {
        self.0.lock().unwrap().starts.get(&port).cloned().unwrap_or_default()
    }
}

/// A probe under way, finished or dropped.
struct Asking(Servers, u16);

impl Drop for Asking {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap().asked_now.get_mut(&self.1).unwrap() -= 1;
    }
}

fn key(server: u32) -> ProbeKey {
    ProbeKey { server: ServerId::numbered(server), part: Part::Check }
}

fn answer(latency: Duration) -> Answer {
    Answer { latency, report: None }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn target(address: SocketAddr) -> Target {
    Target { address, via: Via::default(), source_port: None, service: String::new(), server: String::new() }
}

fn spec(port: u16, interval: Duration) -> CheckSpec {
    CheckSpec { kind: CheckKind::Tcp, target: target(([127, 0, 0, 1], port).into()), interval, timeout: SECOND }
}

fn checker(servers: &Servers, duration: impl Fn(u16, usize) -> Duration + Send + Sync + 'static) -> (Checker, Reports) {
    let (sender, receiver) = mpsc::channel(16);
    (Checker::asking(sender, servers.ask(duration), MAX_CONCURRENT), Reports(receiver))
}

struct Reports(mpsc::Receiver<ProbeReport>);

impl Reports {
    /// What comes within a time, received as it comes.
    async fn during(&mut self, time: Duration) -> Vec<ProbeReport> {
        let end = tokio::time::Instant::now() + time;
        let mut reports = Vec::new();
        while let Ok(report) = tokio::time::timeout_at(end, self.0.recv()).await {
            reports.push(report.expect("the checker lives"));
        }
        reports
    }
}

#[tokio::test(start_paused = true)]
async fn probes_start_one_interval_apart_without_drift() {
    const ROUNDS: u32 = 2_000;
    let servers = Servers::default();
    // The probes take 0 to 96 ms.
    let (mut checker, mut reports) = checker(&servers, |_, probe| Duration::from_millis(probe as u64 * 7 % 97));
    let interval = Duration::from_micros(333_333);
    let began = now();
    checker.set(key(1), spec(1, interval));
    reports.during(interval * ROUNDS).await;

    let starts = servers.starts(1);
    // The last one may be due, but its timer not.
    assert!(starts.len().abs_diff(ROUNDS as usize) <= 1, "{}", starts.len());
    assert!(starts[0] - began <= interval + TIMER_STEP);
    for (round, start) in starts.iter().enumerate() {
        // The first start may itself be late by a timer step.
        let drift = (*start + TIMER_STEP) - (starts[0] + interval * round as u32);
        assert!(drift <= 2 * TIMER_STEP, "round {round}: {drift:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_longer_than_the_interval_takes_the_place_of_the_next_ones() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::from_millis(2_500));
    checker.set(key(1), spec(1, SECOND));
    reports.during(30 * SECOND).await;

    let starts = servers.starts(1);
    assert_eq!(starts.len(), 10);
    for pair in starts.windows(2) {
        assert!((pair[1] - pair[0]).abs_diff(3 * SECOND) <= TIMER_STEP, "{:?}", pair[1] - pair[0]);
    }
    assert_eq!(servers.0.lock().unwrap().most_of_one, 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_servers_are_spread_evenly_over_the_interval() {
    const SERVERS: u16 = 1_000;
    const ROUNDS: usize = 3;
    const PARTS: usize = 50;
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::from_millis(5));
    let began = now();
    for port in 0..SERVERS {
        checker.set(key(port.into()), spec(port, SECOND));
    }
    let reported = reports.during(SECOND * ROUNDS as u32 + Duration::from_millis(10)).await;
    assert!(reported.len() >= ROUNDS * SERVERS as usize, "{}", reported.len());

    let mut parts = [0; PARTS];
    for port in 0..SERVERS {
        let phase = (servers.starts(port)[0] - began).as_millis() as usize;
        parts[(phase * PARTS / 1_000).min(PARTS - 1)] += 1;
    }
    let even = SERVERS as usize / PARTS;
    assert!(parts.iter().all(|count: &usize| count.abs_diff(even) <= 5), "{parts:?}");
    // 5 ms of 1,000 servers in 1 s: 5 at a time, were they perfectly even; timers start some together.
    let most = servers.0.lock().unwrap().most_of_all;
    assert!(most <= 16, "{most}");
}

#[tokio::test(start_paused = true)]
async fn no_more_probes_run_at_once_than_allowed_and_all_get_their_turn() {
    const SERVERS: u16 = 100;
    const AT_ONCE: usize = 8;
    let servers = Servers::default();
    let (sender, receiver) = mpsc::channel(16);
    // 100 servers of a second each, 8 at a time: 12.5 s for a round of what is due once a second.
    let mut checker = Checker::asking(sender, servers.ask(|_, _| SECOND), AT_ONCE);
    for port in 0..SERVERS {
        checker.set(key(port.into()), spec(port, SECOND));
    }
    Reports(receiver).during(60 * SECOND).await;
    let counts: Vec<_> = (0..SERVERS).map(|port| servers.starts(port).len()).collect();
    assert!(counts.iter().all(|count| (4..=5).contains(count)), "{counts:?}");
    let record = servers.0.lock().unwrap();
    assert_eq!((record.most_of_all, record.most_of_one), (AT_ONCE, 1));
}

#[tokio::test(start_paused = true)]
async fn a_report_has_the_result_and_its_time() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::from_millis(40));
    checker.set(key(7), spec(1, SECOND));
    let report = reports.0.recv().await.unwrap();
    assert_eq!((report.key, report.result), (key(7), Ok(answer(Duration::from_millis(40)))));
    let took = report.at - servers.starts(1)[0];
    assert!(took.abs_diff(Duration::from_millis(40)) <= TIMER_STEP, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_removed_server_is_asked_no_more_and_its_late_reports_are_told() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::ZERO);
    checker.set(key(1), spec(1, SECOND));
    checker.set(key(2), spec(2, SECOND));
    let report = loop {
        let report = reports.0.recv().await.unwrap();
        if report.key == key(1) {
            break report;
        }
    };
    assert!(checker.is_current(&report));
    checker.remove(key(1));
    assert!(!checker.is_current(&report));
    let asked = servers.starts(1).len();
    let later = reports.during(10 * SECOND).await;
    assert!(later.iter().all(|report| report.key == key(2)) && later.len() >= 9);
    assert_eq!(servers.starts(1).len(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_check_never_runs_beside_the_new_one() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::from_millis(900));
    let mut late = None;
    for round in 1..=20u32 {
        // Another interval makes it another check, of the same server.
        checker.set(key(1), spec(1, SECOND + Duration::from_millis(round.into())));
        if let Some(late) = &late {
            assert!(!checker.is_current(late));
        }
        late = reports.during(Duration::from_millis(2_400)).await.pop();
        assert!(checker.is_current(late.as_ref().expect("a probe ends within two intervals")));
        // On to the middle of a probe.
        let asked = servers.starts(1).len();
        while servers.starts(1).len() == asked {
            reports.during(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(servers.0.lock().unwrap().most_of_one, 1);
}

#[tokio::test(start_paused = true)]
async fn setting_the_same_check_again_does_not_disturb_it() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::from_millis(300));
    let mut reported = Vec::new();
    for _ in 0..100 {
        checker.set(key(1), spec(1, SECOND));
        reported.extend(reports.during(Duration::from_millis(100)).await);
    }
    // The last probe may still be running.
    assert!((9..=10).contains(&reported.len()), "{}", reported.len());
    assert!(reported.iter().all(|report| checker.is_current(report)));
}

#[tokio::test(start_paused = true)]
async fn a_full_channel_holds_probes_back_and_loses_no_result() {
    let servers = Servers::default();
    let (sender, mut receiver) = mpsc::channel(1);
    let mut checker = Checker::asking(sender, servers.ask(|_, probe| probe as u32 * TIMER_STEP), 1);
    checker.set(key(1), spec(1, SECOND));
    tokio::time::sleep(60 * SECOND).await;
    // One report in the channel, one waiting to get in.
    assert_eq!(servers.starts(1).len(), 2);
    for probe in 0..10 {
        assert_eq!(receiver.recv().await.unwrap().result, Ok(answer(probe * TIMER_STEP)));
    }
}

#[tokio::test(start_paused = true)]
async fn checks_end_with_the_checker_and_with_the_receiver() {
    let servers = Servers::default();
    let (mut dropped, mut kept_reports) = checker(&servers, |_, _| Duration::ZERO);
    dropped.set(key(1), spec(1, SECOND));
    kept_reports.during(2 * SECOND).await;
    drop(dropped);
    // The channel closes once no task holds its sender.
    while kept_reports.0.recv().await.is_some() {}

    let (mut kept, dropped_reports) = checker(&servers, |_, _| Duration::ZERO);
    drop(dropped_reports);
    kept.set(key(2), spec(2, SECOND));
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(servers.starts(2).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_is_raised_to_the_least() {
    let servers = Servers::default();
    let (mut checker, mut reports) = checker(&servers, |_, _| Duration::ZERO);
    checker.set(key(1), spec(1, Duration::ZERO));
    reports.during(SECOND).await;
    let asked = servers.starts(1).len();
    assert!((99..=101).contains(&asked), "{asked}");
}

#[tokio::test]
async fn the_checker_asks_real_servers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (sender, mut reports) = mpsc::channel(16);
    let mut checker = Checker::new(sender);
    let interval = CheckSpec::MIN_INTERVAL;
    checker.set(
        key(1),
        CheckSpec { target: target(listener.local_addr().unwrap()), timeout: 20 * SECOND, ..spec(0, interval) },
    );
    checker.set(
        key(2),
        CheckSpec { target: target(taken.local_addr().unwrap()), timeout: 20 * SECOND, ..spec(0, interval) },
    );
    let mut seen = [0; 2];
    while seen.contains(&0) {
        let report = reports.recv().await.unwrap();
        let first = report.key == key(1);
        if first {
            assert!(report.result.is_ok(), "{:?}", report.result);
        } else {
            assert_eq!(report.result, Err(ProbeError::Refused));
        }
        seen[usize::from(!first)] += 1;
    }
}
