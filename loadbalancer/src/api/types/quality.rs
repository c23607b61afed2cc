//! Why the weights are what they are.

use decide::quality::eject::Cause;
use decide::quality::explain::{self, Reason};
use decide::quality::signal::{self, SelfReportState};
use decide::tiers::explain::{self as tiers, Course, Role};
use serde::{Deserialize, Serialize};

use super::standby::Breach;
use crate::controller::status::{GroupStatus, QualityStatus, ServerQualityStatus};

/// All weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Seconds since the controller's start, which other times are told in.
    pub uptime_s: f64,
    /// Rings published until now.
    pub rings: u64,
    pub services: Vec<QualityGroup>,
}

/// One tier of a service; with `nat` and `dnat` of one family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityGroup {
    pub service: String,
    pub tier: u8,
    /// Too few servers are in good order: ejected ones serve as well.
    pub panic: bool,
    /// When the last ring was published.
    pub published_at_s: Option<f64>,
    /// One flow in so many is sampled for passive signals; zero: none.
    pub flows_per_sample: u16,
    /// None: the service has no levels for its tiers.
    pub help: Option<TierHelp>,
    pub servers: Vec<ServerQuality>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerQuality {
    pub name: String,
    /// Its place in the configuration, from 1.
    pub server: u32,
    pub nominal_weight: u32,
    /// Share of the service's weight now, and in the ring.
    pub share: f64,
    pub published_share: f64,
    /// What the law makes of the nominal weight.
    pub factor: f64,
    /// Share of its weight that slow start gives it.
    pub slow_start: f64,
    pub serving: bool,
    pub up: bool,
    /// No monitor has given anything for a while: the weight is frozen.
    pub stale: bool,
    pub active: u32,
    /// Mean latency over that of the server in the middle; None: too few samples, the weight is frozen.
    pub slowness: Option<f64>,
    /// Standard error of its logarithm.
    pub noise: Option<f64>,
    /// Kind of the signal that the slowness is from.
    pub signal: Option<String>,
    /// Slowness with failures counted in: the score.
    pub badness: Option<f64>,
    /// The weight is being moved.
    pub correcting: bool,
    pub signals: Vec<Signal>,
    /// What the server's agent says.
    #[serde(rename = "word")]
    pub self_report: AgentReport,
    /// None: its mark does not follow latency.
    pub mark: Option<LatencyMark>,
    pub ejection: Option<Ejection>,
    pub last_change: Option<ShareChange>,
}

/// One kind of signal in the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// `response`, `check`, `monitor1` and so on, or `handshake`.
    pub kind: String,
    /// Successes in the window.
    pub samples: f64,
    pub mean_s: Option<f64>,
    pub p90_s: Option<f64>,
    pub loss: f64,
    pub errors: f64,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    #[serde(with = "SelfReportStateShape")]
    pub state: SelfReportState,
    /// Of its configured weight.
    pub weight_percent: u16,
    /// Connections that it wants at most.
    pub max_connections: Option<u32>,
    pub load: Option<AgentLoad>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentLoad {
    /// Share of all cores in use.
    pub cpu: Option<f64>,
    /// Share of memory in use.
    pub memory: Option<f64>,
    pub requests_in_flight: Option<u32>,
}

/// How many flows a server may have at once, as its latency has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyMark {
    pub flows: u32,
    /// Mean latency while it has few flows; None: not known yet.
    pub baseline_s: Option<f64>,
    /// Mean latency that the mark last followed.
    pub latency_s: Option<f64>,
    /// Kind of the signal that they are from; None: too little is measured, the mark is frozen.
    pub signal: Option<String>,
    /// It is lowered for a moment, to measure the baseline.
    pub lowered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ejection {
    #[serde(with = "cause")]
    pub cause: Cause,
    pub ends_in_s: f64,
    /// Ejections that count for its length.
    pub count: u32,
}

/// The last change of a server's share of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareChange {
    /// Seconds since the controller's start.
    pub at_s: f64,
    pub from: f64,
    pub to: f64,
    #[serde(with = "ReasonShape")]
    pub reason: Reason,
}

/// How a tier helps, or is helped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierHelp {
    #[serde(with = "RoleShape")]
    pub role: Role,
    /// Part of its weight with which it is in the first tier's ring.
    pub of_weight: f64,
    /// Part of the service's new flows that are to go to it while the first tier's ring has room.
    pub share: f64,
    /// The first tier with a server in order; None: there is none.
    pub first: Option<u8>,
    /// What becomes of the help.
    #[serde(with = "CourseShape")]
    pub course: Course,
    /// The quantity of the first tier that is nearest to its level, or farthest beyond it; None: nothing is known.
    pub nearest: Option<Breach>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Reason", rename_all = "kebab-case")]
enum ReasonShape {
    Configured,
    Slower {
        slowness: f64,
    },
    Faster {
        slowness: f64,
    },
    Failing {
        rate: f64,
    },
    Ejected(#[serde(with = "cause")] Cause),
    EjectionOver,
    Panic,
    SlowStart,
    #[serde(rename = "word")]
    SelfReport,
    Down,
    Peers,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "SelfReportState", rename_all = "kebab-case")]
