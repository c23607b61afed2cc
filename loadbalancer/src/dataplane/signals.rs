//! Passive signals: what the packet path has counted since they were last read.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use loadbalancer_common::histogram::Histogram;
use loadbalancer_common::signal::{self, BUCKETS, FIRST_BUCKET_BITS, Signals, index};

use super::ids::BackendNumber;
use super::maps::Maps;
use model::ids::ServerId;

/// Words of the signals of one source.
const WORDS: usize = size_of::<Signals>() / size_of::<u64>();
/// Log2 buckets of a histogram, from 1 ns on.
pub const LOG2_BUCKETS: usize = BUCKETS + FIRST_BUCKET_BITS as usize - 1;
/// Segments after which those before count half in how many a request has.
const SEGMENTS_REMEMBERED: f64 = 100_000.0;

/// A server and one of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Who the number stands for.
    pub server: ServerId,
    pub backend: BackendNumber,
    pub channel: u8,
}

/// Counts of latencies: bucket `i` has those of at least 2^i and less than 2^(i+1) ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    pub counts: Histogram<u64, LOG2_BUCKETS, 1, 0>,
    pub sum_ns: u64,
}

/// What was seen of a source since it was last read, in sampled flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// SYN to SYN-ACK; in `dsr-*` modes to the client's next segment, with the client's way in it.
    pub handshakes: Latencies,
    /// Handshakes that were lost. Where there are no responses, also what lost segments are, in handshakes.
    pub lost_handshakes: u64,
    pub refused_handshakes: u64,
    /// Request to the first part of its response; none in `dsr-*` modes.
    pub responses: Latencies,
    /// Lost segments, in requests: as many as make their share among requests that of the lost ones among segments. And
    /// datagrams without an answer, of servers that do answer.
    pub lost_requests: u64,
    pub refused_requests: u64,
    /// TCP segments with payload, of both sides.
    pub segments: u64,
    /// Those that were lost between gateway and server.
    pub lost_segments: u64,
}

/// Remembers what was read last.
#[derive(Debug, Default)]
pub struct Tracker {
    /// In the order of the sources.
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    source: Source,
    last: Signals,
    /// Lately, to tell how many segments a request, or where there are no responses a connection, has.
    segments: f64,
    handshakes: f64,
    responses: f64,
    /// Parts of a loss that are not told yet.
    rest: f64,
}

impl Tracker {
    /// What came in since the last call, of the sources of which anything came. The first time that a source is named is where
    /// its counts begin.
    pub fn read(&mut self, maps: &Maps, sources: &[Source]) -> Vec<(Source, Interval)> {
        if !self.known.iter().map(|known| &known.source).eq(sources) {
            self.follow(maps, sources);
        }
        let mut news = Vec::new();
        for known in &mut self.known {
            let now = counters(maps, known.source.backend, known.source.channel);
            if now != known.last {
                news.push((known.source, known.interval(&now)));
            }
        }
        news
    }

    fn follow(&mut self, maps: &Maps, sources: &[Source]) {
        let before = std::mem::take(&mut self.known);
        let mut before: HashMap<Source, Known> = before.into_iter().map(|known| (known.source, known)).collect();
        let begin = |source: &Source| Known::new(*source, counters(maps, source.backend, source.channel));
        let known = |source: &Source| before.remove(source).unwrap_or_else(|| begin(source));
        self.known = sources.iter().map(known).collect();
    }
}

/// What was counted ever. Each number is exact; all of them together are of no single moment.
pub fn counters(maps: &Maps, backend: BackendNumber, channel: u8) -> Signals {
    let mut words = [0; WORDS];
    let place = index(backend.0, channel) as usize;
    if place < maps.signals.values() {
        for (word, counter) in words.iter_mut().zip(maps.signals.value(place)) {
            *word = counter.load(Ordering::Relaxed);
        }
    }
    bytemuck::cast(words)
}

impl Known {
    fn new(source: Source, now: Signals) -> Self {
        Self { source, last: now, segments: 0.0, handshakes: 0.0, responses: 0.0, rest: 0.0 }
    }

