//! Health of one server, from the results of its probes.
//!
//! Counting is HAProxy's: `fall` failures in a row take a server that is up down, `rise` successes in a row bring it back,
//! and one result of the other kind starts the count anew. The first result decides at once, whichever it is: a server
//! that is new is up after one success, and down after one failure however large `fall` is, so that starting up with
//! dead servers costs one interval.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::error::ProbeError;
use model::health::Health;

/// How many results in a row change the health of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes that bring a server that is down up.
    pub rise: NonZeroU32,
    /// Failures that take a server that is up down.
    pub fall: NonZeroU32,
}

/// What checks say about one server.
#[derive(Clone, Debug)]
pub struct ServerHealth {
    thresholds: Thresholds,
    health: Health,
    since: Instant,
    successes: u32,
    failures: u32,
    last_latency: Option<Duration>,
    smoothed_latency: Option<Duration>,
    last_failure: Option<Failure>,
}

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: ProbeError,
    pub at: Instant,
}

/// A change of health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub from: Health,
    pub to: Health,
    pub at: Instant,
    /// How long `from` had lasted.
    pub lasted: Duration,
}

impl ServerHealth {
    pub fn new(thresholds: Thresholds, now: Instant) -> Self {
        Self {
            thresholds,
            health: Health::Unknown,
            since: now,
            successes: 0,
            failures: 0,
            last_latency: None,
            smoothed_latency: None,
            last_failure: None,
        }
    }

    /// Takes the result of one probe, in the order in which they were made; `at` is when it was known.
    ///
    /// A failure of the gateway itself ([`ProbeError::is_local`]) is kept as the last one and changes nothing else.
    pub fn observe(&mut self, result: Result<Duration, ProbeError>, at: Instant) -> Option<Transition> {
        match result {
            Ok(latency) => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                self.last_latency = Some(latency);
                self.smoothed_latency = Some(smoothed(self.smoothed_latency, latency));
            }
            Err(error) => {
                if !error.is_local() {
                    self.failures = self.failures.saturating_add(1);
                    self.successes = 0;
                }
                self.last_failure = Some(Failure { error, at });
            }
        }
        let next = match self.health {
            Health::Unknown if self.successes > 0 => Health::Up,
            Health::Unknown if self.failures > 0 => Health::Down,
            Health::Up if self.failures >= self.thresholds.fall.get() => Health::Down,
            Health::Down if self.successes >= self.thresholds.rise.get() => Health::Up,
            unchanged => unchanged,
        };
        (next != self.health).then(|| self.change(next, at))
    }

    /// New thresholds, as after a reload; they apply from the next result on.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// When the present health began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Successes in a row until now.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// Failures in a row until now.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long the last successful probe took.
    pub fn last_latency(&self) -> Option<Duration> {
        self.last_latency
    }

    /// Mean over successful probes, in which the last weighs 1/8, as in the smoothed round-trip time of TCP (RFC 6298).
    pub fn smoothed_latency(&self) -> Option<Duration> {
        self.smoothed_latency
    }

    /// The last failure, also after the server came back.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    fn change(&mut self, to: Health, at: Instant) -> Transition {
        let transition = Transition { from: self.health, to, at, lasted: at.saturating_duration_since(self.since) };
        self.health = to;
        self.since = at;
        transition
    }
}

