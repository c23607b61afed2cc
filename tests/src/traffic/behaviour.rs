//! How a server answers HTTP requests: how fast, how many at a time, and with what errors.

use std::time::Duration;

/// The time of a worker that a request takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ServiceTime {
    Fixed(Duration),
    /// Of exponential distribution with this mean, the same for the same server and order of requests.
    Exponential(Duration),
}

/// How HTTP requests are answered, except those for `/agent`.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Time before each answer that takes no worker.
    pub delay: Duration,
    pub service_time: ServiceTime,
    /// Requests that are served at a time, at least one; others wait. Without, all are served at once.
    pub workers: Option<u32>,
    /// Divides the service time, also of requests that are being served. At zero the server hangs.
    pub speed: f64,
    pub status: u16,
    /// Share of the requests, 0 to 1, that get status 500 in the end.
    pub error_share: f64,
    /// Share of the TCP connections, 0 to 1, that are reset once they are accepted.
    pub reset_share: f64,
    /// Answers `/` with a pattern of so many bytes instead of the description of the request.
    pub body_bytes: Option<usize>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            service_time: ServiceTime::Fixed(Duration::ZERO),
            workers: None,
            speed: 1.0,
            status: 200,
            error_share: 0.0,
            reset_share: 0.0,
            body_bytes: None,
        }
    }
}

impl Behaviour {
    /// A server with so many workers, which take a time of exponential distribution for each request.
    pub fn workers(workers: u32, mean: Duration) -> Self {
        Self { workers: Some(workers), service_time: ServiceTime::Exponential(mean), ..Self::default() }
    }

    /// Most requests that it can serve in a second, in the long run.
    pub fn capacity(&self) -> f64 {
        let (ServiceTime::Fixed(mean) | ServiceTime::Exponential(mean)) = self.service_time;
        self.workers.map_or(f64::INFINITY, f64::from) * self.speed / mean.as_secs_f64()
    }
}
