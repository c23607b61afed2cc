//! What clients read, letter by letter: documents and metrics made of values that hold every state and reason once.
//!
//! A difference from the files in `golden/` breaks somebody's program. Where it is meant, the test prints what to put there.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::metrics::{Scrape, render};
use super::types::doctor::{Finding, Grade};
use super::types::flows::{Affinity, FlowCount, NatFlow};
use super::types::{Change, Changed, ChannelsReport, Failure, QualityReport, QueueReport, Snapshot, StandbyReport};
use crate::controller::status::{
    BackendStatus, ChannelsStatus, ControllerStatus, GatewayStatus, GroupStatus, InterfaceStatus, Named, QualityStatus,
    QueueStatus, QueueSummary, ServerChannelsStatus, ServerQualityStatus, ServerState, ServiceStatus,
    StandbyServerStatus, StandbyServiceStatus, StandbyStatus, TablesStatus,
};
use crate::dataplane::attached_program::AttachMode;
use crate::dataplane::flows;
use decide::channel::explain::{self as channel, ChannelReport, Death, Moment, SlotChange, State};
use decide::quality::eject::Cause;
use decide::quality::explain::{EjectionReport, MarkReport, Reason, ServerReport, SignalReport};
use decide::quality::signal::{ChannelKey, Kind, ReportedLoad, SelfReport, SelfReportState};
use decide::queue::report as queue;
use decide::standby::explain as pool;
use decide::standby::keys::{ServiceKey, StandbyKey};
use decide::standby::need::{Breach, Quantity};
use decide::standby::reason::{Problem, Why};
use decide::tiers::explain::{Course, Role, TierReport};
use loadbalancer_common::backend::BackendCounters;
use model::address::{Listen, Protocol};
use model::ids::ServerId;

const TAKEN_MS: u64 = 1_790_000_000_123;
const UPTIME: Duration = Duration::from_millis(100_500);

fn assert_golden(name: &str, golden: &str, now: &str) {
    assert!(golden.trim_end() == now, "golden/{name} should be:\n{now}");
}

/// A document of what the controller tells has the golden text, and can be read back from it.
fn assert_document<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    name: &str,
    golden: &str,
    status: impl Into<T>,
) {
    let document: T = status.into();
    assert_golden(name, golden, &serde_json::to_string_pretty(&document).expect("it is plain data"));
    assert_eq!(serde_json::from_str::<T>(golden).expect("it was written so"), document);
}

