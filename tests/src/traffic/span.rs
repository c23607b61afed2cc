//! What became of the requests of some time.

use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Answers by server; the empty name stands for answers that name none.
    pub by_server: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Of each answer, in microseconds.
    latencies_us: Vec<u32>,
}

impl Span {
    pub fn ok(&self) -> u64 {
        self.latencies_us.len() as u64
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Share of the answers that `server` gave, 0 to 1.
    pub fn share(&self, server: &str) -> f64 {
        self.by_server.get(server).map_or(0.0, |count| *count as f64 / self.ok() as f64)
    }

    pub fn mean(&self) -> Duration {
        let sum: u64 = self.latencies_us.iter().map(|latency| u64::from(*latency)).sum();
        Duration::from_micros(sum / self.ok().max(1))
    }

    /// The latency that a share of the answers (0 to 1) does not exceed; none if nothing was answered.
    pub fn latency(&self, share: f64) -> Option<Duration> {
        self.rank(share, self.latencies_us.len())
    }

    /// The same of all requests, where failures are later than any answer: none if the share is not answered at all.
    pub fn latency_of_all(&self, share: f64) -> Option<Duration> {
        self.rank(share, self.latencies_us.len() + self.failed() as usize)
    }

    /// The latency at a share of `count` requests, of which the first are those with an answer.
    fn rank(&self, share: f64, count: usize) -> Option<Duration> {
        let rank = ((count as f64 * share).ceil() as usize).max(1) - 1;
        let mut latencies = self.latencies_us.clone();
        (rank < latencies.len()).then(|| Duration::from_micros((*latencies.select_nth_unstable(rank).1).into()))
    }

    pub fn merge(&mut self, other: &Self) {
        for (server, count) in &other.by_server {
            *self.by_server.entry(server.clone()).or_default() += count;
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.latencies_us.extend(&other.latencies_us);
    }

    pub(super) fn answer(&mut self, server: &str, latency: Duration) {
        match self.by_server.get_mut(server) {
            Some(count) => *count += 1,
            None => *self.by_server.entry(server.to_owned()).or_default() += 1,
        }
        self.latencies_us.push(latency.as_micros().try_into().unwrap_or(u32::MAX));
    }

    pub(super) fn failure(&mut self, kind: &'static str) {
        *self.errors.entry(kind).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_later_than_any_answer() {
        let mut span = Span::default();
        (1..=90).rev().for_each(|ms| span.answer("server1", Duration::from_millis(ms)));
        (0..10).for_each(|_| span.failure("reset"));
        for (share, of_answers, of_all) in
            [(0.5, Some(45), Some(50)), (0.9, Some(81), Some(90)), (0.91, Some(82), None)]
        {
            let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
            assert_eq!((span.latency(share), span.latency_of_all(share)), (ms(of_answers), ms(of_all)), "{share}");
        }
        assert_eq!(Span::default().latency(0.5), None);
    }
}
