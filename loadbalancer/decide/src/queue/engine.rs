//! Everything that waits, of all services: takes what the packet path hands over, and says what goes where.
//!
//! # An entry's life
//!
//! ```text
//!  first packet --- its deadline is over already -------------------> passed over, not counted
//!       |       \-- no memory, no place, too many of its source ----> MemoryFull, EntriesFull, SourceFull
//!       v
//! +- waiting -------------------+
//! | unverified                  |--- deadline ----------------------> Responded, or Expired if no responder answers
//! |     | a challenge answered, |--- reset, or another connection --> GaveUp
//! |     v or a verified packet  |--- another takes its place -------> GaveWay
//! | verified                    |--- its service is gone -----------> forgotten, with the service's counts
//! +-----------------------------+
//!       |                ^    ^
//!       | a server       |    | its packet comes again before its deadline, which stays
//!       v has room       |    |
//!   Released ------------+    |
//!       |    its frame could  |
//!       |    not be sent      |
//!       v                     |
//!   remembered ---------------+
//! ```
//!
//! The names with capitals are ends as [`End`] counts them. One that waits and whose packet comes again goes on as it was.
//! While clients are challenged, only verified ones are released.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::net::protocol;
use loadbalancer_common::queue::{Held, Ticket, kind};

use super::frame::{Out, Parked, Released};
use super::order::Arrival;
use super::plan::{Plan, Room};
use super::report::{End, ServiceReport};
use super::service::{CHALLENGE_FOR, Service};
use super::settings::AtDeadline;

/// How many that were released are remembered, in case that they come back.
const REMEMBERED: usize = 1 << 16;

/// Until when a flow that was released may wait, if it comes again.
#[derive(Clone, Copy, Debug)]
struct Before {
    deadline: Duration,
    sequence: u32,
}

/// The queues of all services.
pub struct Engine {
    memory_limit: u64,
    memory: u64,
    services: BTreeMap<u16, Service>,
    released: HashMap<u64, Before>,
    released_order: VecDeque<u64>,
}

impl Engine {
    pub fn new(memory_limit: u64) -> Self {
        Self {
            memory_limit,
            memory: 0,
            services: BTreeMap::new(),
            released: HashMap::new(),
            released_order: VecDeque::new(),
        }
    }

    pub fn memory_limit(&self) -> u64 {
        self.memory_limit
    }

    pub fn set_memory_limit(&mut self, bytes: u64) {
        self.memory_limit = bytes;
    }

    /// Brings services and their servers up to date. What waits for a service that is gone goes as well: nobody serves its
    /// address.
    pub fn follow(&mut self, plans: Vec<Plan>) {
        let mut old = std::mem::take(&mut self.services);
        for plan in plans {
            let service = match old.remove(&plan.service) {
                Some(mut service) if service.plan.name == plan.name => {
                    if service.plan.settings != plan.settings {
                        service.queue.set_settings(&plan.settings.order);
                        service.follow_classes(&plan.settings);
                    }
                    service.plan = plan;
                    service
                }
                other => {
                    self.forget(other);
                    Service::new(plan)
                }
            };
            self.services.insert(service.plan.service, service);
        }
        old.into_values().for_each(|service| self.forget(Some(service)));
    }

    fn forget(&mut self, service: Option<Service>) {
        for entry in service.into_iter().flat_map(|mut service| service.queue.drain()) {
            self.memory -= entry.value.bytes();
        }
    }

    /// Takes a record of the packet path.
    pub fn take(&mut self, held: &Held, frame: &[u8], now: Duration, out: &mut Vec<Out>) {
        let Some(service) = self.services.get_mut(&held.service) else {
            return;
        };
        match held.kind {
            kind::VERIFIED => {
                service.answered += 1;
                service.queue.verify(held.hash);
            }
            kind::RESET => {
                // It must know the number of its first packet, as whoever ends a connection.
                let known = service.queue.get(held.hash).map(|entry| entry.value.sequence);
                let is_its_own = known.is_some_and(|known| held.sequence.wrapping_sub(known) <= 1);
                if let Some(entry) = is_its_own.then(|| service.queue.remove(held.hash)).flatten() {
                    service.leave(&mut self.memory, &entry, End::GaveUp, now);
                }
            }
            kind::FLOW => self.arrive(held, frame, now, out),
            _ => {}
        }
    }