fn gateway() -> GatewayStatus {
    let states = [
        ServerState::Up,
        ServerState::Down,
        ServerState::Unreachable,
        ServerState::Drained,
        ServerState::Ejected,
        ServerState::Unchecked,
        ServerState::Unknown,
        ServerState::Leaving,
    ];
    let servers = states.into_iter().zip(1u8..).map(|(state, number)| BackendStatus {
        name: format!("web{number}"),
        address: [10, 0, 0, number].into(),
        port: (number != 2).then_some(8080),
        tier: number % 2,
        state,
        reason: (state == ServerState::Down).then(|| "connection refused".to_owned()),
        weight: 10 * u32::from(number),
        share: 0.125 * f64::from(number),
        active: 3 * u32::from(number),
        high_water: (number != 3).then_some(100),
        hot_mark: (number == 1).then_some(50),
        check_latency: (number < 6).then_some(Duration::from_micros(1_250)),
        in_state_for: (number < 6).then_some(Duration::from_millis(77_900)),
        counters: BackendCounters {
            packets: 1_000_000,
            bytes: 1_500_000_000,
            flows: 12_345,
            reply_packets: 2_000,
            reply_bytes: 90_000,
        },
    });
    let listen =
        |addr: &str| Listen { addr: addr.parse().expect("it is an address"), port: Some(80), protocol: Protocol::Tcp };
    let web = ServiceStatus {
        name: "web".to_owned(),
        mode: "dsr-ipip",
        listen: vec![listen("192.0.2.1"), listen("2001:db8::1")],
        outcomes: [("forwarded", 9), ("full", 2)].into(),
        servers: servers.collect(),
        queue: Some(QueueSummary { waiting: 4, oldest_s: Some(1.25), released: 1_000, not_released: 17 }),
    };
    let idle = ServiceStatus { name: "idle".to_owned(), mode: "nat", ..ServiceStatus::default() };
    let interface = |name: &str, mode: Option<AttachMode>, problem: Option<&str>| InterfaceStatus {
        name: name.to_owned(),
        mode,
        problem: problem.map(str::to_owned),
    };
    GatewayStatus {
        taken_ms: TAKEN_MS,
        controller: Some(ControllerStatus {
            version: "0.1.0",
            pid: 4711,
            uptime: Duration::from_millis(3_600_900),
            config: "/etc/loadbalancer.toml".into(),
            adopted: true,
            interfaces: vec![
                interface("eth0", Some(AttachMode::Native), None),
                interface("eth1", Some(AttachMode::Generic), Some("it is down")),
                interface("eth2", None, Some("it does not exist")),
            ],
            reload_error: Some("web: no server".to_owned()),
            warnings: vec!["the maps cannot be written".to_owned()],
            map_writes: 42,
            repairs: 1,
        }),
        services: vec![web, idle],
        unserved: [("not_ours", 5)].into(),
        tables: TablesStatus { affinity_entries: 7, affinity_capacity: 1_048_576, nat_flows: 3, nat_capacity: 65_536 },
    }
}

fn breaches() -> [Breach; 4] {
    let breach = |of, value, level| Breach { of, value, level };
    [
        breach(Quantity::P90, 0.25, 0.1),
        breach(Quantity::Failures, 0.03, 0.01),
        breach(Quantity::Load, 75.5, 50.0),
        breach(Quantity::Servers, 0.0, 1.0),
    ]
}

/// A server for each reason, with all kinds of signals, words and causes.
fn server_qualities() -> Vec<ServerReport> {
    let reasons = [
        None,
        Some(Reason::Configured),
        Some(Reason::Slower { slowness: 1.5 }),
        Some(Reason::Faster { slowness: 0.75 }),
        Some(Reason::Failing { rate: 0.125 }),
        Some(Reason::Ejected(Cause::MoreThanPeers(Kind::Response))),
        Some(Reason::EjectionOver),
        Some(Reason::Panic),
        Some(Reason::SlowStart),
        Some(Reason::SelfReport),
        Some(Reason::Down),
        Some(Reason::Peers),
    ];
    let kinds = [Kind::Response, Kind::Check, Kind::Monitor(0), Kind::Handshake];
    let words = [SelfReportState::Up, SelfReportState::Down, SelfReportState::Drain, SelfReportState::Maintenance];
    let causes = [Cause::InARow(Kind::Check), Cause::MoreThanPeers(Kind::Monitor(2)), Cause::Before];
    let server = |(number, reason): (u32, &Option<Reason>)| {
        let index = number as usize;
        let kind = kinds[index % kinds.len()];
        let bare = number == 0;
        let signal = |kind| SignalReport {
            kind,
            samples: 120.5,
            mean_s: (kind != Kind::Check).then_some(0.004),
            p90_s: (kind != Kind::Check).then_some(0.0085),
            loss: 0.01,
            errors: 0.02,
        };
        ServerReport {
            server: ServerId::numbered(number + 1),
            nominal_weight: 10,
            share: 0.25,
            published_share: 0.5,
            factor: 0.875,
            slow_start: 1.0,
            serving: !bare,
            up: true,
            stale: bare,
            active: 12,
            slowness: (!bare).then_some(1.125),
            noise: (!bare).then_some(0.05),
            signal: (!bare).then_some(kind),
            badness: (!bare).then_some(1.25),
            correcting: !bare,
            signals: if bare { Vec::new() } else { kinds.map(signal).to_vec() },
            self_report: SelfReport {
                state: words[index % words.len()],
                weight_percent: 100,
                max_connections: (!bare).then_some(500),
                load: (!bare).then_some(ReportedLoad { cpu: Some(0.5), memory: None, requests_in_flight: Some(9) }),
            },
            mark: (!bare).then_some(MarkReport {
                flows: 64,
                baseline_s: Some(0.003),
                latency_s: None,
                signal: Some(kind),
                lowered: true,
            }),
            ejection: (number % 2 == 1).then_some(EjectionReport {
                cause: causes[index / 2 % causes.len()],
                ends_in_s: 12.5,
                count: 2,
            }),
            last_change: reason.map(|reason| decide::quality::explain::Change {
                at_s: 99.75,
                from: 0.125,
                to: 0.25,
                reason,
            }),
        }
    };
    (0..).zip(&reasons).map(server).collect()
}

