//! What waits for one service: who comes in, who is asked where it is, and who is released to which server.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::queue::{Held, Ticket};

use super::frame::{Out, Parked, Released};
use super::order::{Arrival, Entry, Full, Pushed, Queue, Which};
use super::plan::{Candidate, Plan, Room};
use super::report::{ClassReport, End, ServiceReport};
use super::settings::{AtDeadline, ServiceQueue, Verify};
use super::wait::Recent;

/// Clients must show that they are at their address once this part of the entries is of some that have not (`verify = "auto"`):
/// as SYN cookies, which begin when a backlog is full.
const UNVERIFIED_PART: usize = 4;
/// How long they have to once a flood is over: as long as more challenges than a tenth of that part stay without an answer each
/// time that they are counted, it is not.
pub(super) const CHALLENGE_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Class {
    pub(super) arrived: u64,
    pub(super) ends: [u64; End::ALL.len()],
    pub(super) waits: Recent,
}

pub(super) struct Service {
    pub(super) plan: Plan,
    pub(super) queue: Queue<Parked>,
    pub(super) datagram_bytes: u64,
    /// By number: 0, then those of the configuration.
    classes: Vec<Class>,
    pub(super) repeated: u64,
    pub(super) challenge_until: Option<Duration>,
    /// Challenges until they were counted last, and answers to them since.
    pub(super) challenged: Option<u64>,
    pub(super) answered: u64,
}

impl Service {
    pub(super) fn new(plan: Plan) -> Self {
        let classes = (0..=plan.settings.classes.len()).map(|_| Class::default()).collect();
        let queue = Queue::new(&plan.settings.order);
        Self {
            plan,
            queue,
            datagram_bytes: 0,
            classes,
            repeated: 0,
            challenge_until: None,
            challenged: None,
            answered: 0,
        }
    }

    /// Classes keep their counts by name. What waits in one that is gone goes on without a class.
    pub(super) fn follow_classes(&mut self, settings: &ServiceQueue) {
        let before = Arc::clone(&self.plan.settings);
        if before.classes.iter().map(|class| &class.name).eq(settings.classes.iter().map(|class| &class.name)) {
            return;
        }
        let mut numbers = vec![0; self.classes.len()];
        let mut counts = std::mem::take(&mut self.classes);
        self.classes.push(std::mem::take(&mut counts[0]));
        for class in settings.classes.iter() {
            let old = before.classes.iter().position(|it| it.name == class.name).map(|position| position + 1);
            if let Some(old) = old {
                numbers[old] = self.classes.len() as u16;
            }
            self.classes.push(old.map(|old| std::mem::take(&mut counts[old])).unwrap_or_default());
        }
        for (number, _) in numbers.iter().enumerate().skip(1).filter(|(_, now)| **now == 0) {
            self.classes[0].arrived += self.queue.waiting_of_class(number as u16) as u64;
        }
        self.queue.set_classes(|class| numbers.get(usize::from(class)).copied().unwrap_or(0));
    }

    pub(super) fn count(&mut self, class: u16) -> &mut Class {
        &mut self.classes[usize::from(class)]
    }

    pub(super) fn out(&self, parked: &Parked, backend: u16, flags: u16) -> Out {
        let ticket = Ticket::new(self.plan.service, backend, parked.ifindex, flags);
        Out { ticket, frame: parked.frame.clone(), released: None }
    }

    pub(super) fn enter(&mut self, memory: &mut u64, entry: &Entry<Parked>) {
        *memory += entry.value.bytes();
        if entry.value.is_datagram {
            self.datagram_bytes += entry.value.bytes();
        }
    }

    pub(super) fn free(&mut self, memory: &mut u64, entry: &Entry<Parked>) {
        *memory -= entry.value.bytes();
        if entry.value.is_datagram {
            self.datagram_bytes -= entry.value.bytes();
        }
    }

