//! What comes in: samples, counts of an interval, and what a server reports of itself.

use std::fmt;
use std::time::Duration;

use model::ids::ServerId;

/// A way to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelKey(pub u16);

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    pub server: ServerId,
    /// None: the server, whatever the way.
    pub channel: Option<ChannelKey>,
}

impl From<ServerId> for Target {
    fn from(server: ServerId) -> Self {
        Self { server, channel: None }
    }
}

/// Where a signal comes from. Each probe of a server is one by itself: a connection and a request are not to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Gap from request to response in the traffic itself: what clients wait for.
    Response,
    /// The check: few samples, but there without any traffic.
    Check,
    /// As the check; by position in the configuration.
    Monitor(u16),
    /// SYN to SYN-ACK in the traffic. It tells of the network and of a full accept queue, but not of a busy server,
    /// whose kernel answers for it.
    Handshake,
}

impl Kind {
    /// Whether it is asked for, not seen in the traffic.
    pub const fn is_probe(self) -> bool {
        matches!(self, Self::Check | Self::Monitor(_))
    }

    /// In the plural.
    pub fn samples(self) -> String {
        match self {
            Self::Response => "requests".to_owned(),
            Self::Check => "checks".to_owned(),
            Self::Monitor(position) => format!("probes of monitor {}", u32::from(position) + 1),
            Self::Handshake => "handshakes".to_owned(),
        }
    }
}

/// As reports and metrics call it; monitors are counted from 1.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Response => f.pad("response"),
            Self::Check => f.pad("check"),
            Self::Monitor(position) => f.pad(&format!("monitor{}", u32::from(*position) + 1)),
            Self::Handshake => f.pad("handshake"),
        }
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.to_string()
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let monitor = || {
            let number: u32 = text.strip_prefix("monitor")?.parse().ok()?;
            u16::try_from(number.checked_sub(1)?).ok().map(Self::Monitor)
        };
        match text.as_str() {
            "response" => Ok(Self::Response),
            "check" => Ok(Self::Check),
            "handshake" => Ok(Self::Handshake),
            _ => monitor().ok_or_else(|| format!("{text} is no kind of signal")),
        }
    }
}

/// How a failure looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Something was lost.
    Loss,
    /// No answer within this time: a loss, and a latency of as much at least.
    Late(Duration),
    /// A refusal, a reset, or an answer that says so.
    Error,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub target: Target,
    pub kind: Kind,
    /// How long the answer took.
    pub result: Result<Duration, Failure>,
}

/// Measurements of an interval, counted where they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub target: Target,
    pub kind: Kind,
    pub latencies: Histogram,
    /// Retransmissions and what else was lost.
    pub losses: u64,
    /// Resets and what else was refused.
    pub errors: u64,
}

/// Counts by latency: bucket `i` has those of at least 2^i and less than 2^(i+1) nanoseconds, bucket 0 also zero.
pub(super) type Octaves<C> = loadbalancer_common::histogram::Histogram<C, 64, 1, 0>;

/// Latencies that were counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub(super) octaves: Octaves<u64>,
    /// Their sum in nanoseconds, if the counter keeps it. Without, a mean is as fine as the buckets, within a factor of 2.
    pub sum_ns: Option<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { octaves: Octaves::default(), sum_ns: Some(0) }
    }
}

impl Histogram {
    /// From counts alone, as the packet path has them; what is beyond 64 buckets is counted in the last.
    pub fn from_counts(counts: &[u64]) -> Self {
        let mut octaves = Octaves::default();
        let last = octaves.buckets.len() - 1;
        for (index, count) in counts.iter().enumerate() {
            octaves.buckets[index.min(last)] += count;
        }
        Self { octaves, sum_ns: None }
    }

    pub fn record(&mut self, latency: Duration) {
        let ns = nanoseconds(latency);
        self.octaves.record(ns);
        self.sum_ns = self.sum_ns.map(|sum| sum.saturating_add(ns));
    }

    pub fn count(&self) -> u64 {
        self.octaves.count()
    }

    /// Sum of all latencies in nanoseconds, from the middles of the buckets if need be.
    pub fn sum(&self) -> f64 {
        match self.sum_ns {
            Some(sum) => sum as f64,
            None => self.octaves.buckets.iter().enumerate().map(|(index, count)| *count as f64 * middle(index)).sum(),
        }
    }
}

pub(super) fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

/// Mean of a bucket whose logarithms are evenly spread.
fn middle(bucket: usize) -> f64 {
    (bucket as f64).exp2() / std::f64::consts::LN_2
}

/// What a server says of itself: HAProxy's agent check, or JSON over HTTP. It holds until the next report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfReport {
    pub state: SelfReportState,
    /// Of its configured weight.
    pub weight_percent: u16,
    /// Connections that it wants at most.
    pub max_connections: Option<u32>,
    pub load: Option<ReportedLoad>,
}

impl Default for SelfReport {
    fn default() -> Self {
        Self { state: SelfReportState::Up, weight_percent: 100, max_connections: None, load: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfReportState {
    Up,
    /// It does not work.
    Down,
    /// No new flows, live ones go on.
    Drain,
    /// Taken out by hand.
    Maintenance,
}

/// Shown to the operator; weights do not follow it, since what it costs the clients is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReportedLoad {
    /// Share of all cores in use.
    pub cpu: Option<f64>,
    /// Share of memory in use.
    pub memory: Option<f64>,
    pub requests_in_flight: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_counted_in_the_bucket_of_its_power_of_two() {
        for (ns, place) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (1_000_000, 19), (u64::MAX, 63)] {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_nanos(ns));
            assert_eq!(histogram.octaves.buckets[place], 1, "{ns} ns");
            assert_eq!(histogram.count(), 1);
        }
    }

    #[test]
    fn without_a_sum_the_mean_is_right_within_a_bucket() {
        for ns in [1_000u64, 1_023, 1_024, 5_000_000, 8_388_607] {
            let mut counts = [0; 40];
            counts[Octaves::<u64>::bucket(ns)] = 10;
            let histogram = Histogram::from_counts(&counts);
            let ratio = histogram.sum() / 10.0 / ns as f64;
            assert!((0.72..=1.45).contains(&ratio), "{ns} ns: {ratio}");
        }
    }

    #[test]
    fn a_kind_is_read_as_it_is_told() {
        for (kind, text) in [
            (Kind::Response, "response"),
            (Kind::Check, "check"),
            (Kind::Monitor(0), "monitor1"),
            (Kind::Monitor(u16::MAX), "monitor65536"),
            (Kind::Handshake, "handshake"),
        ] {
            assert_eq!(String::from(kind), text);
            assert_eq!(Kind::try_from(text.to_owned()), Ok(kind));
        }
        for text in ["probe", "monitor0", "monitor65537", "monitor"] {
            assert!(Kind::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_beyond_the_last_bucket_are_not_lost() {
        assert_eq!(Histogram::from_counts(&[1; 70]).count(), 70);
    }
}
