//! What is told of the queues.

/// How an entry's wait ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum End {
    Released,
    /// It has waited for as long as it may.
    Expired,
    /// The same, and the responder tells its client when to try again.
    Responded,
    /// Its client sent a reset.
    GaveUp,
    /// To one that had more right to its place.
    GaveWay,
    /// It could not even wait: the service has as many as it may.
    EntriesFull,
    /// The same for its source.
    SourceFull,
    /// The same for the memory of all.
    MemoryFull,
}

impl End {
    pub const ALL: [Self; 8] = [
        Self::Released,
        Self::Expired,
        Self::Responded,
        Self::GaveUp,
        Self::GaveWay,
        Self::EntriesFull,
        Self::SourceFull,
        Self::MemoryFull,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Responded => "responded",
            Self::GaveUp => "gave_up",
            Self::GaveWay => "gave_way",
            Self::EntriesFull => "entries_full",
            Self::SourceFull => "source_full",
            Self::MemoryFull => "memory_full",
        }
    }
}

/// The queues of all services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueReport {
    /// Bytes of all that waits, and how many it may be.
    pub memory: u64,
    pub memory_limit: u64,
    pub services: Vec<ServiceReport>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceReport {
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
    pub classes: Vec<ClassReport>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassReport {
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
    /// How many ended in each way, ever; by [`End`].
    pub ends: [u64; End::ALL.len()],
    /// Newest first, because the oldest have waited for too long for a while.
    pub overloaded: bool,
}

impl ServiceReport {
    /// Adds what waits in another part of the same service: one of each family, in `nat` and `dnat`. Of waits, those of the part
    /// in which they are longer count.
    pub fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.unverified += other.unverified;
        self.challenges |= other.challenges;
        self.repeated += other.repeated;
        for (class, other) in self.classes.iter_mut().zip(other.classes) {
            class.add(other);
        }
    }

    /// How many ended in some way, ever.
    pub fn ended(&self, how: End) -> u64 {
        self.classes.iter().map(|class| class.ends[how as usize]).sum()
    }
}

impl ClassReport {
    fn add(&mut self, other: Self) {
        let longer = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        self.waiting += other.waiting;
        self.oldest_s = longer(self.oldest_s, other.oldest_s);
        self.wait_p50_s = longer(self.wait_p50_s, other.wait_p50_s);
        self.wait_p99_s = longer(self.wait_p99_s, other.wait_p99_s);
        self.waits += other.waits;
        self.waited_s += other.waited_s;
        self.arrived += other.arrived;
        for (sum, count) in self.ends.iter_mut().zip(other.ends) {
            *sum += count;
        }
        self.overloaded |= other.overloaded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_service_are_told_as_one() {
        let part = |waiting, p99| {
            let mut class = ClassReport { waiting, wait_p99_s: p99, ..ClassReport::default() };
            class.ends[End::Released as usize] = waiting;
            ServiceReport { waiting, classes: vec![class], ..ServiceReport::default() }
        };
        let mut sum = part(2, Some(0.5));
        sum.add(part(3, None));
        assert_eq!((sum.waiting, sum.ended(End::Released), sum.classes[0].wait_p99_s), (5, 5, Some(0.5)));
    }
}