    /// An entry that waits no more.
    pub(super) fn leave(&mut self, memory: &mut u64, entry: &Entry<Parked>, why: End, now: Duration) {
        self.free(memory, entry);
        let class = self.count(entry.class);
        class.ends[why as usize] += 1;
        class.waits.record(now.saturating_sub(entry.arrived), now);
    }

    /// Whether the memory of datagrams has room for it, if it is one.
    pub(super) fn fits(&self, parked: &Parked) -> bool {
        !parked.is_datagram || self.datagram_bytes + parked.bytes() <= self.plan.settings.udp_memory
    }

    /// Another connection of the same client and port: the one before has been given up.
    pub(super) fn end_other_connection(&mut self, memory: &mut u64, held: &Held, now: Duration) {
        if self.queue.get(held.hash).is_some_and(|entry| entry.value.sequence != held.sequence)
            && let Some(entry) = self.queue.remove(held.hash)
        {
            self.leave(memory, &entry, End::GaveUp, now);
        }
    }

    /// Lets a flow wait, with its frame, if the bounds of the queue permit it; one that waits already goes on as it was.
    pub(super) fn admit(
        &mut self,
        memory: &mut u64,
        arrival: Arrival<Parked>,
        frame: &[u8],
        now: Duration,
        out: &mut Vec<Out>,
    ) {
        let (key, class) = (arrival.key, arrival.class);
        let (is_datagram, size) = (arrival.value.is_datagram, arrival.value.bytes());
        match self.queue.push(arrival, now) {
            Pushed::Known => {
                self.repeated += 1;
                // Its newest time stamp, by which the client measures the way.
                self.queue.set_value(key, |parked| {
                    if !is_datagram && parked.frame.len() == frame.len() {
                        parked.frame.copy_from_slice(frame);
                    }
                });
            }
            Pushed::Refused { arrival, why: Full::Entries } => self.refuse(&arrival, End::EntriesFull, out),
            Pushed::Refused { arrival, why: Full::Source } => self.refuse(&arrival, End::SourceFull, out),
            Pushed::New { evicted } => {
                self.count(class).arrived += 1;
                *memory += size;
                if is_datagram {
                    self.datagram_bytes += size;
                }
                if let Some(entry) = evicted {
                    self.leave(memory, &entry, End::GaveWay, now);
                    if entry.verified && self.plan.tells {
                        out.push(self.out(&entry.value, NO_BACKEND, Ticket::RESET));
                    }
                }
            }
        }
    }

    /// A flow that may not even wait. Who may be somebody else is told nothing.
    pub(super) fn refuse(&mut self, arrival: &Arrival<Parked>, why: End, out: &mut Vec<Out>) {
        let class = self.count(arrival.class);
        class.arrived += 1;
        class.ends[why as usize] += 1;
        let is_flood = why == End::SourceFull || (self.challenges() && !arrival.verified);
        if self.plan.tells && !is_flood {
            out.push(self.out(&arrival.value, NO_BACKEND, Ticket::RESET));
        }
    }

    /// Whether one that has waited for too long goes to the responder. In a flood nothing is kept of who may be
    /// somebody else.
    pub(super) fn may_respond(&self, entry: &Entry<Parked>) -> bool {
        self.plan.settings.at_deadline == AtDeadline::Respond
            && self.plan.responder != NO_BACKEND
            && !entry.value.is_datagram
            && (entry.verified || !self.challenges())
    }

    pub(super) fn challenges(&self) -> bool {
        self.plan.settings.verify == Verify::Always || self.challenge_until.is_some()
    }

    pub(super) fn many_unverified(&self) -> usize {
        (self.plan.settings.order.max_entries / UNVERIFIED_PART).max(1)
    }

    /// Begins and ends asking clients to show that they are at their address.
    pub(super) fn look_for_flood(&mut self, now: Duration, out: &mut Vec<Out>) {
        if self.plan.settings.verify != Verify::Auto {
            self.challenge_until = None;
            return;
        }
        if self.challenge_until.is_some_and(|until| now >= until) {
            self.challenge_until = None;
        }
        if self.challenge_until.is_none() && self.queue.unverified() >= self.many_unverified() {
            self.challenge_until = Some(now + CHALLENGE_FOR);
            // Those that wait already are asked at once; others as they come, by the packet path.
            let asked: Vec<Out> = self
                .queue
                .iter()
                .filter(|entry| !entry.verified && !entry.value.is_datagram)
                .map(|entry| self.out(entry.value, NO_BACKEND, Ticket::CHALLENGE))
                .collect();
            out.extend(asked);
        }
    }

