//! Ejection: a server that fails is taken out for a while.
//!
//! Two tests, each for each kind of signal by itself (clients that are answered well must not hide checks that are not, nor
//! connections that are accepted hide requests that are not answered):
//!
//! - So many failures in a row.
//! - Evidence for a higher failure rate than that of the peers: Page's cumulative sum test ("Continuous inspection
//!   schemes", Biometrika 1954). Each failure adds ln(p1/p0), each success ln((1-p1)/(1-p0)), never below zero; p0 is what
//!   is tolerated, p1 = p0 + `excess`. A second sum is tuned for `STEEP` times that excess, which it finds in half of the
//!   time; the larger one counts.
//!
//! What probes show and what the traffic shows is added up: both are evidence for itself, as both sums are never below zero
//! one cannot hide the other, and little of each is found sooner together. Within either the largest sum counts, since one
//! glitch of a server hits all probes of that moment.
//!
//! The second takes the place of Envoy's "success rate below the mean by 1.9 standard deviations over 10 s". That rule
//! cannot eject the only bad one of four servers or fewer (it is at most sqrt(n - 1) deviations away, 1.73 for n = 4),
//! needs up to 10 s to look, and takes little account of how many requests a rate comes from. Its 1.9 deviations are
//! kept in what is tolerated: p0 = `floor` + `slack` * median + 1.9 * deviation of the servers' failure rates.
//!
//! How soon: failures of 5 % where peers have none are found after about 160 requests, of 20 % after about 20; errors from
//! each check after 4 checks. 5 % of packets lost towards a server fail 10 % of HTTP checks (SYN and request), lost in both
//! directions 18 %. With 10 checks a second and 3 watched requests, half of the servers are found in 3.6 s and 1.8 s, and
//! 39 % and 86 % within 3 s. Nobody can tell by much fewer: 39 exchanges of which 10 % fail are worth 8.1 on average, by
//! the best of all tests (Kullback and Leibler: 0.1 ln(0.1 / 0.005) + 0.9 ln(0.9 / 0.995) each), and 55 reach the evidence.

use std::fmt;
use std::time::Duration;

use super::measure::lower_median;
use super::signal::Kind;

/// Constants of ejection.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Failures in a row (Envoy: `consecutive_5xx`, 5).
    pub consecutive: u32,
    /// Failure rate that is always tolerated.
    pub floor: f64,
    /// How many times the peers' median rate is tolerated.
    pub slack: f64,
    /// Standard deviations of the servers' rates that are tolerated (Envoy: `success_rate_stdev_factor`, 1900 / 1000).
    pub deviations: f64,
    /// Rate above what is tolerated that the test is tuned for.
    pub excess: f64,
    /// Evidence at which a server is ejected: natural logarithm of the odds. 5 failures in a row give as much. With 10,
    /// servers that lose 5 % are found a fifth sooner, and one in 250 that fails half as often as is tolerated is ejected
    /// within ten minutes; so is now and then one of several that all lose 1 %.
    pub evidence: f64,
    /// The first ejection lasts as long, the n-th n times (Envoy: `base_ejection_time`, 30 s).
    pub base: Duration,
    /// No ejection lasts longer (Envoy: `max_ejection_time`, 300 s).
    pub max: Duration,
    /// Time in service after which one ejection is forgotten.
    pub forget_after: Duration,
    /// With fewer servers than this share in good order nobody is ejected (Envoy: `healthy_panic_threshold`, 50 %).
    pub panic: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            consecutive: 5,
            floor: 0.005,
            slack: 1.5,
            deviations: 1.9,
            excess: 0.045,
            evidence: 11.5,
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            forget_after: Duration::from_secs(30),
            panic: 0.5,
        }
    }
}

/// Why a server was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Failed several times in a row.
    InARow(Kind),
    /// Failed more often than its peers.
    MoreThanPeers(Kind),
    /// As it was when this controller began.
    Before,
}

/// What is known of one server.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order of their kinds.
    trials: Vec<(Kind, Trial)>,
    ejected: Option<Ejection>,
    /// A probe was answered since then.
    answered: bool,
    /// Ejections that are not forgotten.
    count: u32,
    /// When it last came back, or an ejection was last forgotten.
    calm_since: Duration,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow(kind) => write!(f, "{} failed several times in a row", kind.samples()),
            Self::Before => f.write_str("by an earlier controller"),
            Self::MoreThanPeers(kind) => write!(f, "{} fail more often than those of its peers", kind.samples()),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Trial {
    in_a_row: u32,
    /// Since the last step.
    good: u64,
    bad: u64,
    /// For a rate that exceeds what is tolerated by the excess, and by `STEEP` times as much.
    evidence: [f64; 2],
}