fn quality() -> QualityStatus {
    let courses =
        [Course::Alone, Course::Holds, Course::Rises, Course::Spent, Course::Steady, Course::Falls, Course::Unknown];
    let roles = [Role::First, Role::Helps, Role::Waits];
    let mut groups = vec![GroupStatus {
        service: "web".to_owned(),
        tier: 0,
        panic: true,
        published_at_s: None,
        flows_per_sample: 16,
        help: None,
        servers: server_qualities()
            .into_iter()
            .zip(1..)
            .map(|(report, number)| ServerQualityStatus { name: format!("web{number}"), number, report })
            .collect(),
    }];
    groups.extend((0u8..).zip(courses).map(|(number, course)| GroupStatus {
        service: "mail".to_owned(),
        tier: number,
        published_at_s: Some(5.5),
        help: Some(TierReport {
            role: roles[usize::from(number) % roles.len()],
            of_weight: 0.5,
            share: 0.25,
            first: (course != Course::Unknown).then_some(0),
            course,
            nearest: breaches().get(usize::from(number)).copied(),
        }),
        ..GroupStatus::default()
    }));
    QualityStatus { taken_ms: TAKEN_MS, uptime: UPTIME, rings: 8, groups }
}

fn channels() -> ChannelsStatus {
    let ms = Duration::from_millis;
    let dead = |cause| State::Dead { cause, since: ms(2_500), good_probes: 1 };
    let all = [
        (State::Unknown, channel::Reason::Configured),
        (State::Good, channel::Reason::Died(Death::ProbesMissed)),
        (State::Stale, channel::Reason::PeerDied),
        (dead(Death::ProbesMissed), channel::Reason::Loses { loss: 0.25 }),
        (dead(Death::LinkDown), channel::Reason::Worse { score: ms(40) }),
        (State::Good, channel::Reason::Better { score: ms(8) }),
    ];
    let named = all.into_iter().zip(0..).map(|((state, reason), number)| {
        let known = state != State::Unknown;
        let moment = Moment { at: ms(99_000), srtt: None, loss: 0.0, score: None, dead: true, slots: 0 };
        Named {
            name: format!("channel{number}"),
            report: ChannelReport {
                channel: ChannelKey(number),
                capacity: 1_000,
                state,
                link_up: true,
                srtt: known.then_some(ms(12)),
                rttvar: known.then_some(ms(3)),
                loss: 0.05,
                sure_loss: 0.025,
                score: known.then_some(ms(24)),
                share: 0.25,
                slots: 2,
                deaths: 1,
                last_change: known.then_some(SlotChange { at: ms(90_250), from: 4, to: 2, reason }),
                history: if known {
                    vec![moment, Moment { srtt: Some(ms(12)), score: Some(ms(24)), dead: false, slots: 2, ..moment }]
                } else {
                    Vec::new()
                },
            },
        }
    });
    let server = ServerChannelsStatus {
        service: "web".to_owned(),
        server: "web1".to_owned(),
        reachable: true,
        slots: vec![Some("channel1".to_owned()), None],
        channels: named.collect(),
    };
    ChannelsStatus { taken_ms: TAKEN_MS, uptime: UPTIME, servers: vec![server] }
}