    /// Releases as many as servers have room for: the least loaded server of the preferred tier gets the next.
    pub(super) fn release(&mut self, memory: &mut u64, now: Duration, room: &impl Room, out: &mut Vec<Out>) {
        if self.queue.is_empty() {
            return;
        }
        let which = if self.challenges() { Which::Verified } else { Which::All };
        let load = |place: &Candidate, active: u32| (u64::from(active) << 16) / u64::from(place.weight.max(1));
        let of_place = |(position, place): (usize, &Candidate)| {
            let active = room.active(place.backend);
            (active < place.high_water).then(|| Reverse((place.tier, load(place, active), position)))
        };
        let mut free: BinaryHeap<_> = self.plan.servers.iter().enumerate().filter_map(of_place).collect();
        while let Some(Reverse((tier, before, position))) = free.pop() {
            let Some(next) = self.queue.peek(now, which) else {
                return;
            };
            let preferred = next.value.preferred;
            let place = self.plan.servers[position];
            let active = room.active(place.backend);
            if load(&place, active) > before {
                // It was preferred, or somebody else has given it more.
                if active < place.high_water {
                    free.push(Reverse((tier, load(&place, active), position)));
                }
                continue;
            }
            let other = self.plan.servers.iter().find(|other| other.backend == preferred && preferred != place.backend);
            // The server that its client had before, if it has room; else the one at hand, which somebody else may have filled.
            let taken = if other.is_some_and(|other| room.take(other.backend, other.high_water)) {
                preferred
            } else if room.take(place.backend, place.high_water) {
                place.backend
            } else {
                continue;
            };
            let Some(mut entry) = self.queue.pop(now, which) else {
                room.give_back(taken);
                return;
            };
            self.leave(memory, &entry, End::Released, now);
            let ticket = Ticket::new(self.plan.service, taken, entry.value.ifindex, 0);
            let frame = std::mem::take(&mut entry.value.frame);
            let wait = now.saturating_sub(entry.arrived);
            out.push(Out { ticket, frame, released: Some(Box::new(Released { entry, wait })) });
            let active = room.active(place.backend);
            if active < place.high_water {
                free.push(Reverse((tier, load(&place, active), position)));
            }
        }
    }

    pub(super) fn report(&self, now: Duration) -> ServiceReport {
        let named = std::iter::once((None, self.plan.settings.ring));
        let named = named.chain(self.plan.settings.classes.iter().map(|class| (Some(class.name.clone()), class.ring)));
        let classes = named.zip(&self.classes).enumerate().map(|(number, ((name, ring), class))| {
            let oldest = self.queue.oldest_of_class(number as u16);
            ClassReport {
                name,
                priority: ring + 1,
                waiting: self.queue.waiting_of_class(number as u16) as u64,
                oldest_s: oldest.map(|arrived| now.saturating_sub(arrived).as_secs_f64()),
                wait_p50_s: class.waits.quantile(0.5, now).map(|wait| wait.as_secs_f64()),
                wait_p99_s: class.waits.quantile(0.99, now).map(|wait| wait.as_secs_f64()),
                waits: class.waits.count(),
                waited_s: class.waits.sum().as_secs_f64(),
                arrived: class.arrived,
                ends: class.ends,
                overloaded: self.queue.is_overloaded(ring),
            }
        });
        ServiceReport {
            name: self.plan.name.clone(),
            waiting: self.queue.len() as u64,
            unverified: self.queue.unverified() as u64,
            challenges: self.challenges(),
            repeated: self.repeated,
            most: self.plan.settings.order.max_entries as u64,
            classes: classes.collect(),
        }
    }
}