enum SelfReportStateShape {
    Up,
    Down,
    Drain,
    Maintenance,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Role", rename_all = "kebab-case")]
enum RoleShape {
    First,
    Helps,
    Waits,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Course", rename_all = "kebab-case")]
enum CourseShape {
    Alone,
    Holds,
    Rises,
    Spent,
    Steady,
    Falls,
    Unknown,
}

/// Why a server was ejected. Not a `Shape`: serde has none for what is tagged beside its content.
mod cause {
    use decide::quality::eject::Cause;
    use decide::quality::signal::Kind;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "why", content = "signal", rename_all = "kebab-case")]
    enum Spelled {
        InARow(KindName),
        MoreThanPeers(KindName),
        Before,
    }

    #[derive(Clone, Serialize, Deserialize)]
    #[serde(into = "String", try_from = "String")]
    struct KindName(Kind);

    impl From<KindName> for String {
        fn from(KindName(kind): KindName) -> Self {
            kind.into()
        }
    }

    impl TryFrom<String> for KindName {
        type Error = String;

        fn try_from(name: String) -> Result<Self, String> {
            Kind::try_from(name).map(Self)
        }
    }

    pub fn serialize<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
        let spelled = match *cause {
            Cause::InARow(kind) => Spelled::InARow(KindName(kind)),
            Cause::MoreThanPeers(kind) => Spelled::MoreThanPeers(KindName(kind)),
            Cause::Before => Spelled::Before,
        };
        spelled.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cause, D::Error> {
        Ok(match Spelled::deserialize(deserializer)? {
            Spelled::InARow(KindName(kind)) => Cause::InARow(kind),
            Spelled::MoreThanPeers(KindName(kind)) => Cause::MoreThanPeers(kind),
            Spelled::Before => Cause::Before,
        })
    }
}

impl From<QualityStatus> for QualityReport {
    fn from(it: QualityStatus) -> Self {
        Self {
            taken_ms: it.taken_ms,
            uptime_s: it.uptime.as_secs_f64(),
            rings: it.rings,
            services: it.groups.into_iter().map(QualityGroup::from).collect(),
        }
    }
}

impl From<GroupStatus> for QualityGroup {
    fn from(it: GroupStatus) -> Self {
        Self {
            service: it.service,
            tier: it.tier,
            panic: it.panic,
            published_at_s: it.published_at_s,
            flows_per_sample: it.flows_per_sample,
            help: it.help.map(TierHelp::from),
            servers: it.servers.into_iter().map(ServerQuality::from).collect(),
        }
    }
}

impl From<ServerQualityStatus> for ServerQuality {
    fn from(ServerQualityStatus { name, number, report: it }: ServerQualityStatus) -> Self {
        Self {
            name,
            server: number,
            nominal_weight: it.nominal_weight,
            share: it.share,
            published_share: it.published_share,
            factor: it.factor,
            slow_start: it.slow_start,
            serving: it.serving,
            up: it.up,
            stale: it.stale,
            active: it.active,
            slowness: it.slowness,
            noise: it.noise,
            signal: it.signal.map(String::from),
            badness: it.badness,
            correcting: it.correcting,
            signals: it.signals.into_iter().map(Signal::from).collect(),
            self_report: it.self_report.into(),
            mark: it.mark.map(LatencyMark::from),
            ejection: it.ejection.map(|it| Ejection { cause: it.cause, ends_in_s: it.ends_in_s, count: it.count }),
            last_change: it.last_change.map(|it| ShareChange {
                at_s: it.at_s,
                from: it.from,
                to: it.to,
                reason: it.reason,
            }),
        }
    }
}

impl From<explain::SignalReport> for Signal {
    fn from(it: explain::SignalReport) -> Self {
        Self {
            kind: it.kind.into(),
            samples: it.samples,
            mean_s: it.mean_s,
            p90_s: it.p90_s,
            loss: it.loss,
            errors: it.errors,
        }
    }
}

impl From<signal::SelfReport> for AgentReport {
    fn from(it: signal::SelfReport) -> Self {
        let load =
            it.load.map(|it| AgentLoad { cpu: it.cpu, memory: it.memory, requests_in_flight: it.requests_in_flight });
        Self { state: it.state, weight_percent: it.weight_percent, max_connections: it.max_connections, load }
    }
}

impl From<explain::MarkReport> for LatencyMark {
    fn from(it: explain::MarkReport) -> Self {
        Self {
            flows: it.flows,
            baseline_s: it.baseline_s,
            latency_s: it.latency_s,
            signal: it.signal.map(String::from),
            lowered: it.lowered,
        }
    }
}

impl From<tiers::TierReport> for TierHelp {
    fn from(it: tiers::TierReport) -> Self {
        Self {
            role: it.role,
            of_weight: it.of_weight,
            share: it.share,
            first: it.first,
            course: it.course,
            nearest: it.nearest.map(Breach),
        }
    }
}