fn standby() -> StandbyStatus {
    let ms = Duration::from_millis;
    let phases = [
        (pool::Phase::Idle, None, None),
        (pool::Phase::Starting, Some(Why::Need(breaches()[0])), None),
        (pool::Phase::Checking, Some(Why::Minimum), Some(Problem::StartHook("exit code 1".to_owned()))),
        (pool::Phase::Serving, Some(Why::Adopted), Some(Problem::StopHook("killed".to_owned()))),
        (pool::Phase::Draining, None, Some(Problem::Checks)),
        (pool::Phase::Stopping, None, Some(Problem::Down)),
        (pool::Phase::Failed, None, None),
    ];
    let servers = phases.into_iter().zip(1u8..).map(|((state, why, last_problem), number)| StandbyServerStatus {
        name: format!("spare{number}"),
        address: Some([10, 0, 1, number].into()),
        leased_to: why.is_some().then(|| "web".to_owned()),
        report: pool::ServerReport {
            server: StandbyKey(number.into()),
            weight: 10,
            state,
            since: ms(12_500),
            service: why.is_some().then_some(ServiceKey(1)),
            why,
            flows: (state == pool::Phase::Draining).then_some(6),
            free_in: (state == pool::Phase::Failed).then_some(ms(30_000)),
            failures: u32::from(last_problem.is_some()),
            last_problem,
        },
    });
    let waits = [
        None,
        Some(pool::Waits::Hold),
        Some(pool::Waits::Starting),
        Some(pool::Waits::Settling),
        Some(pool::Waits::AtMaximum),
        Some(pool::Waits::PoolEmpty),
    ];
    let services = waits.into_iter().zip(1..).map(|(waits, number)| StandbyServiceStatus {
        name: format!("service{number}"),
        has: waits.iter().map(|_| "spare2".to_owned()).collect(),
        report: pool::ServiceReport {
            service: ServiceKey(number),
            leases: waits.iter().map(|_| StandbyKey(2)).collect(),
            min: 0,
            max: u32::MAX,
            load: waits.map(|_| 75.5),
            p90: waits.map(|_| ms(250)),
            failure_share: 0.03,
            breach: waits.and_then(|_| breaches().get(number as usize - 2).copied()),
            breach_for: waits.map(|_| ms(9_000)),
            recovered_for: waits.is_none().then_some(ms(60_000)),
            give_back_after: ms(120_000),
            waits,
        },
    });
    StandbyStatus { taken_ms: TAKEN_MS, uptime: UPTIME, servers: servers.collect(), services: services.collect() }
}

fn queues() -> QueueStatus {
    let class = |name: Option<&str>, priority| queue::ClassReport {
        name: name.map(str::to_owned),
        priority,
        waiting: 3,
        oldest_s: name.map(|_| 2.5),
        wait_p50_s: name.map(|_| 0.5),
        wait_p99_s: name.map(|_| 4.5),
        waits: 100,
        waited_s: 61.25,
        arrived: 120,
        ends: [10, 11, 12, 13, 14, 15, 16, 17],
        overloaded: name.is_some(),
    };
    let service = queue::ServiceReport {
        name: "web".to_owned(),
        waiting: 6,
        unverified: 2,
        challenges: true,
        repeated: 11,
        most: 10_000,
        classes: vec![class(None, 3), class(Some("gold"), 1)],
    };
    QueueStatus {
        taken_ms: TAKEN_MS,
        error: Some("cannot send what has waited".to_owned()),
        report: queue::QueueReport { memory: 12_288, memory_limit: 1_073_741_824, services: vec![service] },
    }
}

