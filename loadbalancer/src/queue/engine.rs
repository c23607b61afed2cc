//! Everything that waits, of all services: takes what the packet path hands over, and says what goes where.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::net::protocol;
use loadbalancer_common::queue::{Held, Ticket, kind};

use super::order::{Arrival, Entry, Full, Pushed, Queue, Which};
use super::report::{ClassReport, End, ServiceReport};
use super::wait::Recent;
use crate::config::{AtDeadline, ServiceQueue, Verify};

/// Memory of an entry beside its frame, see the test of [`Queue`]'s memory.
const ENTRY_BYTES: u64 = 256;
/// How many that were released are remembered, in case that they come back.
const REMEMBERED: usize = 1 << 16;
/// Clients must show that they are at their address once this part of the entries is of some that have not (`verify = "auto"`):
/// as SYN cookies, which begin when a backlog is full.
const UNVERIFIED_PART: usize = 4;
/// How long they have to once a flood is over: as long as more challenges than a tenth of that part stay without an answer each
/// time that they are counted, it is not.
const CHALLENGE_FOR: Duration = Duration::from_secs(60);

/// A service whose flows may wait, as it is in the kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    pub service: u16,
    pub name: String,
    pub settings: Arc<ServiceQueue>,
    /// Servers that may get new flows.
    pub servers: Vec<Place>,
    /// Backend that answers whom no server takes; zero: there is none.
    pub responder: u16,
    /// Whether clients that are refused are told so.
    pub tells: bool,
}

/// Settings may have many prefixes, and are mostly the very same.
impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        let rest = |plan: &Self| (plan.service, plan.responder, plan.tells);
        rest(self) == rest(other)
            && self.name == other.name
            && self.servers == other.servers
            && (Arc::ptr_eq(&self.settings, &other.settings) || self.settings == other.settings)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub backend: u16,
    pub weight: u32,
    /// Most active flows.
    pub mark: u32,
    pub tier: u8,
}

/// Active flows of servers, which the packet path counts as well.
pub trait Room {
    fn active(&self, backend: u16) -> u32;
    /// Counts one more, if there are fewer than `mark`.
    fn take(&self, backend: u16, mark: u32) -> bool;
    fn give_back(&self, backend: u16);
}

/// A frame that goes back to the packet path.
#[derive(Debug)]
pub struct Out {
    pub ticket: Ticket,
    pub frame: Box<[u8]>,
    released: Option<Box<Released>>,
}

#[derive(Debug)]
struct Released {
    /// Without its frame.
    entry: Entry<Parked>,
    wait: Duration,
}

/// What a waiting flow is but for its place in the queue.
#[derive(Clone, Debug, Default)]
struct Parked {
    frame: Box<[u8]>,
    ifindex: u32,
    preferred: u16,
    is_datagram: bool,
    /// Of the first packet, see [`Held`].
    sequence: u32,
}

/// Until when a flow that was released may wait, if it comes again.
#[derive(Clone, Copy, Debug)]
struct Before {
    deadline: Duration,
    sequence: u32,
}

#[derive(Debug, Default)]
struct Class {
    arrived: u64,
    ends: [u64; End::ALL.len()],
    waits: Recent,
}

