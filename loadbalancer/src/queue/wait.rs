//! First come, first served.
use std::time::Duration;
#[derive(Debug, Default, Clone)]
pub struct Recent {
    v: Vec<Duration>,
    s: Duration,
    n: u64,
}
impl Recent {
    pub fn record(&mut self, d: Duration, _now: Duration) {
        self.v.push(d);
        self.s += d;
        self.n += 1;
    }
    pub fn quantile(&self, q: f64, _now: Duration) -> Option<Duration> {
        let mut v = self.v.clone();
        v.sort();
        v.get(((v.len() as f64 - 1.0) * q) as usize).copied()
    }
    pub fn count(&self) -> u64 {
        self.n
    }
    pub fn sum(&self) -> Duration {
        self.s
    }
}