    fn interval(&mut self, now: &Signals) -> Interval {
        let last = std::mem::replace(&mut self.last, *now);
        let since = |now: u32, last: u32| u64::from(now.wrapping_sub(last));
        let mut interval = Interval {
            handshakes: latencies(&now.handshakes, &last.handshakes, now.handshake_ns.wrapping_sub(last.handshake_ns)),
            lost_handshakes: since(now.lost_syns, last.lost_syns),
            refused_handshakes: since(now.refused_syns, last.refused_syns),
            responses: latencies(&now.responses, &last.responses, now.response_ns.wrapping_sub(last.response_ns)),
            lost_requests: 0,
            refused_requests: since(now.refused_requests, last.refused_requests),
            segments: since(now.segments, last.segments),
            lost_segments: since(now.lost_segments, last.lost_segments),
        };
        self.remember(&interval);
        let answers = self.responses > 0.0;
        let unit = if answers { self.responses } else { self.handshakes };
        self.rest += interval.lost_segments as f64 * (unit / self.segments.max(1.0)).min(1.0);
        let lost = self.rest.floor();
        self.rest -= lost;
        if answers {
            interval.lost_requests = lost as u64 + since(now.unanswered, last.unanswered);
        } else {
            interval.lost_handshakes += lost as u64;
        }
        interval
    }

    fn remember(&mut self, interval: &Interval) {
        self.segments += interval.segments as f64;
        self.handshakes += interval.handshakes.count() as f64;
        self.responses += interval.responses.count() as f64;
        if self.segments > SEGMENTS_REMEMBERED {
            for sum in [&mut self.segments, &mut self.handshakes, &mut self.responses] {
                *sum /= 2.0;
            }
        }
    }
}

fn latencies(now: &signal::Latencies, last: &signal::Latencies, sum_ns: u64) -> Latencies {
    let mut counts = Histogram::default();
    let from = FIRST_BUCKET_BITS as usize - 1;
    for (count, (now, last)) in counts.buckets[from..].iter_mut().zip(now.buckets.iter().zip(&last.buckets)) {
        *count = u64::from(now.wrapping_sub(*last));
    }
    Latencies { counts, sum_ns }
}

impl Latencies {
    pub fn count(&self) -> u64 {
        self.counts.count()
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn known() -> Known {
        Known::new(
            Source {
                server: ServerId { service: model::ids::ServiceId(1), backend: model::ids::BackendId(2) },
                backend: BackendNumber(3),
                channel: 0,
            },
            Signals::zeroed(),
        )
    }

    fn signals(segments: u32, lost_segments: u32, responses: u32, handshakes: u32) -> Signals {
        let mut signals = Signals { segments, lost_segments, ..Signals::zeroed() };
        (signals.responses.buckets[9], signals.handshakes.buckets[4]) = (responses, handshakes);
        signals
    }

    #[test]
    fn counts_are_those_since_the_last_time_also_when_they_turn_over() {
        let mut known = known();
        let mut now = Signals::zeroed();
        (now.handshakes.buckets[9], now.handshake_ns) = (u32::MAX, u64::MAX - 5);
        known.interval(&now);
        (now.handshakes.buckets[9], now.handshake_ns) = (1, 2_500_000);
        let interval = known.interval(&now);
        assert_eq!((interval.handshakes.counts.buckets[19], interval.handshakes.count()), (2, 2));
        assert_eq!(interval.handshakes.sum_ns, 2_500_006);
    }

    #[test]
    fn the_share_of_lost_requests_is_that_of_lost_segments() {
        let mut known = known();
        let (mut lost, mut answered) = (0, 0);
        for step in 1..=200 {
            // 100 segments a step, 5 of them lost, and 10 responses.
            let interval = known.interval(&signals(step * 100, step * 5, step * 10, 0));
            (lost, answered) = (lost + interval.lost_requests, answered + interval.responses.count());
        }
        assert_eq!((lost, answered), (100, 2_000));
    }

    #[test]
    fn a_server_that_answers_no_more_still_loses_requests() {
        let mut known = known();
        known.interval(&signals(1_000, 0, 500, 0));
        let interval = known.interval(&signals(1_100, 100, 500, 0));
        assert_eq!((interval.lost_segments, interval.lost_requests), (100, 45));
    }

    #[test]
    fn where_replies_do_not_pass_losses_are_told_in_handshakes() {
        let mut known = known();
        let interval = known.interval(&signals(1_000, 100, 0, 50));
        assert_eq!((interval.lost_handshakes, interval.lost_requests), (5, 0));
    }

    #[test]
    fn who_never_answers_loses_no_datagram() {
        let mut known = known();
        let mut now = Signals { unanswered: 7, ..Signals::zeroed() };
        assert_eq!(known.interval(&now).lost_requests, 0);
        (now.responses.buckets[3], now.unanswered) = (1, 9);
        assert_eq!(known.interval(&now).lost_requests, 2);
    }
}
