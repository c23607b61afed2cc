//! What waits for a server.

use std::collections::BTreeMap;

use decide::queue::report::{ClassReport, End, ServiceReport};
use serde::{Deserialize, Serialize};

use crate::controller::status::QueueStatus;

/// The queues of all services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueReport {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Bytes of all that waits, and how many it may be.
    pub memory: u64,
    pub memory_limit: u64,
    pub services: Vec<ServiceQueue>,
    /// Why nothing can wait, although it should.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceQueue {
    pub name: String,
    pub waiting: u64,
    /// Of these, from clients that have not shown that they are at their address.
    pub unverified: u64,
    /// Whether they have to.
    pub challenges: bool,
    /// First packets that came again.
    pub repeated: u64,
    /// Most that may wait.
    pub most: u64,
    /// First those of no class.
    pub classes: Vec<ClassQueue>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClassQueue {
    /// None: of no class.
    pub name: Option<String>,
    /// 1 is the most urgent, 5 the least.
    pub priority: u8,
    pub waiting: u64,
    /// Age of the one that waits for longest, in seconds.
    pub oldest_s: Option<f64>,
    /// Of waits that ended in the last minute or so, in seconds.
    pub wait_p50_s: Option<f64>,
    pub wait_p99_s: Option<f64>,
    /// Waits that have ended, ever, and the seconds that they took.
    pub waits: u64,
    pub waited_s: f64,
    /// Flows that came to the queue, ever.
    pub arrived: u64,
    /// How many ended in each way, ever.
    pub ends: BTreeMap<String, u64>,
    /// Newest first, because the oldest have waited for too long for a while.
    pub overloaded: bool,
}

impl From<QueueStatus> for QueueReport {
    fn from(QueueStatus { taken_ms, error, report }: QueueStatus) -> Self {
        Self {
            taken_ms,
            memory: report.memory,
            memory_limit: report.memory_limit,
            services: report.services.into_iter().map(ServiceQueue::from).collect(),
            error,
        }
    }
}

impl From<ServiceReport> for ServiceQueue {
    fn from(it: ServiceReport) -> Self {
        Self {
            name: it.name,
            waiting: it.waiting,
            unverified: it.unverified,
            challenges: it.challenges,
            repeated: it.repeated,
            most: it.most,
            classes: it.classes.into_iter().map(ClassQueue::from).collect(),
        }
    }
}

impl From<ClassReport> for ClassQueue {
    fn from(it: ClassReport) -> Self {
        Self {
            name: it.name,
            priority: it.priority,
            waiting: it.waiting,
            oldest_s: it.oldest_s,
            wait_p50_s: it.wait_p50_s,
            wait_p99_s: it.wait_p99_s,
            waits: it.waits,
            waited_s: it.waited_s,
            arrived: it.arrived,
            ends: End::ALL.iter().map(|end| (end.label().to_owned(), it.ends[*end as usize])).collect(),
            overloaded: it.overloaded,
        }
    }
}