#[test]
fn documents_of_the_controller_are_read_as_ever() {
    assert_document::<Snapshot>("snapshot.json", include_str!("golden/snapshot.json"), gateway());
    assert_document::<QualityReport>("quality.json", include_str!("golden/quality.json"), quality());
    assert_document::<ChannelsReport>("channels.json", include_str!("golden/channels.json"), channels());
    assert_document::<StandbyReport>("standby.json", include_str!("golden/standby.json"), standby());
    assert_document::<QueueReport>("queue.json", include_str!("golden/queue.json"), queues());
}

/// A controller of before queues were told of.
#[test]
fn a_snapshot_without_queues_is_read() {
    let mut value = serde_json::to_value(Snapshot::from(gateway())).expect("it is plain data");
    let service = value["services"][0].as_object_mut().expect("it is a service");
    assert!(service.remove("queue").is_some());
    let read: Snapshot = serde_json::from_value(value).expect("it is a snapshot all the same");
    assert_eq!(read.services[0].queue, None);
}

#[test]
fn changes_and_their_answers_are_read_as_ever() {
    for (change, text) in
        [(Change::Drain, r#""drain""#), (Change::Enable, r#""enable""#), (Change::Weight(5), r#"{"weight":5}"#)]
    {
        assert_eq!(serde_json::to_string(&change).expect("it is plain data"), text);
        assert_eq!(serde_json::from_str::<Change>(text).expect("it was written so"), change);
    }
    let changed = Changed { server: "web/web1".to_owned() };
    assert_eq!(serde_json::to_string(&changed).expect("it is plain data"), r#"{"server":"web/web1"}"#);
    let failure = Failure { error: "no".to_owned() };
    assert_eq!(serde_json::to_string(&failure).expect("it is plain data"), r#"{"error":"no"}"#);
}

#[test]
fn documents_of_the_command_line_are_read_as_ever() {
    let socket = |text: &str| text.parse().expect("it is an address");
    let nat = flows::NatFlow {
        protocol: "tcp".to_owned(),
        client: socket("198.51.100.7:40000"),
        vip: socket("192.0.2.1:80"),
        source: socket("10.0.0.254:2048"),
        server: socket("10.0.0.1:8080"),
        state: "established".to_owned(),
        idle_seconds: 3,
    };
    let found = flows::Affinity { server: "10.0.0.1:8080".to_owned(), state: "closing".to_owned(), idle_seconds: 5 };
    let count = flows::Count { server: "10.0.0.1".to_owned(), affinity: 7, nat: 2, active: 6 };
    let finding = |grade, mend: &str| Finding {
        subject: "kernel".to_owned(),
        grade,
        finding: "Linux 6.12".to_owned(),
        mend: mend.to_owned(),
    };
    let findings = [
        finding(Grade::Good, ""),
        finding(Grade::Note, "nothing"),
        finding(Grade::Warning, "something"),
        finding(Grade::Problem, "much"),
    ];
    let text = |value: serde_json::Result<String>| value.expect("it is plain data");
    let all = [
        text(serde_json::to_string_pretty(&[NatFlow::from(nat)])),
        text(serde_json::to_string_pretty(&Affinity::from(found))),
        text(serde_json::to_string_pretty(&[FlowCount::from(count)])),
        text(serde_json::to_string_pretty(&findings)),
    ];
    assert_golden("cli.txt", include_str!("golden/cli.txt"), &all.join("\n"));
}

#[test]
fn metrics_are_read_as_ever() {
    let scrape =
        Scrape { gateway: gateway(), quality: quality(), channels: channels(), standby: standby(), queue: queues() };
    let text = render(&scrape);
    // Series of a family are in no order.
    let mut lines: Vec<&str> = text.lines().collect();
    for series in lines.chunk_by_mut(|one, other| one.starts_with('#') == other.starts_with('#')) {
        if !series[0].starts_with('#') {
            series.sort_unstable();
        }
    }
    assert_golden("metrics.txt", include_str!("golden/metrics.txt"), &lines.join("\n"));
}
