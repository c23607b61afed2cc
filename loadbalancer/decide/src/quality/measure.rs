//! What is measured of one server, and how it compares with its peers.
//!
//! A mean is kept over the last seconds, longer where samples are few. Once a second the samples of that second are looked
//! at by themselves: how much they vary from second to second tells how far a difference may be noise (queues make
//! neighbouring samples alike, so their number does not tell), and if they lie surely far from the mean, what was before
//! is forgotten.

use std::time::Duration;

use super::signal::{Counts, Failure, Kind, Sample};
use super::window::Window;

/// When measurements say something. Where no source is named, the simulator is it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time constant of means and rates. 10 s is the decay of Finagle's peak EWMA; but a mean that old delays the loop
    /// until it overshoots, and the law itself averages over 10 s.
    pub memory: Duration,
    /// Time constant where samples are few.
    pub long_memory: Duration,
    /// Samples below which a mean says nothing; below twice as many the long memory holds. Netflix's Gradient2 limit
    /// takes 10 to warm its long average up.
    pub min_samples: f64,
    /// Samples that make a second worth looking at by itself; else it is taken together with the next.
    pub batch_samples: f64,
    /// What was before is forgotten if the last second is surely so many times slower or faster: Netflix's Gradient2
    /// limit drops its long average from a factor of 2 on.
    pub sudden: f64,
    /// Time constant of the variation from second to second.
    pub variation_memory: Duration,
    /// How much more the mean varies than if each second were independent of the one before.
    pub correlation: f64,
    /// Standard errors within which a last second is no news.
    pub sure: f64,
    /// Silence after which a server's weight is frozen.
    pub stale_after: Duration,
    /// While clients were answered not longer ago than this, and slowly, probes that time out do not say that the server
    /// is dead.
    pub answered_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: Duration::from_secs(4),
            long_memory: Duration::from_secs(30),
            min_samples: 10.0,
            batch_samples: 4.0,
            sudden: 2.0,
            variation_memory: Duration::from_secs(60),
            correlation: 8.0,
            sure: 2.0,
            stale_after: Duration::from_secs(5),
            answered_within: Duration::from_secs(2),
        }
    }
}

/// Signals of one server.
#[derive(Clone, Debug, Default)]
pub struct Measures {
    /// Those of which anything ever came, in the order of their kinds.
    signals: Vec<(Kind, Kept)>,
    /// When a client was last answered.
    answered: Option<Duration>,
}

/// One kind of signal.
#[derive(Clone, Debug, Default)]
struct Kept {
    window: Window,
    /// Time between the last two samples.
    pace: Duration,
    /// The present second.
    batch: Window,
    batch_span_s: f64,
    /// Logarithm of the mean of the second before.
    before: Option<f64>,
    batches: u32,
    /// Variance of the logarithm of the mean of one second.
    variance: f64,
}

/// Change of a logarithm beyond which a second says that something happened, not how much seconds vary.
const MOST_VARIATION: f64 = 0.5;
/// Seconds from which their variation is known.
const KNOWN_BATCHES: u32 = 5;

impl Measures {
    pub fn sample(&mut self, sample: &Sample, now: Duration) {
        if sample.kind == Kind::Response && sample.result.is_ok() {
            self.answered = Some(now);
        }
        let kept = self.kept(sample.kind);
        kept.pace = kept.window.last().map_or(Duration::ZERO, |last| now.saturating_sub(last));
        kept.window.add(sample.result, now);
        kept.batch.add(sample.result, now);
    }

    pub fn counts(&mut self, counts: &Counts, now: Duration) {
        if counts.kind == Kind::Response && counts.latencies.count() > 0 {
            self.answered = Some(now);
        }
        let kept = self.kept(counts.kind);
        kept.window.add_counts(counts, now);
        kept.batch.add_counts(counts, now);
    }

