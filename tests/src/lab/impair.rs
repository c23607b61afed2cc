//! What a relay does to the frames of one direction: delay, jitter, loss, a bounded rate, or nothing passes. Pure.
//!
//! A frame that is not lost waits in the queue for its turn at `rate`, and then for `delay` and up to `jitter`. Frames
//! keep their order: jitter moves steadily between values drawn at random, and after a change of the delay no frame
//! overtakes those before it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// Most bytes that one direction of a relay holds; more are dropped as by a full queue.
const MAX_HELD_BYTES: usize = 256 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    pub delay: Duration,
    /// Most delay beyond `delay`; half of it on average.
    pub jitter: Duration,
    /// Share of the frames that is lost at random, 0 to 1. Neighbour discovery suffers, too, and repeats after a second.
    pub loss: f64,
    /// Unbounded if there is none.
    pub rate: Option<Rate>,
    /// Everything is lost, also what was under way.
    pub cut: bool,
}

impl Impairment {
    pub const NONE: Self = Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss: 0.0, rate: None, cut: false };
    pub const CUT: Self = Self { cut: true, ..Self::NONE };

    pub const fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::NONE }
    }

    pub const fn loss(share: f64) -> Self {
        Self { loss: share, ..Self::NONE }
    }
}

/// A rate with the queue before it. Frames count from Ethernet header to payload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub bits_per_second: u64,
    /// Bytes that may wait; frames beyond are dropped.
    pub queue_bytes: u64,
}

/// What one direction has done with its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    pub passed: u64,
    pub passed_bytes: u64,
    /// By chance.
    pub lost: u64,
    /// By a full queue.
    pub overflowed: u64,
    pub cut: u64,
    /// By the interface behind the relay: it is down, or its queue is full.
    pub refused: u64,
    /// Most and sum of the time by which frames left later than they should have, in nanoseconds.
    pub latest_ns: u64,
    pub late_ns: u64,
}

/// One direction of a relay.
#[derive(Debug)]
pub(super) struct Lane {
    impairment: Impairment,
    random: Rng,
    seed: u64,
    begun: Instant,
    /// When the last frame will have left the queue.
    line_free: Instant,
    last_due: Instant,
    held_bytes: usize,
    frames: VecDeque<(Instant, Box<[u8]>)>,
    pub counts: LaneCounts,
}

