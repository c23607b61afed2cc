//! Each rule as a promise, on a clock that the tests turn; the sums also after any order of events.

mod life;
mod release;
mod classes;
mod bounds;
mod challenge;
mod reload;
mod sums;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;

use loadbalancer_common::net::{AnyAddr, Be16};

use super::*;
use crate::queue::classes::QueueClass;
use crate::queue::frame::ENTRY_BYTES;
use crate::queue::order::{self, Entry};
use crate::queue::plan::Candidate;
use crate::queue::settings::{ServiceQueue, Verify};

const SERVICE: u16 = 7;
/// As an interface that frames come by.
const IFINDEX: u32 = 3;
const SECOND: Duration = Duration::from_secs(1);
/// Frames of tests, unless something else is said.
const FRAME: usize = 60;
const ENTRY: u64 = ENTRY_BYTES + FRAME as u64;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Counters of active flows, as the packet path has them.
#[derive(Default)]
struct Servers {
    active: RefCell<BTreeMap<u16, u32>>,
    taken: Cell<u32>,
    /// Each time that so many places were asked for, somebody else is quicker and takes one at the same server.
    rival_after: Option<u32>,
    rivals: Cell<u32>,
}

impl Servers {
    fn set(&self, backend: u16, active: u32) {
        self.active.borrow_mut().insert(backend, active);
    }

    fn all(&self) -> Vec<u32> {
        self.active.borrow().values().copied().collect()
    }
}

impl Room for Servers {
    fn active(&self, backend: u16) -> u32 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn take(&self, backend: u16, high_water: u32) -> bool {
        self.taken.set(self.taken.get() + 1);
        let mut active = self.active.borrow_mut();
        let active = active.entry(backend).or_default();
        if self.rival_after.is_some_and(|after| self.taken.get().is_multiple_of(after)) && *active < high_water {
            *active += 1;
            self.rivals.set(self.rivals.get() + 1);
        }
        let has_room = *active < high_water;
        *active += u32::from(has_room);
        has_room
    }

    fn give_back(&self, backend: u16) {
        *self.active.borrow_mut().get_mut(&backend).expect("it was taken") -= 1;
    }
}

fn place(backend: u16, weight: u32, high_water: u32) -> Candidate {
    Candidate { backend, weight, high_water, tier: 0 }
}

fn plan(settings: ServiceQueue, servers: &[Candidate]) -> Plan {
    Plan {
        service: SERVICE,
        name: "web".to_owned(),
        settings: Arc::new(settings),
        servers: servers.to_vec(),
        responder: NO_BACKEND,
        tells: true,
    }
}

/// The first packet of a connection from an address of its own, and verified.
fn held(hash: u64, now: Duration) -> Held {
    Held {
        hash,
        time: now.as_nanos() as u64,
        src: address(IpAddr::from([10, (hash >> 8) as u8, hash as u8, 1])),
        ifindex: IFINDEX,
        service: SERVICE,
        length: FRAME as u16,
        dport: Be16::new(80),
        kind: kind::FLOW,
        protocol: protocol::TCP,
        verified: 1,
        ..Held::default()
    }
}

fn unverified(hash: u64, now: Duration) -> Held {
    Held { verified: 0, ..held(hash, now) }
}

fn datagram(hash: u64, now: Duration) -> Held {
    Held { protocol: protocol::UDP, ..unverified(hash, now) }
}

fn address(addr: IpAddr) -> AnyAddr {
    match addr {
        IpAddr::V4(addr) => AnyAddr([u32::from_ne_bytes(addr.octets()), 0, 0, 0]),
        IpAddr::V6(addr) => {
            let octets = addr.octets();
            AnyAddr(std::array::from_fn(|word| {
                u32::from_ne_bytes(octets[word * 4..][..4].try_into().expect("four bytes"))
            }))
        }
    }
}

/// A service that queues, its servers, and the clock.
struct Bench {
    engine: Engine,
    room: Servers,
    plan: Plan,
    now: Duration,
    out: Vec<Out>,
}

/// What goes back to the packet path, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    To(u16),
    Reset,
    Challenge,
}

impl Bench {
    fn new(settings: ServiceQueue, servers: &[Candidate]) -> Self {
        let plan = plan(settings, servers);
        let mut engine = Engine::new(1 << 20);
        engine.follow(vec![plan.clone()]);
        let room = Servers::default();
        servers.iter().for_each(|place| room.set(place.backend, 0));
        // Not zero, where nothing could have come before.
        Self { engine, room, plan, now: 100 * SECOND, out: Vec::new() }
    }