struct Service {
    plan: Plan,
    queue: Queue<Parked>,
    datagram_bytes: u64,
    /// By number: 0, then those of the configuration.
    classes: Vec<Class>,
    repeated: u64,
    challenge_until: Option<Duration>,
    /// Challenges until they were counted last, and answers to them since.
    challenged: Option<u64>,
    answered: u64,
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
            self.memory -= bytes(&entry);
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
        // Another connection of the same client and port: the one before has been given up.
        if service.queue.get(held.hash).is_some_and(|entry| entry.value.sequence != held.sequence)
            && let Some(entry) = service.queue.remove(held.hash)
        {
            service.leave(&mut self.memory, &entry, End::GaveUp, now);
        }
        let is_datagram = held.protocol != protocol::TCP;
        // Who sends datagrams cannot be asked where it is, and would never be released in a flood. Their memory bounds them.
        let verified = held.verified != 0 || is_datagram;
        let parked = Parked {
            frame: frame.into(),
            ifindex: held.ifindex,
            preferred: held.preferred,
            is_datagram,
            sequence: held.sequence,
        };
        let size = ENTRY_BYTES + frame.len() as u64;
        let too_large = self.memory + size > self.memory_limit
            || (is_datagram && service.datagram_bytes + size > settings.udp_memory);
        if too_large && service.queue.get(held.hash).is_none() {
            service.count(class).arrived += 1;
            service.refuse(&parked, class, verified, End::MemoryFull, out);
            return;
        }
        let arrival = Arrival {
            key: held.hash,
            source: source(held, settings.source_prefix),
            ring,
            class,
            arrived: came,
            deadline,
            verified,
            value: parked,
        };
        match service.queue.push(arrival, now) {
            Pushed::Known => {
                service.repeated += 1;
                // Its newest time stamp, by which the client measures the way.
                service.queue.set_value(held.hash, |parked| {
                    if !is_datagram && parked.frame.len() == frame.len() {
                        parked.frame.copy_from_slice(frame);
                    }
                });
            }
            Pushed::Refused { arrival, why } => {
                service.count(class).arrived += 1;
                let why = match why {
                    Full::Entries => End::EntriesFull,
                    Full::Source => End::SourceFull,
                };
                service.refuse(&arrival.value, class, arrival.verified, why, out);
            }
            Pushed::New { evicted } => {
                service.count(class).arrived += 1;
                self.memory += size;
                if is_datagram {
                    service.datagram_bytes += size;
                }
                if let Some(entry) = evicted {
                    service.leave(&mut self.memory, &entry, End::GaveWay, now);
                    if entry.verified && service.plan.tells {
                        out.push(service.out(&entry.value, NO_BACKEND, Ticket::RESET));
                    }
                }
            }
        }
        service.look_for_flood(now, out);
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

/// What an entry takes of the memory of all.
fn bytes(entry: &Entry<Parked>) -> u64 {
    ENTRY_BYTES + entry.value.frame.len() as u64
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

impl Service {
    fn new(plan: Plan) -> Self {
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
    fn follow_classes(&mut self, settings: &ServiceQueue) {
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

    fn count(&mut self, class: u16) -> &mut Class {
        &mut self.classes[usize::from(class)]
    }

    fn out(&self, parked: &Parked, backend: u16, flags: u16) -> Out {
        let ticket = Ticket::new(self.plan.service, backend, parked.ifindex, flags);
        Out { ticket, frame: parked.frame.clone(), released: None }
    }

    fn enter(&mut self, memory: &mut u64, entry: &Entry<Parked>) {
        *memory += bytes(entry);
        if entry.value.is_datagram {
            self.datagram_bytes += bytes(entry);
        }
    }

    fn free(&mut self, memory: &mut u64, entry: &Entry<Parked>) {
        *memory -= bytes(entry);
        if entry.value.is_datagram {
            self.datagram_bytes -= bytes(entry);
        }
    }

    /// An entry that waits no more.
    fn leave(&mut self, memory: &mut u64, entry: &Entry<Parked>, why: End, now: Duration) {
        self.free(memory, entry);
        let class = self.count(entry.class);
        class.ends[why as usize] += 1;
        class.waits.record(now.saturating_sub(entry.arrived), now);
    }

    /// A flow that may not even wait. Who may be somebody else is told nothing.
    fn refuse(&mut self, parked: &Parked, class: u16, verified: bool, why: End, out: &mut Vec<Out>) {
        self.count(class).ends[why as usize] += 1;
        let is_flood = why == End::SourceFull || (self.challenges() && !verified);
        if self.plan.tells && !is_flood {
            out.push(self.out(parked, NO_BACKEND, Ticket::RESET));
        }
    }

    /// Whether one that has waited for too long goes to the responder. In a flood nothing is kept of who may be
    /// somebody else.
    fn may_respond(&self, entry: &Entry<Parked>) -> bool {
        self.plan.settings.at_deadline == AtDeadline::Respond
            && self.plan.responder != NO_BACKEND
            && !entry.value.is_datagram
            && (entry.verified || !self.challenges())
    }

    fn challenges(&self) -> bool {
        self.plan.settings.verify == Verify::Always || self.challenge_until.is_some()
    }

    fn many_unverified(&self) -> usize {
        (self.plan.settings.order.max_entries / UNVERIFIED_PART).max(1)
    }

    /// Begins and ends asking clients to show that they are at their address.
    fn look_for_flood(&mut self, now: Duration, out: &mut Vec<Out>) {
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
    fn release(&mut self, memory: &mut u64, now: Duration, room: &impl Room, out: &mut Vec<Out>) {
        if self.queue.is_empty() {
            return;
        }
        let which = if self.challenges() { Which::Verified } else { Which::All };
        let load = |place: &Place, active: u32| (u64::from(active) << 16) / u64::from(place.weight.max(1));
        let of_place = |(position, place): (usize, &Place)| {
            let active = room.active(place.backend);
            (active < place.mark).then(|| Reverse((place.tier, load(place, active), position)))
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
                if active < place.mark {
                    free.push(Reverse((tier, load(&place, active), position)));
                }
                continue;
            }
            let other = self.plan.servers.iter().find(|other| other.backend == preferred && preferred != place.backend);
            // The server that its client had before, if it has room; else the one at hand, which somebody else may have filled.
            let taken = if other.is_some_and(|other| room.take(other.backend, other.mark)) {
                preferred
            } else if room.take(place.backend, place.mark) {
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
            if active < place.mark {
                free.push(Reverse((tier, load(&place, active), position)));
            }
        }
    }

    fn report(&self, now: Duration) -> ServiceReport {
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
                ends: End::ALL.iter().map(|end| (end.label().to_owned(), class.ends[*end as usize])).collect(),
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

#[cfg(test)]
mod tests;