impl Lane {
    /// A lane without impairments. The same seed and frames give the same losses; jitter follows from seed and time.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            impairment: Impairment::NONE,
            random: Rng::with_seed(seed),
            seed,
            begun: now,
            line_free: now,
            last_due: now,
            held_bytes: 0,
            frames: VecDeque::new(),
            counts: LaneCounts::default(),
        }
    }

    pub fn impairment(&self) -> Impairment {
        self.impairment
    }

    pub fn set(&mut self, impairment: Impairment, now: Instant) {
        if let (Some(old), Some(new)) = (self.impairment.rate, impairment.rate) {
            let waiting = self.line_free.saturating_duration_since(now);
            self.line_free = now + waiting.mul_f64(old.bits_per_second as f64 / new.bits_per_second as f64);
        }
        self.impairment = impairment;
        if impairment.cut {
            self.counts.cut += self.frames.len() as u64;
            self.frames.clear();
            self.held_bytes = 0;
            self.line_free = now;
            self.last_due = now;
        }
    }

    /// Takes a frame, or loses it.
    pub fn offer(&mut self, frame: &[u8], now: Instant) {
        let Impairment { delay, loss, rate, cut, .. } = self.impairment;
        if cut {
            self.counts.cut += 1;
            return;
        }
        if loss > 0.0 && self.random.f64() < loss {
            self.counts.lost += 1;
            return;
        }
        let begin = self.line_free.max(now);
        let wire_time = match rate {
            None => Duration::ZERO,
            Some(rate) => {
                let waiting_bytes = (begin - now).as_secs_f64() * rate.bits_per_second as f64 / 8.0;
                if waiting_bytes + frame.len() as f64 > rate.queue_bytes as f64 {
                    self.counts.overflowed += 1;
                    return;
                }
                Duration::from_secs_f64(frame.len() as f64 * 8.0 / rate.bits_per_second as f64)
            }
        };
        if self.held_bytes + frame.len() > MAX_HELD_BYTES {
            self.counts.overflowed += 1;
            return;
        }
        // Without a rate, frames do not wait for those that one has held before.
        self.line_free = if rate.is_some() { begin + wire_time } else { now };
        let due = (self.line_free + delay + self.jitter_at(now)).max(self.last_due);
        self.last_due = due;
        self.held_bytes += frame.len();
        self.frames.push_back((due, frame.into()));
    }

    /// When the next frame should leave.
    pub fn next_due(&self) -> Option<Instant> {
        self.frames.front().map(|(due, _)| *due)
    }

    /// Removes the next frame if it should have left by `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<Box<[u8]>> {
        let (due, frame) = self.frames.pop_front_if(|(due, _)| *due <= now)?;
        self.held_bytes -= frame.len();
        let late_ns = (now - due).as_nanos() as u64;
        self.counts.latest_ns = self.counts.latest_ns.max(late_ns);
        self.counts.late_ns += late_ns;
        Some(frame)
    }

    /// Moves between values that are drawn for every second `jitter` of time. It thus falls by less than time passes,
    /// which keeps the order of frames.
    fn jitter_at(&self, now: Instant) -> Duration {
        let jitter = self.impairment.jitter;
        if jitter.is_zero() {
            return Duration::ZERO;
        }
        let position = (now - self.begun).as_secs_f64() / (2.0 * jitter.as_secs_f64());
        let draw = |knot: f64| Rng::with_seed(self.seed ^ (knot as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).f64();
        let (before, after) = (draw(position.floor()), draw(position.floor() + 1.0));
        jitter.mul_f64(before + (after - before) * position.fract())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Offers frames of 100 bytes at these times after the begin, and gives when each is due after it; of those that
    /// are taken.
    fn due(lane: &mut Lane, begun: Instant, times: impl IntoIterator<Item = Duration>) -> Vec<Duration> {
        times.into_iter().for_each(|time| lane.offer(&[0; 100], begun + time));
        lane.frames.iter().map(|(due, _)| *due - begun).collect()
    }

    fn lane(impairment: Impairment) -> (Lane, Instant) {
        let begun = Instant::now();
        let mut lane = Lane::new(7, begun);
        lane.set(impairment, begun);
        (lane, begun)
    }

    #[test]
    fn a_frame_leaves_after_its_delay_and_not_before() {
        let (mut lane, begun) = lane(Impairment::delay(5 * MS));
        lane.offer(b"first", begun);
        lane.offer(b"second", begun + MS);
        assert_eq!(lane.next_due(), Some(begun + 5 * MS));
        assert_eq!(lane.take_due(begun + 5 * MS - Duration::from_nanos(1)), None);
        assert_eq!(lane.take_due(begun + 5 * MS).as_deref(), Some(b"first".as_slice()));
        assert_eq!(lane.take_due(begun + 5 * MS), None);
        assert_eq!(lane.take_due(begun + 8 * MS).as_deref(), Some(b"second".as_slice()));
        assert_eq!((lane.counts.latest_ns, lane.held_bytes), (2_000_000, 0));
    }

    #[test]
    fn the_same_seed_loses_the_same_frames_and_another_does_not() {
        let lost = |seed| {
            let begun = Instant::now();
            let mut lane = Lane::new(seed, begun);
            lane.set(Impairment::loss(0.5), begun);
            (0..64)
                .map(|_| {
                    lane.offer(&[0], begun);
                    lane.counts.lost
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
    }

    #[test]
    fn frames_keep_their_order_under_jitter_and_when_the_delay_falls() {
        let (mut lane, begun) = lane(Impairment { jitter: 20 * MS, ..Impairment::delay(10 * MS) });
        let jittered = due(&mut lane, begun, (0..2000).map(|time| time * MS / 2));
        lane.set(Impairment::NONE, begun + 1000 * MS);
        let all = due(&mut lane, begun, [1000 * MS, 1100 * MS]);
        assert!(all.is_sorted());
        assert_eq!(all[2000], jittered[1999], "it waits for the one before, no longer");
        assert_eq!(all[2001], 1100 * MS);
        let delays: Vec<Duration> = (0..).zip(&jittered).map(|(time, due)| *due - time * MS / 2).collect();
        assert!(delays.iter().all(|delay| (10 * MS..=30 * MS).contains(delay)), "{delays:?}");
        assert!(delays.iter().min() < Some(&(14 * MS)) && delays.iter().max() > Some(&(26 * MS)), "{delays:?}");
    }

    /// Of the lane to the servers of a lab with one client, one server and one channel; its suite relies on this.
    #[test]
    fn jitter_of_two_seconds_is_spread_over_its_range_whenever_they_begin() {
        const SEED: u64 = 4;
        let begun = Instant::now();
        let mut lane = Lane::new(SEED, begun);
        lane.set(Impairment { jitter: 20 * MS, ..Impairment::NONE }, begun);
        for first in 0..6_000 {
            let mut delays: Vec<Duration> =
                (0..200).map(|number| lane.jitter_at(begun + (first + number) * 10 * MS)).collect();
            delays.sort();
            let [p10, median, p90] = [20, 100, 180].map(|index| delays[index]);
            assert!((5 * MS..15 * MS).contains(&median) && p90 - p10 > 8 * MS, "{first}: {p10:?} {median:?} {p90:?}");
        }
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_what_its_queue_cannot_hold() {
        // A frame of 100 bytes takes 1 ms, and three may wait.
        let rate = Rate { bits_per_second: 800_000, queue_bytes: 300 };
        let (mut lane, begun) = lane(Impairment { rate: Some(rate), ..Impairment::NONE });
        assert_eq!(due(&mut lane, begun, [Duration::ZERO; 5]), [MS, 2 * MS, 3 * MS]);
        assert_eq!(lane.counts.overflowed, 2);
        // One has left; there is room for one.
        assert_eq!(due(&mut lane, begun, [MS; 2])[3..], [4 * MS]);
        // What waits when the rate doubles takes half of its time.
        let doubled = Rate { bits_per_second: 1_600_000, queue_bytes: 400 };
        lane.set(Impairment { rate: Some(doubled), ..Impairment::NONE }, begun + 2 * MS);
        assert_eq!(lane.line_free, begun + 3 * MS);
    }

    #[test]
    fn a_cut_loses_what_is_under_way() {
        let (mut lane, begun) = lane(Impairment::delay(5 * MS));
        lane.offer(&[0; 100], begun);
        lane.set(Impairment::CUT, begun + MS);
        lane.offer(&[0; 100], begun + 2 * MS);
        assert_eq!((lane.next_due(), lane.counts.cut, lane.held_bytes), (None, 2, 0));
        lane.set(Impairment::NONE, begun + 3 * MS);
        assert_eq!(due(&mut lane, begun, [4 * MS]), [4 * MS]);
    }
}