    fn follow(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        self.engine.follow(vec![self.plan.clone()]);
    }

    fn take(&mut self, held: Held) {
        let frame = [held.hash as u8; 1500];
        self.engine.take(&held, &frame[..usize::from(held.length)], self.now, &mut self.out);
    }

    /// First packets that come now.
    fn arrive(&mut self, hashes: impl IntoIterator<Item = u64>) {
        let now = self.now;
        hashes.into_iter().for_each(|hash| self.take(held(hash, now)));
    }

    fn tell(&mut self, kind: u8, hash: u64) {
        self.take(Held { kind, length: 0, ..held(hash, self.now) });
    }

    fn step(&mut self) -> Vec<(u64, Sent)> {
        self.engine.step(self.now, &self.room, &mut self.out);
        self.sent()
    }

    fn step_after(&mut self, time: Duration) -> Vec<(u64, Sent)> {
        self.now += time;
        self.step()
    }

    /// What went out since it was asked last, by the first byte of the frames, which tells the flow.
    fn sent(&mut self) -> Vec<(u64, Sent)> {
        let sent = |out: Out| {
            assert_eq!((out.ticket.service, out.ticket.ifindex), (SERVICE, IFINDEX));
            let sent = match (out.ticket.backend, out.ticket.flags) {
                (NO_BACKEND, Ticket::RESET) => Sent::Reset,
                (NO_BACKEND, Ticket::CHALLENGE) => Sent::Challenge,
                (NO_BACKEND, flags) => panic!("a ticket of no server with flags {flags}"),
                (backend, flags) => {
                    assert_eq!(flags, 0);
                    Sent::To(backend)
                }
            };
            (u64::from(out.frame[0]), sent)
        };
        self.out.drain(..).map(sent).collect()
    }

    fn report(&self) -> ServiceReport {
        self.engine.report(self.now).remove(0)
    }

    fn ended(&self, how: End) -> u64 {
        self.report().ended(how)
    }

    fn arrived(&self) -> u64 {
        self.report().classes.iter().map(|class| class.arrived).sum()
    }

    fn datagram_bytes(&self) -> u64 {
        self.engine.services[&SERVICE].datagram_bytes
    }

    fn assert_sums(&self) {
        let report = self.report();
        for class in &report.classes {
            let ended: u64 = class.ends.iter().sum();
            assert_eq!(class.arrived, class.waiting + ended, "{class:?}");
            let waited = [End::Released, End::Expired, End::Responded, End::GaveUp, End::GaveWay]
                .map(|end| class.ends[end as usize]);
            assert_eq!(class.waits, waited.iter().sum::<u64>(), "{class:?}");
        }
        let service = &self.engine.services[&SERVICE];
        let size = |entry: Entry<&Parked>| ENTRY_BYTES + entry.value.frame.len() as u64;
        assert_eq!(self.engine.memory(), service.queue.iter().map(size).sum::<u64>());
        let datagrams = service.queue.iter().filter(|entry| entry.value.is_datagram);
        assert_eq!(service.datagram_bytes, datagrams.map(size).sum::<u64>());
        assert!(self.engine.memory() <= self.engine.memory_limit());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.engine.services.is_empty() {
            self.assert_sums();
        }
    }
}

fn to(sent: &[(u64, Sent)]) -> Vec<u16> {
    sent.iter().filter_map(|(_, sent)| if let Sent::To(backend) = sent { Some(*backend) } else { None }).collect()
}

fn flows(sent: &[(u64, Sent)]) -> Vec<u64> {
    sent.iter().map(|(flow, _)| *flow).collect()
}

fn ordered(change: impl FnOnce(&mut order::Settings)) -> ServiceQueue {
    let mut settings = ServiceQueue::default();
    change(&mut settings.order);
    settings
}

/// By prefix (which the packet path tells), by DSCP 46 and by port 22.
fn classes() -> ServiceQueue {
    let class = |name: &str, ring, seconds| QueueClass {
        name: name.to_owned(),
        ring,
        deadline: seconds * SECOND,
        clients: Vec::new(),
        dscp: Vec::new(),
        ports: Vec::new(),
    };
    let classes = vec![
        class("gold", 0, 60),
        QueueClass { dscp: vec![46], ..class("voice", 1, 1) },
        QueueClass { ports: vec![22], ..class("shell", 4, 30) },
    ];
    ServiceQueue { classes: classes.into(), ..ServiceQueue::default() }
}

fn states(bench: &Bench) -> Vec<(u16, bool, bool)> {
    bench.engine.states().collect()
}