    fn kept(&mut self, kind: Kind) -> &mut Kept {
        let place = match self.signals.binary_search_by_key(&kind, |(kind, _)| *kind) {
            Ok(place) => place,
            Err(place) => {
                self.signals.insert(place, (kind, Kept::default()));
                place
            }
        };
        &mut self.signals[place].1
    }

    fn find(&self, kind: Kind) -> Option<&Kept> {
        self.signals.iter().find(|(candidate, _)| *candidate == kind).map(|(_, kept)| kept)
    }

    /// Lets `elapsed` pass, until `now`.
    pub fn fade(&mut self, elapsed: Duration, now: Duration, settings: &Settings) {
        let second_over = now.as_secs() != now.saturating_sub(elapsed).as_secs();
        for (_, kept) in &mut self.signals {
            kept.fade(elapsed, settings);
            if second_over && kept.batch.latencies() >= settings.batch_samples {
                kept.close_batch(settings);
            } else if second_over && kept.batch.latencies() < 0.5 {
                // What changed in a silence says nothing of how seconds vary.
                (kept.before, kept.batch_span_s) = (None, 0.0);
            }
        }
    }

    /// None: nothing of that kind ever came.
    pub fn window(&self, kind: Kind) -> Option<&Window> {
        self.find(kind).map(|kept| &kept.window)
    }

    pub fn forget(&mut self, which: impl Fn(Kind) -> bool) {
        self.signals.retain(|(kind, _)| !which(*kind));
    }

    /// Whether samples of a kind still come in, as often as they do.
    pub fn comes_in(&self, kind: Kind, now: Duration, settings: &Settings) -> bool {
        self.find(kind).is_some_and(|kept| {
            let silence = settings.stale_after.max(kept.pace * 3);
            kept.window.last().is_some_and(|last| now.saturating_sub(last) <= silence)
        })
    }

    pub fn windows(&self) -> impl Iterator<Item = (Kind, &Window)> {
        self.signals.iter().map(|(kind, kept)| (*kind, &kept.window))
    }

    /// The kind with enough samples that is nearest to what clients ask. Never handshakes: the kernel of a busy server
    /// answers for it.
    pub fn nearest(&self, settings: &Settings) -> Option<Kind> {
        let mean =
            |(kind, window): (Kind, &Window)| (kind == Kind::Response, window.mean_ns().unwrap_or_default(), kind);
        let known = self
            .windows()
            .filter(|(kind, window)| *kind != Kind::Handshake && window.latencies() >= settings.min_samples);
        let nearest = known.map(mean).max_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
        nearest.map(|(.., kind)| kind)
    }

    /// Nothing came in for a while, or ever.
    pub fn is_stale(&self, now: Duration, settings: &Settings) -> bool {
        let last = self.windows().filter_map(|(_, window)| window.last()).max();
        last.is_none_or(|last| now.saturating_sub(last) > settings.stale_after)
    }

    /// Whether a failure says something about the server: the answer to a probe may be but late, where clients are answered
    /// so slowly. Where a tenth of the answers takes half of the time-out, one in a hundred takes all of it, if they are as
    /// different as in an exponential distribution.
    pub fn is_telling(&self, sample: &Sample, now: Duration, settings: &Settings) -> bool {
        let Err(Failure::Late(waited)) = sample.result else { return true };
        let answered = self.answered.is_some_and(|at| now.saturating_sub(at) <= settings.answered_within);
        let answers = self.windows().filter(|(kind, _)| *kind == Kind::Response || *kind == sample.kind);
        let slow = answers.filter_map(|(_, window)| window.answered_in(0.9)).any(|latency| latency * 2 > waited);
        !(answered && slow && sample.kind.is_probe())
    }

    /// Largest share of failures among the kinds of signals that have enough samples.
    pub fn failure(&self, settings: &Settings) -> f64 {
        let enough = self.windows().filter(|(_, window)| window.attempts() >= settings.min_samples);
        enough.map(|(_, window)| window.failure()).fold(0.0, f64::max)
    }
}