    /// The first packet of a flow, or another of the same.
    fn arrive(&mut self, held: &Held, frame: &[u8], now: Duration, out: &mut Vec<Out>) {
        let Some(service) = self.services.get_mut(&held.service) else {
            return;
        };
        let settings = Arc::clone(&service.plan.settings);
        let by_prefix = held.class.checked_sub(1);
        let (class, ring, patience) = settings.class_of(by_prefix, held.tos >> 2, held.dport.get());
        let came = Duration::from_nanos(held.time).min(now);
        let before = self.released.get(&held.hash).filter(|it| it.deadline > now && it.sequence == held.sequence);
        let deadline = before.map_or(came + patience, |before| before.deadline);
        if deadline <= now {
            // It lay in the buffer while nobody read it; its client has sent another since, or given up.
            return;
        }
        service.end_other_connection(&mut self.memory, held, now);
        let is_datagram = held.protocol != protocol::TCP;
        let arrival = Arrival {
            key: held.hash,
            source: source(held, settings.source_prefix),
            ring,
            class,
            arrived: came,
            deadline,
            // Who sends datagrams cannot be asked where it is, and would never be released in a flood. Their memory bounds them.
            verified: held.verified != 0 || is_datagram,
            value: Parked {
                frame: frame.into(),
                ifindex: held.ifindex,
                preferred: held.preferred,
                is_datagram,
                sequence: held.sequence,
            },
        };
        let fits = self.memory + arrival.value.bytes() <= self.memory_limit && service.fits(&arrival.value);
        if fits || service.queue.get(held.hash).is_some() {
            service.admit(&mut self.memory, arrival, frame, now, out);
            service.look_for_flood(now, out);
        } else {
            service.refuse(&arrival, End::MemoryFull, out);
        }
    }

    /// Lets go of what has waited for too long, and releases what servers have room for.
    pub fn step(&mut self, now: Duration, room: &impl Room, out: &mut Vec<Out>) {
        for service in self.services.values_mut() {
            for entry in service.queue.expire(now) {
                let responder = service.plan.responder;
                let responds = service.may_respond(&entry) && room.take(responder, u32::MAX);
                service.leave(&mut self.memory, &entry, if responds { End::Responded } else { End::Expired }, now);
                if responds {
                    out.push(service.out(&entry.value, responder, 0));
                } else if service.plan.settings.at_deadline != AtDeadline::Drop {
                    out.push(service.out(&entry.value, NO_BACKEND, Ticket::RESET));
                }
            }
            service.look_for_flood(now, out);
            service.release(&mut self.memory, now, room, out);
        }
        for Released { entry: released, .. } in out.iter().filter_map(|out| out.released.as_deref()) {
            let sequence = released.value.sequence;
            let before = Before { deadline: released.deadline, sequence };
            if self.released.insert(released.key, before).is_none() {
                self.released_order.push_back(released.key);
            }
        }
        while self.released_order.len() > REMEMBERED {
            if let Some(key) = self.released_order.pop_front() {
                self.released.remove(&key);
            }
        }
    }

    /// Takes back a frame that could not be sent; what was released waits again, as if it had never been out.
    pub fn take_back(&mut self, out: Out, room: &impl Room) {
        if out.ticket.backend != NO_BACKEND {
            room.give_back(out.ticket.backend);
        }
        let (Some(released), Some(service)) = (out.released, self.services.get_mut(&out.ticket.service)) else {
            return;
        };
        let Released { mut entry, wait } = *released;
        entry.value.frame = out.frame;
        service.enter(&mut self.memory, &entry);
        let class = service.count(entry.class);
        class.ends[End::Released as usize] -= 1;
        class.waits.take_back(wait);
        if let Some(later) = service.queue.give_back(entry) {
            // Its client has sent another one meanwhile.
            service.count(later.class).arrived -= 1;
            service.repeated += 1;
            service.free(&mut self.memory, &later);
        }
    }

    /// Notes how many clients of a service were challenged until now.
    pub fn challenged(&mut self, service: u16, count: u64, now: Duration) {
        let Some(service) = self.services.get_mut(&service) else { return };
        let answered = std::mem::take(&mut service.answered);
        let new = service.challenged.replace(count).map_or(0, |before| count.saturating_sub(before));
        if service.challenge_until.is_some() && new.saturating_sub(answered) * 10 >= service.many_unverified() as u64 {
            service.challenge_until = Some(now + CHALLENGE_FOR);
        }
    }

    /// Services, whether something waits, and whether clients have to show where they are.
    pub fn states(&self) -> impl Iterator<Item = (u16, bool, bool)> + '_ {
        let state = |service: &Service| (service.plan.service, !service.queue.is_empty(), service.challenges());
        self.services.values().map(state)
    }

    /// When something has waited for too long, if nothing is released before.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.services.values().filter_map(|service| service.queue.next_deadline()).min()
    }

    pub fn memory(&self) -> u64 {
        self.memory
    }

    pub fn len(&self) -> usize {
        self.services.values().map(|service| service.queue.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By names of services.
    pub fn report(&self, now: Duration) -> Vec<ServiceReport> {
        let mut reports: Vec<ServiceReport> = Vec::new();
        for report in self.services.values().map(|service| service.report(now)) {
            match reports.iter_mut().find(|other| other.name == report.name) {
                Some(part) => part.add(report),
                None => reports.push(report),
            }
        }
        reports
    }
}

/// What the bound per source goes by.
fn source(held: &Held, (ipv4, ipv6): (u8, u8)) -> u128 {
    let [a, b, c, d] = held.src.0.map(|word| u128::from(u32::from_be(word)));
    if held.ipv6 != 0 {
        let addr = (a << 96) | (b << 64) | (c << 32) | d;
        addr & prefix_mask(ipv6)
    } else {
        // As mapped addresses (RFC 4291, section 2.5.5.2), which no packet of IPv6 comes from.
        (0xffff << 32 | a) & prefix_mask(96 + ipv4)
    }
}

fn prefix_mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