fn smoothed(mean: Option<Duration>, latency: Duration) -> Duration {
    mean.map_or(latency, |mean| (mean * 7 + latency) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn thresholds(rise: u32, fall: u32) -> Thresholds {
        Thresholds { rise: NonZeroU32::new(rise).unwrap(), fall: NonZeroU32::new(fall).unwrap() }
    }

    /// The healths after each letter: `+` success, `-` failure, `!` failure of the gateway.
    fn healths(rise: u32, fall: u32, results: &str) -> String {
        let now = Instant::now();
        let mut server = ServerHealth::new(thresholds(rise, fall), now);
        results
            .chars()
            .map(|letter| {
                server.observe(
                    match letter {
                        '+' => Ok(Duration::from_millis(1)),
                        '-' => Err(ProbeError::Refused),
                        _ => Err(ProbeError::OutOf("memory")),
                    },
                    now,
                );
                match server.health() {
                    Health::Unknown => '?',
                    Health::Up => 'U',
                    Health::Down => 'D',
                }
            })
            .collect()
    }

    #[test]
    fn health_follows_rise_and_fall() {
        for (rise, fall, results, expected) in [
            // The first result decides.
            (3, 3, "+", "U"),
            (3, 3, "-", "D"),
            // Counts are in a row.
            (1, 3, "+--+---", "UUUUUUD"),
            (2, 1, "-+-++", "DDDDU"),
            (2, 3, "+---++---", "UUUDDUUUD"),
            (1, 1, "+-+-", "UDUD"),
            // The gateway's own failures neither count nor interrupt a count.
            (2, 2, "!!+-!-", "??UUUD"),
            (2, 2, "-+!+", "DDDU"),
        ] {
            assert_eq!(healths(rise, fall, results), expected, "rise {rise} fall {fall} {results}");
        }
    }

    #[test]
    fn a_server_of_which_nothing_is_known_may_serve() {
        let may_serve = [Health::Unknown, Health::Up, Health::Down].map(Health::may_serve);
        assert_eq!(may_serve, [true, true, false]);
    }

    #[test]
    fn thresholds_that_change_apply_from_the_next_result_on() {
        let now = Instant::now();
        let mut server = ServerHealth::new(thresholds(1, 5), now);
        server.observe(Ok(Duration::ZERO), now);
        server.observe(Err(ProbeError::Refused), now);
        server.set_thresholds(thresholds(1, 2));
        assert_eq!(server.health(), Health::Up);
        server.observe(Err(ProbeError::Refused), now);
        assert_eq!(server.health(), Health::Down);
    }

    #[test]
    fn the_last_failure_is_kept_after_recovery() {
        let start = Instant::now();
        let mut server = ServerHealth::new(thresholds(1, 1), start);
        let at = start + Duration::from_secs(2);
        let down = server.observe(Err(ProbeError::NoRoute), at);
        let expected = Transition { from: Health::Unknown, to: Health::Down, at, lasted: Duration::from_secs(2) };
        assert_eq!(down, Some(expected));
        server.observe(Ok(Duration::from_millis(8)), at + Duration::from_secs(1));
        server.observe(Ok(Duration::from_millis(16)), at + Duration::from_secs(2));
        assert_eq!(server.since(), at + Duration::from_secs(1));
        assert_eq!(server.last_failure(), Some(&Failure { error: ProbeError::NoRoute, at }));
        assert_eq!(server.last_latency(), Some(Duration::from_millis(16)));
        assert_eq!(server.smoothed_latency(), Some(Duration::from_millis(9)));
    }

    /// What the machine should do, from the whole history at once.
    fn reference_health(history: &[bool], rise: usize, fall: usize) -> Health {
        let Some((&first, rest)) = history.split_first() else {
            return Health::Unknown;
        };
        let mut up = first;
        let mut since_change = 0;
        for end in 1..=rest.len() {
            let needed = if up { fall } else { rise };
            let window = &rest[since_change..end];
            if window.len() >= needed && window[window.len() - needed..].iter().all(|&ok| ok != up) {
                up = !up;
                since_change = end;
            }
        }
        if up { Health::Up } else { Health::Down }
    }

    proptest! {
        #[test]
        fn the_machine_agrees_with_a_look_at_the_whole_history(
            rise in 1u32..5,
            fall in 1u32..5,
            results in prop::collection::vec(prop_oneof![4 => Just(Some(true)), 4 => Just(Some(false)), 1 => Just(None)], 0..60),
        ) {
            let start = Instant::now();
            let mut server = ServerHealth::new(thresholds(rise, fall), start);
            let mut history = Vec::new();
            let mut before = Health::Unknown;
            let mut changed_at = start;
            for (position, result) in results.into_iter().enumerate() {
                let at = start + Duration::from_secs(position as u64 + 1);
                let latency = Duration::from_micros(100 * (position as u64 % 7));
                let transition = server.observe(
                    match result {
                        Some(true) => Ok(latency),
                        Some(false) => Err(ProbeError::Refused),
                        None => Err(ProbeError::OutOf("memory")),
                    },
                    at,
                );
                history.extend(result);
                let expected = reference_health(&history, rise as usize, fall as usize);
                prop_assert_eq!(server.health(), expected);

                let change = (expected != before).then(|| Transition { from: before, to: expected, at, lasted: at - changed_at });
                prop_assert_eq!(transition, change);
                if change.is_some() {
                    (before, changed_at) = (expected, at);
                }
                prop_assert_eq!(server.since(), changed_at);

                let run = |ok: bool| history.iter().rev().take_while(|&&result| result == ok).count() as u32;
                prop_assert_eq!((server.successes(), server.failures()), (run(true), run(false)));
                prop_assert!(server.smoothed_latency().is_none_or(|mean| mean <= Duration::from_micros(600)));
            }
        }
    }
}
