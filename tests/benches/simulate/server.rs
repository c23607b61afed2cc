//! A synthetic server: some cores that share their time equally among all requests present.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// A server of a scenario.
#[derive(Clone, Debug)]
pub struct Model {
    /// Requests that are served at full speed side by side.
    pub cores: u32,
    /// Work of a request; mean of an exponential distribution.
    pub service: Duration,
    /// Work done in a second of each core: 1 is normal.
    pub speed: f64,
    /// Time on the way, both directions together.
    pub distance: Duration,
    /// Weight in the configuration.
    pub weight: u32,
    pub tier: u8,
    /// What becomes of it, in the order of time.
    pub changes: Vec<(Duration, Change)>,
}

/// What may happen to a server.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Speed(f64),
    /// Share of SYNs that are lost; the client sends them again after a second.
    Loss(f64),
    /// Share of requests that are answered at once with an error.
    Errors(f64),
    Distance(Duration),
}

impl Default for Model {
    fn default() -> Self {
        Self {
            cores: 4,
            service: Duration::from_millis(10),
            speed: 1.0,
            distance: Duration::ZERO,
            weight: 1,
            tier: 0,
            changes: Vec::new(),
        }
    }
}

impl Model {
    /// Requests per second that it can serve.
    pub fn capacity(&self) -> f64 {
        f64::from(self.cores) * self.speed / self.service.as_secs_f64()
    }
}

/// A model at work. Its time is in seconds.
pub struct Server {
    cores: f64,
    speed: f64,
    pub loss: f64,
    pub errors: f64,
    pub distance: f64,
    pub service: f64,
    /// Work that each request has had since the beginning, had it been there.
    progress: f64,
    at: f64,
    /// Requests present, by the progress at which they are done.
    present: BinaryHeap<Reverse<(OrderedProgress, usize)>>,
    /// Grows with every arrival and departure, so that a departure foreseen earlier is known to be outdated.
    pub version: u64,
}

#[derive(Clone, Copy, PartialEq)]
struct OrderedProgress(f64);

impl Eq for OrderedProgress {}

impl PartialOrd for OrderedProgress {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OrderedProgress {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Server {
    pub fn new(model: &Model) -> Self {
        Self {
            cores: f64::from(model.cores),
            speed: model.speed,
            loss: 0.0,
            errors: 0.0,
            distance: model.distance.as_secs_f64(),
            service: model.service.as_secs_f64(),
            progress: 0.0,
            at: 0.0,
            present: BinaryHeap::new(),
            version: 0,
        }
    }

    fn rate(&self) -> f64 {
        let present = self.present.len() as f64;
        if present > self.cores { self.speed * self.cores / present } else { self.speed }
    }

    fn advance(&mut self, now: f64) {
        self.progress += (now - self.at) * self.rate();
        self.at = now;
    }

    /// Takes a request with so many seconds of work.
    pub fn arrive(&mut self, request: usize, work: f64, now: f64) {
        self.advance(now);
        self.present.push(Reverse((OrderedProgress(self.progress + work), request)));
        self.version += 1;
    }

    /// When the next request is done, if nothing happens until then.
    pub fn next_departure(&self) -> Option<f64> {
        let Reverse((done, _)) = self.present.peek()?;
        Some(self.at + ((done.0 - self.progress) / self.rate()).max(0.0))
    }

    /// The request that is done now.
    pub fn depart(&mut self, now: f64) -> Option<usize> {
        self.advance(now);
        self.version += 1;
        self.present.pop().map(|Reverse((_, request))| request)
    }

    pub fn change(&mut self, change: Change, now: f64) {
        self.advance(now);
        self.version += 1;
        match change {
            Change::Speed(speed) => self.speed = speed,
            Change::Loss(loss) => self.loss = loss,
            Change::Errors(errors) => self.errors = errors,
            Change::Distance(distance) => self.distance = distance.as_secs_f64(),
        }
    }
}
