//! The work of a server: requests take time of one of its workers, for which they wait in the order of their arrival.
//!
//! With `w` workers of speed `v` and service times of mean `s`, it serves at most `w * v / s` requests a second. It is
//! an M/G/w queue if requests arrive at random times. Answers leave a millisecond or two late, as tokio's timers do,
//! but that takes no time of the workers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub(super) struct Work {
    clock: watch::Sender<Clock>,
    /// When each worker will be free, by the clock; none if there is a worker for every request.
    free: Mutex<Option<BinaryHeap<Reverse<Duration>>>>,
}

/// A clock that goes as fast as the workers work, so that a change of their speed also counts for what they have begun.
#[derive(Clone, Copy, Debug)]
struct Clock {
    set_at: Instant,
    time_then: Duration,
    speed: f64,
}

impl Clock {
    fn time(&self, now: Instant) -> Duration {
        self.time_then + (now - self.set_at).mul_f64(self.speed)
    }

    /// When it will show `time`; none if it stands.
    fn when(&self, time: Duration) -> Option<Instant> {
        let left = time.saturating_sub(self.time_then).as_secs_f64() / self.speed;
        Duration::try_from_secs_f64(left).ok().and_then(|left| self.set_at.checked_add(left))
    }
}

impl Work {
    pub fn new() -> Self {
        let clock = Clock { set_at: Instant::now(), time_then: Duration::ZERO, speed: 1.0 };
        Self { clock: watch::Sender::new(clock), free: Mutex::new(None) }
    }

    /// Does work that takes `service` at speed 1. It is done even if the requester does not wait for it.
    pub async fn serve(&self, service: Duration) {
        let mut clock = self.clock.subscribe();
        let end = self.begin(service, clock.borrow().time(Instant::now()));
        loop {
            let when = clock.borrow_and_update().when(end);
            let done = async {
                match when {
                    Some(when) => sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = done => return,
                changed = clock.changed() => changed.expect("the sender is in self"),
            }
        }
    }

    /// Takes a worker for work that is asked for at `now`, and gives when it will be done; both by the clock.
    fn begin(&self, service: Duration, now: Duration) -> Duration {
        let mut free = self.free();
        let Some(free) = &mut *free else {
            return now + service;
        };
        let begin = free.pop().map_or(now, |Reverse(free)| free.max(now));
        free.push(Reverse(begin + service));
        begin + service
    }

    /// Changes the workers, of which there is at least one; those that go finish what they have begun.
    pub fn set(&self, workers: Option<u32>, speed: f64) {
        let now = Instant::now();
        self.clock.send_modify(|clock| *clock = Clock { set_at: now, time_then: clock.time(now), speed });
        let time = self.clock.borrow().time_then;
        let mut free = self.free();
        match workers {
            None => *free = None,
            Some(workers) => {
                let free = free.get_or_insert_default();
                while free.len() > workers as usize {
                    free.pop();
                }
                free.extend((free.len()..workers as usize).map(|_| Reverse(time)));
            }
        }
    }

    /// Share of the workers that are at work, 0 to 1; none if there is a worker for every request.
    pub fn busy(&self) -> Option<f64> {
        let now = self.clock.borrow().time(Instant::now());
        let free = self.free();
        let free = free.as_ref()?;
        Some(free.iter().filter(|Reverse(free)| *free > now).count() as f64 / free.len() as f64)
    }

    fn free(&self) -> MutexGuard<'_, Option<BinaryHeap<Reverse<Duration>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::super::random::exponential;
    use super::*;

    const SERVICE: Duration = Duration::from_millis(10);

    /// When each of `count` requests that come together is done.
    async fn together(work: &Work, count: usize) -> Vec<u128> {
        let begun = Instant::now();
        let one = || async {
            work.serve(SERVICE).await;
            begun.elapsed().as_millis()
        };
        futures_util::future::join_all((0..count).map(|_| one())).await
    }

    #[test]
    fn the_mean_time_is_what_theory_has() {
        let rho = 0.7;
        let exponential_work = |random: &mut Rng| exponential(random);
        let fixed_work = |_: &mut Rng| 1.0;
        type Draw = fn(&mut Rng) -> f64;
        // In service times: M/M/1; M/D/1 (Pollaczek and Khinchine); M/M/4, where Erlang's C for 2.8 erlangs is 0.4287.
        let cases: [(u32, Draw, f64); 3] = [
            (1, exponential_work, 1.0 / (1.0 - rho)),
            (1, fixed_work, 1.0 + rho / 2.0 / (1.0 - rho)),
            (4, exponential_work, 1.0 + 0.4287 / (4.0 * (1.0 - rho))),
        ];
        for (workers, draw, expected) in cases {
            let work = Work::new();
            work.set(Some(workers), 1.0);
            let mut random = Rng::with_seed(1);
            let mut now = Duration::ZERO;
            let count = 200_000;
            let total: Duration = (0..count)
                .map(|_| {
                    now += SERVICE.mul_f64(exponential(&mut random) / rho / f64::from(workers));
                    work.begin(SERVICE.mul_f64(draw(&mut random)), now) - now
                })
                .sum();
            let mean = total.div_duration_f64(SERVICE * count);
            assert!((mean / expected - 1.0).abs() < 0.05, "{workers} workers: {mean}, {expected} expected");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_a_free_worker_in_their_order() {
        let work = Work::new();
        for (workers, done) in [(None, [10; 4]), (Some(2), [10, 10, 20, 20]), (Some(1), [10, 20, 30, 40])] {
            work.set(workers, 1.0);
            assert_eq!(together(&work, 4).await, done, "{workers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_speed_counts_for_work_that_waits() {
        let work = Work::new();
        work.set(Some(1), 0.1);
        let changed = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Half of the first is done.
            work.set(Some(1), 0.0);
            tokio::time::sleep(Duration::from_millis(50)).await;
            work.set(Some(1), 1.0);
        };
        let (done, ()) = tokio::join!(together(&work, 2), changed);
        assert_eq!(done, [105, 115]);
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_go_finish_what_they_do() {
        let work = Work::new();
        work.set(Some(2), 1.0);
        let then = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(work.busy(), Some(1.0));
            work.set(Some(1), 1.0);
            together(&work, 1).await
        };
        assert_eq!(tokio::join!(together(&work, 2), then), (vec![10, 10], vec![19]));
        assert_eq!(work.busy(), Some(0.0));
    }
}