impl Kept {
    fn fade(&mut self, elapsed: Duration, settings: &Settings) {
        let few = self.window.latencies() < 2.0 * settings.min_samples;
        self.window.fade(elapsed, if few { settings.long_memory } else { settings.memory });
        self.batch_span_s += elapsed.as_secs_f64();
    }

    fn close_batch(&mut self, settings: &Settings) {
        let batch = std::mem::take(&mut self.batch);
        let span_s = std::mem::take(&mut self.batch_span_s);
        let Some(mean) = batch.mean_ns().filter(|mean| *mean > 0.0).map(f64::ln) else { return };
        let before = self.before.replace(mean);
        let Some(usual) = self.window.mean_ns().map(f64::ln) else { return };
        let doubt = (1.0 / batch.latencies()).max(self.variance * settings.correlation / span_s).sqrt();
        if (mean - usual).abs() > settings.sudden.ln() + settings.sure * doubt {
            self.window = batch;
            return;
        }
        if let Some(before) = before {
            let change = (mean - before).clamp(-MOST_VARIATION, MOST_VARIATION);
            self.batches += 1;
            let share = (span_s / settings.variation_memory.as_secs_f64()).max(1.0 / f64::from(self.batches)).min(1.0);
            self.variance += share * (change * change / 2.0 * span_s - self.variance);
        }
    }

    /// Standard error of the logarithm of the mean.
    fn noise(&self, settings: &Settings) -> f64 {
        if self.batches >= KNOWN_BATCHES {
            (self.variance * settings.correlation / (2.0 * settings.memory.as_secs_f64())).sqrt()
        } else {
            // That of an exponential distribution.
            (1.0 / self.window.latencies().max(1.0)).sqrt()
        }
    }
}

/// How slow a server is beside its peers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relative {
    /// Mean latency over that of the reference.
    pub slowness: f64,
    /// Standard error of its logarithm.
    pub noise: f64,
    /// The signal that it was taken from.
    pub kind: Kind,
}

impl Relative {
    /// Logarithm of the slowness that it has at least.
    fn surely(&self, settings: &Settings) -> f64 {
        self.slowness.ln() - settings.sure * self.noise
    }
}

/// Kinds of signals of which any of some servers has something, in their order.
pub fn kinds<'a>(servers: impl IntoIterator<Item = &'a Measures>) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for (kind, _) in servers.into_iter().flat_map(|server| &server.signals) {
        if let Err(place) = kinds.binary_search(kind) {
            kinds.insert(place, *kind);
        }
    }
    kinds
}

/// One kind of signal of all servers.
struct Compared {
    kind: Kind,
    reference_ns: f64,
    servers: Vec<Option<Relative>>,
}

impl Compared {
    /// What tells most comes first: what clients wait for, then probes, and of these what takes longest: it is nearest to
    /// what clients ask, where a connection alone tells of the network.
    fn rank(&self) -> (u8, f64) {
        let kind = match self.kind {
            Kind::Response => 0,
            Kind::Check | Kind::Monitor(_) => 1,
            Kind::Handshake => 2,
        };
        (kind, -self.reference_ns)
    }
}

/// Slowness of each server; None without enough samples of a kind that another server has too.
///
/// The reference is the lower median: of two servers the faster one. Kinds are never mixed: a server is compared by the
/// best that it has in common with others. Where that is a probe, another probe of it takes its place if it shows surely
/// that the server is slower: a fast answer to one question does not excuse a slow one to another.
pub fn relative(servers: &[&Measures], settings: &Settings) -> Vec<Option<Relative>> {
    let kinds = kinds(servers.iter().copied());
    let mut all: Vec<Compared> = kinds.into_iter().filter_map(|kind| compare(kind, servers, settings)).collect();
    all.sort_by(|one, other| {
        let (one, other) = (one.rank(), other.rank());
        one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
    });
    let of_server = |server: usize| {
        let mut of_kinds = all.iter().filter_map(|compared| compared.servers[server]);
        let best = of_kinds.next()?;
        let probes = of_kinds.filter(|other| best.kind.is_probe() && other.kind.is_probe());
        Some(probes.fold(
            best,
            |best, other| {
                if other.surely(settings) > best.slowness.ln().max(0.0) { other } else { best }
            },
        ))
    };
    (0..servers.len()).map(of_server).collect()
}