/// How many times the excess the second sum is tuned for. Four times 4.5 % is what 5 % loss in both directions makes of
/// HTTP checks.
const STEEP: f64 = 4.0;

/// An ejection that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub until: Duration,
    pub cause: Cause,
}

impl Trial {
    /// Weighs what came since the last step.
    fn weigh(&mut self, settings: &Settings, tolerated: f64) {
        let (good, bad) = (std::mem::take(&mut self.good) as f64, std::mem::take(&mut self.bad) as f64);
        if good + bad == 0.0 {
            return;
        }
        let usual = tolerated.clamp(1e-6, 0.9);
        for (sum, times) in self.evidence.iter_mut().zip([1.0, STEEP]) {
            let worse = (usual + times * settings.excess).min(0.99);
            let evidence = bad * (worse / usual).ln() + good * ((1.0 - worse) / (1.0 - usual)).ln();
            *sum = (*sum + evidence).clamp(0.0, 2.0 * settings.evidence);
        }
    }
}

/// What failure rate is tolerated, from the rates of all servers in service.
pub fn tolerated(settings: &Settings, rates: &[f64]) -> f64 {
    /// Standard deviation of a normal distribution over its median absolute deviation.
    const OF_MEDIAN_DEVIATION: f64 = 1.4826;
    let median = lower_median(rates.iter().copied()).unwrap_or(0.0);
    let deviation = lower_median(rates.iter().map(|rate| (rate - median).abs())).unwrap_or(0.0);
    settings.floor + settings.slack * median + settings.deviations * OF_MEDIAN_DEVIATION * deviation
}

impl Record {
    fn trial(&mut self, kind: Kind) -> &mut Trial {
        let place = match self.trials.binary_search_by_key(&kind, |(kind, _)| *kind) {
            Ok(place) => place,
            Err(place) => {
                self.trials.insert(place, (kind, Trial::default()));
                place
            }
        };
        &mut self.trials[place].1
    }

    /// Takes the result of one sample.
    pub fn sample(&mut self, kind: Kind, good: bool) {
        let trial = self.trial(kind);
        trial.in_a_row = if good { 0 } else { trial.in_a_row.saturating_add(1) };
        trial.good += u64::from(good);
        trial.bad += u64::from(!good);
        self.answered |= good && kind.is_probe();
    }

    /// Takes the counts of an interval. Their order is not known: they are in a row only if none was good.
    pub fn counts(&mut self, kind: Kind, good: u64, bad: u64) {
        let trial = self.trial(kind);
        let bad_in_a_row = u32::try_from(bad).unwrap_or(u32::MAX);
        trial.in_a_row = if good > 0 { 0 } else { trial.in_a_row.saturating_add(bad_in_a_row) };
        trial.good += good;
        trial.bad += bad;
    }

    /// Weighs what came since the last step against what is tolerated, by kind; a cause, if it is to be ejected.
    pub fn weigh(&mut self, settings: &Settings, tolerated: impl Fn(Kind) -> f64) -> Option<Cause> {
        let mut in_a_row = None;
        let none = (0.0, None);
        let (mut of_probes, mut of_traffic) = (none, none);
        for (kind, trial) in &mut self.trials {
            trial.weigh(settings, tolerated(*kind));
            if trial.in_a_row >= settings.consecutive {
                in_a_row = in_a_row.or(Some(Cause::InARow(*kind)));
            }
            let largest = if kind.is_probe() { &mut of_probes } else { &mut of_traffic };
            let evidence = trial.evidence[0].max(trial.evidence[1]);
            if evidence > largest.0 {
                *largest = (evidence, Some(Cause::MoreThanPeers(*kind)));
            }
        }
        let more = if of_probes.0 > of_traffic.0 { of_probes.1 } else { of_traffic.1 };
        let cause = in_a_row.or(more.filter(|_| of_probes.0 + of_traffic.0 >= settings.evidence));
        if self.ejected.is_none() { cause } else { None }
    }

    pub fn eject(&mut self, cause: Cause, now: Duration, settings: &Settings) {
        self.count = self.count.saturating_add(1);
        self.answered = false;
        self.ejected =
            Some(Ejection { until: now + settings.base.saturating_mul(self.count).min(settings.max), cause });
    }

    pub fn forget(&mut self, which: impl Fn(Kind) -> bool) {
        self.trials.retain(|(kind, _)| !which(*kind));
    }