/// None: fewer than two servers have enough samples.
fn compare(kind: Kind, servers: &[&Measures], settings: &Settings) -> Option<Compared> {
    let kept = |server: &Measures| -> Option<(f64, f64)> {
        let kept = server.find(kind)?;
        let mean_ns = kept.window.mean_ns().filter(|mean| *mean > 0.0)?;
        (kept.window.latencies() >= settings.min_samples).then(|| (mean_ns, kept.noise(settings)))
    };
    let means: Vec<Option<(f64, f64)>> = servers.iter().map(|server| kept(server)).collect();
    if means.iter().flatten().count() < 2 {
        return None;
    }
    let reference_ns = lower_median(means.iter().flatten().map(|mean| mean.0))?;
    let relative = |(mean_ns, noise)| Relative { slowness: mean_ns / reference_ns, noise, kind };
    Some(Compared { kind, reference_ns, servers: means.into_iter().map(|mean| mean.map(relative)).collect() })
}

/// Of some latencies that which is nearest to what clients ask: of their own requests, else of the probe that takes longest,
/// else of handshakes.
pub fn nearest_to_clients(latencies: &[(Kind, Duration)]) -> Option<Duration> {
    let longest = |wanted: fn(Kind) -> bool| {
        latencies.iter().filter(|(kind, _)| wanted(*kind)).map(|(_, latency)| *latency).max()
    };
    longest(|kind| kind == Kind::Response)
        .or_else(|| longest(Kind::is_probe))
        .or_else(|| longest(|kind| kind == Kind::Handshake))
}