    /// Checks have taken it down, and will say when it is back. If no probe was answered since it was ejected, that was for
    /// the same event, and keeps the server out no longer.
    pub fn taken_down(&mut self) {
        self.trials.clear();
        if self.ejected.is_some() && !self.answered {
            self.ejected = None;
            self.count = self.count.saturating_sub(1);
        }
    }

    pub fn ejection(&self) -> Option<Ejection> {
        self.ejected
    }

    /// Ejections that count for the length of the next one.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Ends an ejection whose time is over, unless checks go on failing; forgets old ones. True: it is back.
    ///
    /// `probed`: probes of this kind are made, so that the last one says how it is now.
    pub fn pass(&mut self, now: Duration, probed: impl Fn(Kind) -> bool, settings: &Settings) -> bool {
        match self.ejected {
            Some(ejection) => {
                let fails = |(kind, trial): &(Kind, Trial)| kind.is_probe() && trial.in_a_row > 0 && probed(*kind);
                if now < ejection.until || self.trials.iter().any(fails) {
                    return false;
                }
                self.ejected = None;
                self.trials.clear();
                self.calm_since = now;
                true
            }
            None => {
                if self.count > 0 && now.saturating_sub(self.calm_since) >= settings.forget_after {
                    self.count -= 1;
                    self.calm_since = now;
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use loadbalancer_common::hash::mix;

    use super::*;

    fn none_fail(_: Kind) -> f64 {
        0.005
    }

    fn settings() -> Settings {
        Settings::default()
    }

    /// Requests until a server that fails so often is ejected, evenly spread.
    fn requests_until_ejected(one_in: u64, tolerated: f64, most: u64) -> Option<u64> {
        let mut record = Record::default();
        (1..=most).find(|request| {
            record.sample(Kind::Response, request % one_in != 0);
            record.weigh(&settings(), |_| tolerated).is_some()
        })
    }

    #[test]
    fn five_failures_in_a_row_eject_and_a_success_between_them_does_not() {
        for (results, ejected) in
            [(&[false; 5][..], true), (&[false; 4], false), (&[false, false, false, true, false, false], false)]
        {
            let mut record = Record::default();
            for good in results {
                record.counts(Kind::Response, 100, 0);
                record.sample(Kind::Check, *good);
            }
            let cause = record.weigh(&settings(), |_| 0.2);
            assert_eq!(cause.is_some(), ejected, "{results:?}: {cause:?}");
        }
    }

    #[test]
    fn the_right_number_of_requests_shows_a_higher_failure_rate() {
        let cases = [
            ("every 20th", 20, 0.005, Some(100..300)),
            ("every second", 2, 0.005, Some(5..15)),
            ("every 20th, as with the peers", 20, 0.005 + 1.5 * 0.05, None),
            ("every 200th", 200, 0.005, None),
        ];
        for (name, one_in, tolerated, wanted) in cases {
            let found = requests_until_ejected(one_in, tolerated, 100_000);
            let right = match (&wanted, found) {
                (Some(range), Some(found)) => range.contains(&found),
                (None, None) => true,
                _ => false,
            };
            assert!(right, "{name}: {found:?} instead of {wanted:?}");
        }
    }

    /// Numbers from 0 to 1 that look random, and are the same every time.
    struct Chance(u64);

    impl Chance {
        fn is_below(&mut self, share: f64) -> bool {
            self.0 += 1;
            (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64 <= share
        }
    }

    /// Probes and watched requests of a server that fail so often at random, for so many seconds; when it is ejected.
    fn seconds_until_ejected(chance: &mut Chance, rate: f64, tolerated: f64, at_most: u32) -> Option<f64> {
        let mut record = Record::default();
        (1..=at_most * 4).find_map(|tick| {
            for _ in 0..if tick % 2 == 0 { 3 } else { 2 } {
                record.sample(Kind::Check, !chance.is_below(rate));
            }
            let requests = if tick % 4 == 0 { 0 } else { 1 };
            let lost = u64::from(chance.is_below(rate)).min(requests);
            record.counts(Kind::Response, requests - lost, lost);
            record.weigh(&settings(), |_| tolerated).map(|_| f64::from(tick) / 4.0)
        })
    }

    #[test]
    fn five_in_a_hundred_packets_lost_both_ways_eject_in_three_seconds_and_noise_does_not() {
        let mut chance = Chance(0);
        let hit = 1.0 - 0.95f64.powi(4);
        let soon = (0..1_000).filter(|_| seconds_until_ejected(&mut chance, hit, 0.005, 3).is_some()).count();
        assert!(soon > 800, "{soon} of 1,000");
        // Everybody loses nothing, or one packet in a hundred: what is tolerated follows, ten minutes each.
        let hit = 1.0 - 0.99f64.powi(4);
        for (rate, rates) in [(0.001, [0.001; 4]), (hit, [hit; 4])] {
            let tolerated = tolerated(&settings(), &rates);
            let ejected =
                (0..200).filter(|_| seconds_until_ejected(&mut chance, rate, tolerated, 600).is_some()).count();
            assert_eq!(ejected, 0, "failures of {rate}, tolerated {tolerated}");
        }
    }

    #[test]
    fn a_glitch_that_hits_all_probes_of_a_moment_counts_once() {
        let mut record = Record::default();
        for kind in [Kind::Check, Kind::Monitor(0), Kind::Monitor(1), Kind::Monitor(2)] {
            (0..20).for_each(|_| record.sample(kind, true));
            (0..2).for_each(|_| record.sample(kind, false));
        }
        assert_eq!(record.weigh(&settings(), none_fail), None);
    }

    #[test]
    fn what_is_tolerated_follows_the_servers_in_the_middle() {
        for (rates, wanted) in
            [(&[0.0, 0.0, 0.0, 0.3][..], 0.005), (&[0.0, 0.3], 0.005), (&[0.1, 0.1, 0.1, 0.1], 0.155), (&[], 0.005)]
        {
            assert!((tolerated(&settings(), rates) - wanted).abs() < 1e-9, "{rates:?}");
        }
        let spread = tolerated(&settings(), &[0.01, 0.02, 0.03, 0.04, 0.05]);
        assert!(spread > 0.05, "servers differ anyway: {spread}");
    }

    #[test]
    fn each_ejection_is_longer_up_to_a_limit_and_calm_forgets_them() {
        let mut record = Record::default();
        let mut now = Duration::ZERO;
        for wanted_s in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
            record.eject(Cause::InARow(Kind::Check), now, &settings());
            let until = record.ejection().expect("it was ejected").until;
            assert_eq!(until - now, Duration::from_secs(wanted_s));
            assert!(!record.pass(until - Duration::from_millis(1), |_| true, &settings()));
            assert!(record.pass(until, |_| true, &settings()));
            now = until;
        }
        for _ in 0..11 {
            now += Duration::from_secs(30);
            assert!(!record.pass(now, |_| true, &settings()));
        }
        assert_eq!(record.count(), 0);
    }

    #[test]
    fn an_ejected_server_stays_out_while_checks_fail_but_not_for_want_of_checks() {
        let mut record = Record::default();
        record.eject(Cause::InARow(Kind::Check), Duration::ZERO, &settings());
        record.sample(Kind::Check, false);
        let later = Duration::from_secs(31);
        assert!(!record.pass(later, |_| true, &settings()));
        assert!(record.clone().pass(later, |_| false, &settings()), "a silent monitor says nothing");
        record.sample(Kind::Check, true);
        record.sample(Kind::Monitor(1), false);
        assert!(!record.clone().pass(later, |_| true, &settings()), "a monitor still fails");
        assert!(
            record.clone().pass(later, |kind| kind == Kind::Check, &settings()),
            "that monitor is not asked any more"
        );
        record.sample(Kind::Monitor(1), true);
        assert!(record.pass(later, |_| true, &settings()));
        assert_eq!(record.weigh(&settings(), none_fail), None, "it begins anew");
    }

    #[test]
    fn a_monitor_that_fails_is_not_hidden_by_a_check_that_passes() {
        let mut record = Record::default();
        for _ in 0..5 {
            record.sample(Kind::Check, true);
            record.sample(Kind::Monitor(2), false);
        }
        let cause = record.weigh(&settings(), |_| 0.2);
        assert_eq!(cause, Some(Cause::InARow(Kind::Monitor(2))));
        assert_eq!(
            cause.map(|it| it.to_string()).as_deref(),
            Some("probes of monitor 3 failed several times in a row")
        );
    }

    #[test]
    fn errors_of_checks_are_not_hidden_by_well_answered_clients() {
        let mut record = Record::default();
        let mut cause = None;
        for _ in 0..12 {
            record.counts(Kind::Handshake, 1_000, 0);
            record.sample(Kind::Check, false);
            record.sample(Kind::Check, true);
            cause = cause.or(record.weigh(&settings(), none_fail));
        }
        assert_eq!(cause, Some(Cause::MoreThanPeers(Kind::Check)));
    }
}