/// The middle one, the lower of two; None of none.
pub fn lower_median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::signal::Histogram;
    use model::ids::ServerId;

    const TICK: Duration = Duration::from_millis(250);

    /// Signals of a server for some seconds: in every tick so many of the same latency.
    fn feed(measures: &mut Measures, kind: Kind, per_tick: u32, latency_ms: f64, from_s: u64, to_s: u64) {
        let mut now = Duration::from_secs(from_s);
        while now < Duration::from_secs(to_s) {
            now += TICK;
            let mut latencies = Histogram::default();
            for _ in 0..per_tick {
                latencies.record(Duration::from_secs_f64(latency_ms / 1e3));
            }
            let counts = Counts { target: ServerId::numbered(0).into(), kind, latencies, losses: 0, errors: 0 };
            measures.counts(&counts, now);
            measures.fade(TICK, now, &Settings::default());
        }
    }

    fn fed(kind: Kind, per_tick: u32, latency_ms: f64) -> Measures {
        let mut measures = Measures::default();
        feed(&mut measures, kind, per_tick, latency_ms, 0, 20);
        measures
    }

    fn slowness(servers: &[&Measures]) -> Vec<Option<f64>> {
        let round = |value: f64| (value * 100.0).round() / 100.0;
        relative(servers, &Settings::default()).iter().map(|it| it.map(|it| round(it.slowness))).collect()
    }

    #[test]
    fn slowness_is_relative_to_the_server_in_the_middle() {
        let servers = [10.0, 20.0, 40.0].map(|ms| fed(Kind::Response, 50, ms));
        let [one, two, three] = &servers;
        assert_eq!(slowness(&[one, two, three]), [Some(0.5), Some(1.0), Some(2.0)]);
        assert_eq!(slowness(&[one, three]), [Some(1.0), Some(4.0)], "of two the faster is the reference");
        assert_eq!(slowness(&[one]), [None], "nothing to compare with");
    }

    #[test]
    fn few_samples_say_nothing_and_the_next_kind_of_signal_is_asked() {
        let good = fed(Kind::Response, 50, 10.0);
        let mut rare = Measures::default();
        feed(&mut rare, Kind::Response, 1, 10.0, 0, 1);
        assert_eq!(slowness(&[&good, &rare]), [None, None]);
        let mut probed = [good, rare];
        for (measures, ms) in probed.iter_mut().zip([5.0, 15.0]) {
            feed(measures, Kind::Check, 1, ms, 1, 20);
        }
        assert_eq!(slowness(&[&probed[0], &probed[1]]), [Some(1.0), Some(3.0)]);
    }

    /// A server with a check that takes a millisecond at every server, and a monitor.
    fn probed(check_ms: f64, monitor_ms: f64) -> Measures {
        let mut measures = Measures::default();
        feed(&mut measures, Kind::Check, 3, check_ms, 0, 20);
        feed(&mut measures, Kind::Monitor(0), 3, monitor_ms, 0, 20);
        measures
    }

    #[test]
    fn probes_are_compared_each_with_its_like() {
        use Kind::{Check, Monitor};
        let cases = [
            ("equal", [(1.0, 10.0), (1.0, 10.0), (1.0, 10.0)], [(Monitor(0), 1.0); 3]),
            (
                "speeds, which a connection does not tell",
                [(1.0, 5.0), (1.0, 10.0), (1.0, 20.0)],
                [(Monitor(0), 0.5), (Monitor(0), 1.0), (Monitor(0), 2.0)],
            ),
            (
                "slow to accept, fast to answer",
                [(1.0, 10.0), (1.0, 10.0), (4.0, 8.0)],
                [(Monitor(0), 1.0), (Monitor(0), 1.0), (Check, 4.0)],
            ),
            (
                "slow in both",
                [(1.0, 10.0), (1.0, 10.0), (2.0, 80.0)],
                [(Monitor(0), 1.0), (Monitor(0), 1.0), (Monitor(0), 8.0)],
            ),
        ];
        for (name, servers, wanted) in cases {
            let servers = servers.map(|(check, monitor)| probed(check, monitor));
            let found = relative(&servers.each_ref(), &Settings::default());
            for (found, wanted) in found.into_iter().zip(wanted) {
                let found = found.expect("there are samples");
                assert_eq!((found.kind, (found.slowness * 100.0).round() / 100.0), wanted, "{name}");
            }
        }
    }

    #[test]
    fn fast_connections_do_not_hide_requests_that_time_out() {
        let good = probed(1.0, 10.0);
        let mut hangs = Measures::default();
        for tick in 1..=80u32 {
            let now = TICK * tick;
            for (kind, result) in [
                (Kind::Check, Ok(Duration::from_millis(1))),
                (Kind::Monitor(0), Err(Failure::Late(Duration::from_secs(1)))),
            ] {
                hangs.sample(&Sample { target: ServerId::numbered(0).into(), kind, result }, now);
            }
            hangs.fade(TICK, now, &Settings::default());
        }
        assert_eq!(slowness(&[&good, &good, &hangs]), [Some(1.0), Some(1.0), Some(100.0)]);
    }

    #[test]
    fn one_probe_a_second_is_enough_in_time() {
        let mut servers = [Measures::default(), Measures::default()];
        for (measures, ms) in servers.iter_mut().zip([5, 15]) {
            for tick in 1..=80u32 {
                let now = TICK * tick;
                if tick % 4 == 0 {
                    let result = Ok(Duration::from_millis(ms));
                    measures.sample(&Sample { target: ServerId::numbered(0).into(), kind: Kind::Check, result }, now);
                }
                measures.fade(TICK, now, &Settings::default());
            }
        }
        assert_eq!(slowness(&[&servers[0], &servers[1]]), [Some(1.0), Some(3.0)]);
    }

    #[test]
    fn a_sudden_change_is_known_within_two_seconds_in_both_directions() {
        for (before_ms, after_ms) in [(10.0, 100.0), (100.0, 10.0)] {
            let steady = fed(Kind::Response, 50, 10.0);
            let mut sudden = fed(Kind::Response, 50, before_ms);
            feed(&mut sudden, Kind::Response, 50, after_ms, 20, 22);
            let found = slowness(&[&steady, &sudden])[1].expect("there are samples");
            // The faster of the two is the reference.
            let wanted = if after_ms > before_ms { 10.0 } else { 1.0 };
            assert!((found / wanted - 1.0).abs() < 0.05, "{before_ms} to {after_ms} ms: {found}");
        }
    }

    #[test]
    fn what_happened_suddenly_or_in_a_silence_is_no_variation() {
        let settings = Settings::default();
        let mut jumped = fed(Kind::Response, 50, 10.0);
        feed(&mut jumped, Kind::Response, 50, 100.0, 20, 30);
        let mut silent = fed(Kind::Response, 50, 10.0);
        feed(&mut silent, Kind::Response, 0, 0.0, 20, 80);
        feed(&mut silent, Kind::Response, 50, 5.5, 80, 90);
        for (name, mut measures) in [("sudden", jumped), ("silence", silent)] {
            let noise = measures.kept(Kind::Response).noise(&settings);
            assert!(noise < 0.05, "{name}: {noise}");
        }
    }

    #[test]
    fn a_probe_that_times_out_while_clients_are_answered_slowly_says_nothing() {
        let settings = Settings::default();
        let sample = |kind, result| Sample { target: ServerId::numbered(0).into(), kind, result };
        let late = sample(Kind::Check, Err(Failure::Late(Duration::from_millis(300))));
        let refused = sample(Kind::Check, Err(Failure::Error));
        for (latency_ms, told) in [(10, true), (200, false)] {
            let mut measures = Measures::default();
            assert!(measures.is_telling(&late, Duration::from_secs(1), &settings), "no clients");
            for _ in 0..20 {
                let answer = sample(Kind::Response, Ok(Duration::from_millis(latency_ms)));
                measures.sample(&answer, Duration::from_secs(1));
            }
            assert_eq!(measures.is_telling(&late, Duration::from_secs(2), &settings), told, "{latency_ms} ms");
            assert!(measures.is_telling(&refused, Duration::from_secs(2), &settings), "an error is an answer");
            assert!(measures.is_telling(&late, Duration::from_secs(4), &settings), "clients are answered no more");
        }
    }

    #[test]
    fn what_is_nearest_to_clients_is_never_a_handshake_or_what_has_few_samples() {
        let settings = Settings::default();
        let mut measures = fed(Kind::Handshake, 50, 1.0);
        assert_eq!(measures.nearest(&settings), None);
        for (kind, per_tick, latency_ms, wanted) in [
            (Kind::Monitor(0), 10, 20.0, Kind::Monitor(0)),
            (Kind::Check, 10, 5.0, Kind::Monitor(0)),
            (Kind::Monitor(1), 10, 30.0, Kind::Monitor(1)),
            (Kind::Response, 10, 1.0, Kind::Response),
        ] {
            feed(&mut measures, kind, per_tick, latency_ms, 20, 21);
            assert_eq!(measures.nearest(&settings), Some(wanted), "{kind}");
        }
        let mut few = fed(Kind::Check, 10, 5.0);
        feed(&mut few, Kind::Response, 1, 50.0, 20, 21);
        assert_eq!(few.nearest(&settings), Some(Kind::Check));
    }

    #[test]
    fn silence_is_stale() {
        let settings = Settings::default();
        let mut measures = Measures::default();
        assert!(measures.is_stale(Duration::ZERO, &settings));
        let sample = Sample { target: ServerId::numbered(0).into(), kind: Kind::Check, result: Err(Failure::Loss) };
        measures.sample(&sample, Duration::from_secs(1));
        assert!(!measures.is_stale(Duration::from_secs(6), &settings), "a failure is a sign of life of the monitor");
        assert!(measures.is_stale(Duration::from_secs(7), &settings));
    }
}
