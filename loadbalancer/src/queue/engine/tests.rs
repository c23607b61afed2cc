//! Each rule as a promise, on a clock that the tests turn; the sums also after any order of events.

mod sums;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;

use loadbalancer_common::net::{AnyAddr, Be16};

use super::*;
use crate::config::QueueClass;
use crate::queue::order;

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

    fn take(&self, backend: u16, mark: u32) -> bool {
        self.taken.set(self.taken.get() + 1);
        let mut active = self.active.borrow_mut();
        let active = active.entry(backend).or_default();
        if self.rival_after.is_some_and(|after| self.taken.get().is_multiple_of(after)) && *active < mark {
            *active += 1;
            self.rivals.set(self.rivals.get() + 1);
        }
        let has_room = *active < mark;
        *active += u32::from(has_room);
        has_room
    }

    fn give_back(&self, backend: u16) {
        *self.active.borrow_mut().get_mut(&backend).expect("it was taken") -= 1;
    }
}

fn place(backend: u16, weight: u32, mark: u32) -> Place {
    Place { backend, weight, mark, tier: 0 }
}

fn plan(settings: ServiceQueue, servers: &[Place]) -> Plan {
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
    fn new(settings: ServiceQueue, servers: &[Place]) -> Self {
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
            let ended: u64 = class.ends.values().sum();
            assert_eq!(class.arrived, class.waiting + ended, "{class:?}");
            let waited = [End::Released, End::Expired, End::Responded, End::GaveUp, End::GaveWay]
                .map(|end| class.ends[end.label()]);
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

#[test]
fn the_least_loaded_server_for_its_weight_gets_the_next() {
    // Weights, active flows before, how many are released; active flows after.
    for (weights, before, count, after) in [
        (vec![1, 1, 1], vec![0, 0, 0], 6, vec![2, 2, 2]),
        (vec![1, 1], vec![3, 0], 3, vec![3, 3]),
        (vec![1, 2, 5], vec![0, 0, 0], 16, vec![2, 4, 10]),
        (vec![10, 30], vec![0, 0], 40, vec![10, 30]),
        (vec![1, 1_000], vec![0, 0], 50, vec![1, 49]),
    ] {
        let servers: Vec<Place> = (1..).zip(&weights).map(|(backend, weight)| place(backend, *weight, 1_000)).collect();
        let mut bench = Bench::new(ServiceQueue::default(), &servers);
        (1..).zip(&before).for_each(|(backend, active)| bench.room.set(backend, *active));
        bench.arrive(0..count);
        assert_eq!(bench.step().len() as u64, count);
        assert_eq!(bench.room.all(), after, "{weights:?}");
    }
}

#[test]
fn another_tier_is_used_only_when_those_before_it_are_full() {
    let servers = [
        Place { tier: 1, ..place(1, 100, 10) },
        Place { tier: 0, ..place(2, 1, 2) },
        Place { tier: 2, ..place(3, 1, 10) },
        Place { tier: 0, ..place(4, 1, 3) },
    ];
    let mut bench = Bench::new(ServiceQueue::default(), &servers);
    bench.arrive(0..7);
    assert_eq!(to(&bench.step()), [2, 4, 2, 4, 4, 1, 1]);
    bench.room.give_back(4);
    bench.arrive(7..9);
    assert_eq!(to(&bench.step()), [4, 1]);
}

#[test]
fn no_server_gets_more_than_its_mark_also_if_others_take_places_meanwhile() {
    for rival_after in [None, Some(1), Some(2), Some(3), Some(7)] {
        let servers = [place(1, 1, 5), place(2, 3, 4), place(3, 1, 0)];
        let mut bench = Bench::new(ServiceQueue::default(), &servers);
        bench.room.rival_after = rival_after;
        bench.arrive(0..20);
        let sent = to(&bench.step()).len() as u32;
        assert_eq!(sent + bench.room.rivals.get(), 9, "every place is taken, every {rival_after:?}th by a rival");
        assert_eq!(bench.room.all(), [5, 4, 0]);
        assert_eq!(bench.report().waiting, u64::from(20 - sent));
        assert_eq!(bench.step(), [], "nothing goes where there is no room");
    }
}

#[test]
fn a_place_that_becomes_free_goes_to_the_first_in_line() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 2), place(2, 1, 2)]);
    bench.arrive([1, 2, 3, 4]);
    bench.step();
    for flow in [5, 6, 7] {
        bench.now += ms(1);
        bench.arrive([flow]);
    }
    assert_eq!(bench.step(), []);
    for (server, flow) in [(2, 5), (1, 6), (2, 7)] {
        bench.room.give_back(server);
        assert_eq!(bench.step(), [(flow, Sent::To(server))]);
    }
    bench.room.give_back(1);
    assert_eq!(bench.step(), [], "nobody is left");
}

#[test]
fn a_raised_mark_is_made_use_of_and_a_lowered_one_is_kept() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 1)]);
    bench.arrive(1..=5);
    assert_eq!(bench.step().len(), 1);
    bench.follow(|plan| plan.servers = vec![place(1, 1, 3)]);
    assert_eq!(bench.step().len(), 2);
    bench.follow(|plan| plan.servers = vec![place(1, 1, 1)]);
    bench.room.give_back(1);
    bench.room.give_back(1);
    assert_eq!(bench.step(), []);
    bench.room.give_back(1);
    assert_eq!(bench.step().len(), 1);
}

#[test]
fn repeated_first_packets_are_one_with_the_first_arrival_and_the_newest_frame() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 0)]);
    let begun = bench.now;
    bench.take(unverified(1, begun));
    for second in [1, 3, 7] {
        bench.now = begun + second * SECOND;
        let now = bench.now;
        let frame = [100 + second as u8; FRAME];
        bench.engine.take(&unverified(1, now), &frame, now, &mut bench.out);
    }
    let report = bench.report();
    assert_eq!((report.waiting, report.repeated, report.unverified), (1, 3, 1));
    assert_eq!((bench.arrived(), bench.engine.memory()), (1, ENTRY));
    assert_eq!(report.classes[0].oldest_s, Some(7.0));
    // The same with the address known to be right.
    bench.take(held(1, bench.now));
    assert_eq!(bench.report().unverified, 0);
    bench.engine.take(&unverified(1, bench.now), &[107; FRAME], bench.now, &mut bench.out);
    assert_eq!(bench.report().unverified, 0);
    assert_eq!(bench.engine.next_deadline(), Some(begun + 10 * SECOND));
    bench.follow(|plan| plan.servers = vec![place(1, 1, 1)]);
    assert_eq!(bench.step(), [(107, Sent::To(1))]);
    assert_eq!(bench.report().classes[0].waited_s, 7.0);
}

#[test]
fn a_client_that_gives_up_waits_no_more_and_is_told_nothing() {
    let mut bench = Bench::new(ServiceQueue::default(), &[]);
    bench.arrive([1, 2]);
    for hash in [1, 1, 9] {
        bench.tell(kind::RESET, hash);
    }
    assert_eq!((bench.report().waiting, bench.ended(End::GaveUp)), (1, 1));
    assert_eq!(bench.engine.memory(), ENTRY);
    assert_eq!(bench.step(), []);
    bench.tell(99, 2);
    assert_eq!(bench.report().waiting, 1, "a record of no known kind is passed over");
}

#[test]
fn at_its_deadline_a_client_is_told_what_its_service_says() {
    const RESPONDER: u16 = 40;
    for (at_deadline, responder, is_datagram, sent) in [
        (AtDeadline::Reset, NO_BACKEND, false, Some(Sent::Reset)),
        (AtDeadline::Reset, RESPONDER, false, Some(Sent::Reset)),
        (AtDeadline::Reset, NO_BACKEND, true, Some(Sent::Reset)),
        (AtDeadline::Drop, NO_BACKEND, false, None),
        (AtDeadline::Drop, RESPONDER, false, None),
        (AtDeadline::Respond, RESPONDER, false, Some(Sent::To(RESPONDER))),
        (AtDeadline::Respond, RESPONDER, true, Some(Sent::Reset)),
        (AtDeadline::Respond, NO_BACKEND, false, Some(Sent::Reset)),
    ] {
        let case = format!("{at_deadline:?}, {responder}, {is_datagram}");
        let settings =
            ServiceQueue { at_deadline, deadline: 2 * SECOND, udp_memory: 1 << 16, ..ServiceQueue::default() };
        let mut bench = Bench::new(settings, &[place(1, 1, 0)]);
        bench.follow(|plan| plan.responder = responder);
        let now = bench.now;
        bench.take(if is_datagram { datagram(1, now) } else { held(1, now) });
        assert_eq!(bench.engine.next_deadline(), Some(now + 2 * SECOND));
        assert_eq!(bench.step_after(2 * SECOND - ms(1)), [], "{case}");
        let wanted: Vec<(u64, Sent)> = sent.map(|sent| (1, sent)).into_iter().collect();
        assert_eq!(bench.step_after(ms(1)), wanted, "{case}");
        let how = if matches!(sent, Some(Sent::To(_))) { End::Responded } else { End::Expired };
        assert_eq!((bench.ended(how), bench.ended(End::Released)), (1, 0), "{case}");
        assert_eq!((bench.engine.memory(), bench.engine.len(), bench.datagram_bytes()), (0, 0, 0), "{case}");
        // The responder's flow is counted there, and at nobody else.
        let responds = u32::from(sent == Some(Sent::To(RESPONDER)));
        assert_eq!((bench.room.active(RESPONDER), bench.room.active(1)), (responds, 0), "{case}");
    }
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

#[test]
fn prefix_else_dscp_else_port_decides_the_class_with_its_ring_and_deadline() {
    // Class by prefix plus one, type of service, port; class, ring, deadline in seconds.
    for (class, tos, port, wanted) in [
        (0, 0, 80, (0, 2, 10)),
        (1, 0, 80, (1, 0, 60)),
        (1, 46 << 2, 22, (1, 0, 60)),
        (0, 46 << 2, 80, (2, 1, 1)),
        (0, 46 << 2 | 3, 22, (2, 1, 1)),
        (0, 45 << 2, 22, (3, 4, 30)),
        (9, 0, 22, (3, 4, 30)),
        (9, 0, 80, (0, 2, 10)),
    ] {
        let mut bench = Bench::new(classes(), &[]);
        let now = bench.now;
        bench.take(Held { class, tos, dport: Be16::new(port), ..held(1, now) });
        let queue = &bench.engine.services[&SERVICE].queue;
        let entry = queue.get(1).expect("it waits");
        let seconds = (entry.deadline - now).as_secs();
        assert_eq!((entry.class, entry.ring, seconds), wanted, "class {class}, tos {tos}, port {port}");
        let report = bench.report();
        let waiting: Vec<u64> = report.classes.iter().map(|class| class.waiting).collect();
        assert_eq!(waiting.iter().position(|waiting| *waiting == 1), Some(usize::from(wanted.0)));
        assert_eq!(report.classes[usize::from(wanted.0)].priority, wanted.1 + 1);
    }
}

#[test]
fn urgent_classes_are_released_first_and_each_is_counted_by_itself() {
    let mut bench = Bench::new(classes(), &[place(1, 1, 0)]);
    let now = bench.now;
    bench.take(held(1, now));
    bench.take(Held { dport: Be16::new(22), ..held(2, now) });
    bench.take(Held { tos: 46 << 2, ..held(3, now) });
    bench.take(Held { class: 1, ..held(4, now) });
    bench.follow(|plan| plan.servers = vec![place(1, 1, 3)]);
    assert_eq!(flows(&bench.step()), [4, 3, 1]);
    // The last one's deadline is its own.
    bench.follow(|plan| plan.servers = vec![]);
    assert_eq!(bench.step_after(30 * SECOND), [(2, Sent::Reset)]);
    let report = bench.report();
    let names: Vec<Option<&str>> = report.classes.iter().map(|class| class.name.as_deref()).collect();
    assert_eq!(names, [None, Some("gold"), Some("voice"), Some("shell")]);
    for (class, end) in report.classes.iter().zip([End::Released, End::Released, End::Released, End::Expired]) {
        assert_eq!((class.arrived, class.ends[end.label()]), (1, 1), "{class:?}");
    }
}

#[test]
fn more_than_max_entries_do_not_wait_and_their_clients_are_told() {
    for tells in [true, false] {
        let mut bench = Bench::new(ordered(|order| order.max_entries = 3), &[]);
        bench.follow(|plan| plan.tells = tells);
        bench.arrive(1..=5);
        let told: &[(u64, Sent)] = if tells { &[(4, Sent::Reset), (5, Sent::Reset)] } else { &[] };
        assert_eq!(bench.sent(), told);
        assert_eq!((bench.report().waiting, bench.ended(End::EntriesFull), bench.arrived()), (3, 2, 5));
        bench.arrive([1]);
        assert_eq!((bench.report().repeated, bench.ended(End::EntriesFull)), (1, 2), "who waits may repeat itself");
    }
}

#[test]
fn a_source_prefix_has_its_own_bound_and_is_told_nothing_beyond_it() {
    let all = ["10.0.0.1", "10.0.0.255", "10.0.1.0", "2001:db8:0:0::1", "2001:db8:0:ff:1::1", "2001:db8:0:100::1"];
    for (prefix, fits) in [
        ((24, 56), vec![true, false, true, true, false, true]),
        ((32, 128), vec![true; 6]),
        ((8, 16), vec![true, false, false, true, false, false]),
        ((23, 64), vec![true, false, false, true, true, true]),
    ] {
        let mut settings = ordered(|order| order.max_per_source = 1);
        settings.source_prefix = prefix;
        let mut bench = Bench::new(settings, &[]);
        for ((hash, addr), fits) in (1..).zip(all).zip(&fits) {
            let addr: IpAddr = addr.parse().expect("an address");
            let before = bench.report().waiting;
            let now = bench.now;
            bench.take(Held { src: address(addr), ipv6: u8::from(addr.is_ipv6()), ..held(hash, now) });
            assert_eq!(bench.report().waiting - before, u64::from(*fits), "{addr} with {prefix:?}");
        }
        let refused = fits.iter().filter(|fits| !**fits).count() as u64;
        assert_eq!((bench.ended(End::SourceFull), bench.arrived()), (refused, 6));
        assert_eq!(bench.sent(), []);
    }
    // Neighbours are told apart if all bits count.
    let mut settings = ordered(|order| order.max_per_source = 1);
    settings.source_prefix = (32, 128);
    let mut bench = Bench::new(settings, &[]);
    for (hash, addr) in [(1, "10.0.0.0"), (2, "10.0.0.1"), (3, "2001:db8::"), (4, "2001:db8::1")] {
        let addr: IpAddr = addr.parse().expect("an address");
        let now = bench.now;
        bench.take(Held { src: address(addr), ipv6: u8::from(addr.is_ipv6()), ..held(hash, now) });
    }
    assert_eq!(bench.report().waiting, 4);
}

#[test]
fn what_waits_keeps_within_the_memory_of_all_services() {
    let mut bench = Bench::new(ServiceQueue::default(), &[]);
    let other = Plan { service: 8, name: "mail".to_owned(), ..bench.plan.clone() };
    bench.engine.follow(vec![bench.plan.clone(), other]);
    bench.engine.set_memory_limit(3 * ENTRY + 10);
    let now = bench.now;
    bench.take(Held { service: 8, ..held(1, now) });
    bench.arrive([2]);
    // The larger one does not fit, the next one does.
    bench.take(Held { length: FRAME as u16 + 11, ..held(3, now) });
    bench.take(Held { length: FRAME as u16 + 10, ..held(4, now) });
    bench.arrive([5]);
    bench.arrive([2]);
    assert_eq!(bench.engine.memory(), 3 * ENTRY + 10);
    assert_eq!(bench.sent(), [(3, Sent::Reset), (5, Sent::Reset)]);
    let told = bench.engine.report(now);
    let find = |name: &str| told.iter().find(|service| service.name == name).expect("it is told");
    assert_eq!((find("web").ended(End::MemoryFull), find("web").repeated, find("web").waiting), (2, 1, 2));
    assert_eq!((find("mail").ended(End::MemoryFull), find("mail").waiting), (0, 1));
    bench.tell(kind::RESET, 2);
    bench.arrive([6]);
    assert_eq!((bench.report().waiting, bench.sent()), (2, vec![]), "what was free goes to the next");
    bench.engine.follow(vec![bench.plan.clone()]);
}

#[test]
fn datagrams_have_a_bound_of_their_own() {
    let mut bench = Bench::new(ServiceQueue { udp_memory: 2 * ENTRY, ..ServiceQueue::default() }, &[]);
    let now = bench.now;
    (1..=3).for_each(|hash| bench.take(datagram(hash, now)));
    bench.arrive([4]);
    bench.take(datagram(1, now));
    assert_eq!((bench.report().waiting, bench.ended(End::MemoryFull), bench.datagram_bytes()), (3, 1, 2 * ENTRY));
    assert_eq!(bench.sent(), [(3, Sent::Reset)]);
    bench.follow(|plan| plan.servers = vec![place(1, 1, 1)]);
    assert_eq!(flows(&bench.step()), [1]);
    bench.take(datagram(5, now));
    assert_eq!((bench.report().waiting, bench.datagram_bytes()), (3, 2 * ENTRY));
}

#[test]
fn who_gives_way_is_counted_and_told_only_if_it_is_who_it_says() {
    // A verified newcomer takes the place of one that is not.
    let mut bench = Bench::new(ServiceQueue { verify: Verify::Never, ..ordered(|order| order.max_entries = 2) }, &[]);
    let now = bench.now;
    bench.take(unverified(1, now));
    bench.arrive([2, 3]);
    assert_eq!((bench.report().waiting, bench.ended(End::GaveWay), bench.sent()), (2, 1, vec![]));
    bench.arrive([4]);
    assert_eq!((bench.ended(End::GaveWay), bench.ended(End::EntriesFull)), (1, 1));
    assert_eq!(bench.sent(), [(4, Sent::Reset)]);
    // One of another ring that holds less for its weight takes that of a verified one, which is told.
    for tells in [true, false] {
        let mut bench =
            Bench::new(ServiceQueue { order: ordered(|order| order.max_entries = 2).order, ..classes() }, &[]);
        bench.follow(|plan| plan.tells = tells);
        let now = bench.now;
        bench.arrive([1, 2]);
        bench.take(Held { class: 1, ..held(3, now) });
        let told = bench.sent();
        assert_eq!((told.len(), bench.ended(End::GaveWay)), (usize::from(tells), 1), "{told:?}");
        assert!(told.iter().all(|(flow, sent)| [1, 2].contains(flow) && *sent == Sent::Reset));
        assert_eq!(bench.report().classes[1].waiting, 1);
    }
}

#[test]
fn what_waits_for_a_service_that_goes_is_let_go_and_nothing_is_sent() {
    for (what, then) in [("removed", None), ("its number is that of another", Some("mail"))] {
        let mut bench = Bench::new(ServiceQueue { udp_memory: 1 << 16, ..ServiceQueue::default() }, &[]);
        let now = bench.now;
        bench.arrive([1, 2, 3]);
        bench.take(datagram(4, now));
        let then = then.map(|name| Plan { name: name.to_owned(), ..bench.plan.clone() });
        bench.engine.follow(then.into_iter().collect());
        assert_eq!((bench.engine.memory(), bench.engine.len(), bench.engine.next_deadline()), (0, 0, None), "{what}");
        bench.room.set(1, 0);
        assert_eq!(bench.step_after(60 * SECOND), [], "{what}");
        assert_eq!(bench.engine.report(now).iter().map(|service| service.classes[0].arrived).sum::<u64>(), 0);
        // Records of before are passed over.
        bench.engine.follow(Vec::new());
        bench.arrive([5]);
        bench.tell(kind::RESET, 1);
        bench.tell(kind::VERIFIED, 1);
        assert_eq!((bench.sent(), bench.engine.len()), (vec![], 0), "{what}");
    }
}

#[test]
fn other_settings_leave_those_that_wait_where_they_are() {
    let mut bench = Bench::new(classes(), &[]);
    let now = bench.now;
    bench.take(Held { class: 1, ..held(1, now) });
    bench.take(Held { dport: Be16::new(22), ..held(2, now) });
    bench.follow(|plan| {
        plan.settings = Arc::new(ServiceQueue { ring: 4, deadline: SECOND, ..ordered(|order| order.max_entries = 1) });
    });
    assert_eq!((bench.engine.len(), bench.engine.memory()), (2, 2 * ENTRY));
    bench.arrive([3]);
    assert_eq!(bench.sent(), [(3, Sent::Reset)], "the new bound holds for who comes now");
    // One of a class that is gone goes on without.
    let classes = bench.report().classes;
    assert_eq!((classes.len(), classes[0].arrived, classes[0].waiting), (1, 3, 2));
    assert_eq!(bench.step_after(30 * SECOND), [(2, Sent::Reset)]);
    assert_eq!(bench.step_after(30 * SECOND), [(1, Sent::Reset)]);
    assert_eq!((bench.engine.len(), bench.engine.memory(), bench.ended(End::Expired)), (0, 0, 2));
    bench.engine.follow(Vec::new());
}

#[test]
fn classes_are_known_by_name_over_a_reload() {
    let mut bench = Bench::new(classes(), &[]);
    let now = bench.now;
    bench.take(Held { class: 1, ..held(1, now) });
    bench.take(Held { class: 2, ..held(2, now) });
    bench.take(Held { class: 2, ..held(3, now) });
    bench.take(held(4, now));
    let counts = |bench: &Bench| -> Vec<_> {
        let classes = bench.report().classes.into_iter();
        classes.map(|class| (class.name.unwrap_or_default(), class.arrived, class.waiting)).collect()
    };
    let told = counts(&bench);
    let before = classes();
    let of_names = |names: &[usize]| {
        let all: Vec<_> = before.classes.iter().cloned().collect();
        let some: Vec<QueueClass> = names.iter().map(|at| all[*at].clone()).collect();
        Arc::new(ServiceQueue { classes: some.into(), ..before.clone() })
    };
    // Another order; one is gone; it is there again, and new.
    let last = before.classes.len() - 1;
    bench.follow(|plan| plan.settings = of_names(&(0..=last).rev().collect::<Vec<_>>()));
    let mut reversed = told.clone();
    reversed[1..].reverse();
    assert_eq!(counts(&bench), reversed);
    bench.follow(|plan| plan.settings = of_names(&[0]));
    assert_eq!(counts(&bench), [(String::new(), 3, 3), told[1].clone()]);
    bench.follow(|plan| plan.settings = of_names(&[1, 0]));
    assert_eq!(counts(&bench), [(String::new(), 3, 3), (told[2].0.clone(), 0, 0), told[1].clone()]);
}

#[test]
fn servers_that_vanish_get_nothing_of_what_waits() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 1), place(2, 1, 0)]);
    bench.arrive([1, 2, 3, 4]);
    assert_eq!(bench.step(), [(1, Sent::To(1))]);
    bench.room.give_back(1);
    // Drained, or its weight is 0: then the plan is without it.
    bench.follow(|plan| plan.servers = vec![place(2, 1, 0)]);
    assert_eq!(bench.step(), []);
    bench.follow(|plan| plan.servers = Vec::new());
    assert_eq!(bench.step(), []);
    assert_eq!(bench.report().waiting, 3);
    bench.follow(|plan| plan.servers = vec![place(3, 1, 2)]);
    assert_eq!(bench.step(), [(2, Sent::To(3)), (3, Sent::To(3))]);
}

#[test]
fn a_client_goes_to_the_server_that_it_had_if_that_has_room() {
    let servers = [place(1, 1, 4), place(2, 1, 4), Place { tier: 1, ..place(3, 1, 4) }];
    // The preferred server, active flows of each; who gets it.
    for (preferred, active, wanted) in [
        (NO_BACKEND, [0, 0, 0], 1),
        (1, [3, 0, 0], 1),
        (2, [0, 3, 0], 2),
        (2, [0, 4, 0], 1),
        (3, [0, 0, 0], 3),
        (3, [4, 2, 4], 2),
        (1, [4, 4, 0], 3),
        (9, [2, 0, 0], 2),
    ] {
        let mut bench = Bench::new(ServiceQueue::default(), &servers);
        (1..).zip(active).for_each(|(backend, active)| bench.room.set(backend, active));
        let now = bench.now;
        bench.take(Held { preferred, ..held(1, now) });
        assert_eq!(bench.step(), [(1, Sent::To(wanted))], "{preferred} with {active:?}");
        assert_eq!(bench.room.all().iter().sum::<u32>(), active.iter().sum::<u32>() + 1);
    }
}

#[test]
fn what_goes_to_preferred_servers_counts_as_their_load() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 10), place(2, 1, 10)]);
    let now = bench.now;
    (1..=4).for_each(|hash| bench.take(Held { preferred: 2, ..held(hash, now) }));
    bench.now += ms(1);
    bench.arrive(5..=8);
    assert_eq!(to(&bench.step()), [2, 2, 2, 2, 1, 1, 1, 1]);
}

#[test]
fn a_flow_that_comes_again_after_its_release_keeps_its_deadline() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 1)]);
    let begun = bench.now;
    bench.follow(|plan| plan.servers = Vec::new());
    bench.arrive([1]);
    bench.follow(|plan| plan.servers = vec![place(1, 1, 1)]);
    assert_eq!(bench.step_after(SECOND), [(1, Sent::To(1))]);
    // Its server dies; meanwhile others came.
    bench.room.give_back(1);
    bench.follow(|plan| plan.servers = Vec::new());
    bench.arrive([2]);
    bench.now += ms(500);
    bench.arrive([1]);
    assert_eq!(bench.engine.next_deadline(), Some(begun + 10 * SECOND));
    // It has not stood in line meanwhile, which would look like overload.
    assert_eq!(bench.report().classes[0].oldest_s, Some(0.5));
    bench.follow(|plan| plan.servers = vec![place(2, 1, 1)]);
    assert_eq!(bench.step(), [(1, Sent::To(2))]);
    // Once its deadline is over, it is a new one, as its port is used again.
    bench.now = begun + 11 * SECOND;
    bench.follow(|plan| plan.servers = Vec::new());
    bench.arrive([1]);
    assert_eq!(bench.engine.services[&SERVICE].queue.get(1).map(|entry| entry.arrived), Some(bench.now));
    assert_eq!((bench.arrived(), bench.ended(End::Released)), (4, 2));
    assert_eq!(flows(&bench.step()), [2], "it has waited for longer than it may");
}

#[test]
fn a_released_flow_leaves_nothing_to_the_next_connection_of_its_port() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 1)]);
    let begun = bench.now;
    bench.take(Held { sequence: 7, ..held(1, begun) });
    assert_eq!(bench.step(), [(1, Sent::To(1))]);
    bench.now += 5 * SECOND;
    bench.take(Held { sequence: 8, ..held(1, bench.now) });
    assert_eq!(bench.engine.next_deadline(), Some(bench.now + 10 * SECOND));
}

#[test]
fn what_lay_in_the_buffer_beyond_its_deadline_is_passed_over() {
    for (age, waits) in
        [(Duration::ZERO, true), (10 * SECOND - ms(1), true), (10 * SECOND, false), (SECOND * 60, false)]
    {
        let mut bench = Bench::new(ServiceQueue::default(), &[]);
        bench.take(held(1, bench.now - age));
        assert_eq!(bench.engine.len(), usize::from(waits), "{age:?}");
        assert_eq!((bench.arrived(), bench.sent()), (u64::from(waits), vec![]), "{age:?}");
        if waits {
            // What it waited there counts.
            assert_eq!(bench.report().classes[0].oldest_s, Some(age.as_secs_f64()));
            assert_eq!(bench.step_after(10 * SECOND - age), [(1, Sent::Reset)]);
        }
    }
    // Clocks of two processors may differ a little.
    let mut bench = Bench::new(ServiceQueue::default(), &[]);
    bench.take(held(1, bench.now + ms(1)));
    assert_eq!(bench.engine.next_deadline(), Some(bench.now + 10 * SECOND));
}

#[test]
fn what_could_not_be_sent_waits_again_as_if_it_had_never_been_out() {
    let settings = ServiceQueue { udp_memory: 1 << 16, ..ServiceQueue::default() };
    let mut bench = Bench::new(settings, &[place(1, 1, 2), place(2, 1, 2)]);
    let begun = bench.now;
    bench.arrive([1, 2]);
    bench.take(datagram(3, begun));
    bench.arrive([4]);
    let before = (bench.report(), bench.engine.memory(), bench.datagram_bytes());
    bench.engine.step(bench.now, &bench.room, &mut bench.out);
    assert_eq!((bench.engine.memory(), bench.room.all()), (0, vec![2, 2]));
    for out in std::mem::take(&mut bench.out) {
        bench.engine.take_back(out, &bench.room);
    }
    assert_eq!((bench.report(), bench.engine.memory(), bench.datagram_bytes()), before);
    assert_eq!(bench.room.all(), [0, 0]);
    let again = bench.step_after(SECOND);
    assert_eq!(flows(&again), [1, 2, 3, 4], "in the same order, with their frames");
    assert_eq!((bench.arrived(), bench.ended(End::Released)), (4, 4));
    assert_eq!(bench.report().classes[0].waited_s, 4.0);
}

#[test]
fn another_connection_of_the_same_port_waits_from_its_own_arrival_on() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 0)]);
    let begun = bench.now;
    bench.take(Held { sequence: 7, ..held(1, begun) });
    bench.now += 4 * SECOND;
    bench.take(Held { sequence: 7, ..held(1, bench.now) });
    assert_eq!(bench.engine.next_deadline(), Some(begun + 10 * SECOND), "sent again");
    bench.take(Held { sequence: 8, ..held(1, bench.now) });
    assert_eq!(bench.engine.next_deadline(), Some(bench.now + 10 * SECOND));
    assert_eq!((bench.report().waiting, bench.arrived(), bench.ended(End::GaveUp)), (1, 2, 1));
    // A reset with the number of the one before is not its own.
    for (sequence, left) in [(7, 1), (10, 1), (9, 0)] {
        bench.take(Held { sequence, kind: kind::RESET, ..held(1, bench.now) });
        assert_eq!(bench.report().waiting, left, "{sequence}");
    }
}

#[test]
fn one_that_came_again_before_the_first_was_taken_back_is_still_one() {
    let settings = ServiceQueue { udp_memory: 1 << 16, ..ServiceQueue::default() };
    let mut bench = Bench::new(settings, &[place(1, 1, 1)]);
    let begun = bench.now;
    bench.take(datagram(1, begun));
    bench.engine.step(begun, &bench.room, &mut bench.out);
    let out = bench.out.pop().expect("it was released");
    bench.now += ms(1);
    bench.take(datagram(1, bench.now));
    bench.engine.take_back(out, &bench.room);
    let report = bench.report();
    assert_eq!((report.waiting, report.repeated, bench.arrived(), bench.engine.memory()), (1, 1, 1, ENTRY));
    assert_eq!((bench.datagram_bytes(), bench.engine.next_deadline()), (ENTRY, Some(begun + 10 * SECOND)));
    // Answers that could not be sent are lost; places are not.
    let mut bench =
        Bench::new(ServiceQueue { at_deadline: AtDeadline::Respond, ..ServiceQueue::default() }, &[place(1, 1, 0)]);
    bench.follow(|plan| plan.responder = 9);
    bench.arrive([1]);
    bench.now += 10 * SECOND;
    bench.engine.step(bench.now, &bench.room, &mut bench.out);
    let out = bench.out.pop().expect("it is answered");
    bench.engine.take_back(out, &bench.room);
    assert_eq!((bench.room.active(9), bench.engine.len(), bench.ended(End::Responded)), (0, 0, 1));
}

fn challenged(max_entries: usize) -> Bench {
    let mut bench = Bench::new(ordered(|order| order.max_entries = max_entries), &[place(1, 1, 0)]);
    let now = bench.now;
    bench.arrive([100]);
    (1..max_entries as u64 / 4).for_each(|hash| bench.take(unverified(hash, now)));
    assert_eq!(bench.sent(), []);
    assert!(!bench.report().challenges);
    bench.take(unverified(99, now));
    bench
}

fn states(bench: &Bench) -> Vec<(u16, bool, bool)> {
    bench.engine.states().collect()
}

#[test]
fn when_a_quarter_of_the_places_is_unverified_all_who_are_not_are_asked_at_once() {
    let mut bench = challenged(20);
    let mut asked = bench.sent();
    asked.sort_unstable_by_key(|(flow, _)| *flow);
    assert_eq!(asked, [1, 2, 3, 4, 99].map(|flow| (flow, Sent::Challenge)));
    assert_eq!(states(&bench), [(SERVICE, true, true)]);
    let report = bench.report();
    assert_eq!((report.challenges, report.unverified, report.waiting), (true, 5, 6));
    // Only once.
    bench.take(unverified(98, bench.now));
    assert_eq!(bench.step_after(SECOND), []);
}

#[test]
fn while_clients_are_asked_only_verified_ones_are_released() {
    let mut bench = challenged(20);
    bench.sent();
    bench.follow(|plan| plan.servers = vec![place(1, 1, 10)]);
    assert_eq!(bench.step(), [(100, Sent::To(1))]);
    bench.tell(kind::VERIFIED, 3);
    bench.tell(kind::VERIFIED, 3);
    bench.tell(kind::VERIFIED, 55);
    assert_eq!(bench.report().unverified, 4);
    assert_eq!(bench.step(), [(3, Sent::To(1))]);
    // Who comes again with its address known is verified as well.
    bench.arrive([2]);
    assert_eq!(bench.step(), [(2, Sent::To(1))]);
    // The others end at their deadline.
    assert_eq!(bench.step_after(10 * SECOND).len(), 3);
    assert_eq!(bench.ended(End::Expired), 3);
}

#[test]
fn while_clients_are_asked_those_that_are_not_verified_are_refused_without_a_word() {
    let mut bench = challenged(4);
    bench.sent();
    bench.arrive([101, 102]);
    let now = bench.now;
    bench.take(unverified(50, now));
    bench.arrive([103]);
    assert_eq!(bench.sent(), [], "a verified one takes the place of one that is not");
    assert_eq!((bench.ended(End::EntriesFull), bench.ended(End::GaveWay)), (1, 1));
    bench.arrive([104]);
    assert_eq!(bench.sent(), [(104, Sent::Reset)]);
}

#[test]
fn asking_ends_after_a_minute_and_begins_anew_if_the_flood_goes_on() {
    let mut bench = challenged(20);
    bench.sent();
    bench.step_after(CHALLENGE_FOR - ms(1));
    assert!(bench.report().challenges);
    bench.step_after(ms(1));
    assert_eq!(states(&bench), [(SERVICE, false, false)]);
    bench.take(unverified(1, bench.now));
    bench.follow(|plan| plan.servers = vec![place(1, 1, 1)]);
    assert_eq!(bench.step(), [(1, Sent::To(1))], "all are released again");
    bench.follow(|plan| plan.servers = Vec::new());
    // Then it is under way again.
    for hash in 10..15 {
        bench.take(unverified(hash, bench.now));
    }
    bench.sent();
    for round in 0..8 {
        bench.now += 9 * SECOND;
        (20..25).for_each(|hash| bench.take(unverified(hash + 5 * round, bench.now)));
        bench.step();
        assert!(bench.report().challenges, "after {} s", 9 * (round + 1));
    }
    bench.now += 10 * SECOND;
    bench.step();
}

#[test]
fn asking_goes_on_while_many_challenges_stay_without_an_answer() {
    // Challenges until the second count, answers before it; whether there is a flood still.
    for (count, answers, goes_on) in [(1_000, 0, false), (1_001, 1, false), (1_001, 0, true), (1_500, 400, true)] {
        let mut bench = challenged(40);
        bench.sent();
        let begun = bench.now;
        // What was counted before tells nothing of this flood.
        bench.engine.challenged(SERVICE, 1_000, begun);
        (0..answers).for_each(|_| bench.tell(kind::VERIFIED, 1_000));
        bench.engine.challenged(SERVICE, count, begun + 30 * SECOND);
        bench.engine.challenged(9, 1 << 40, begun + 30 * SECOND);
        // Those that wait end long before.
        bench.step_after(10 * SECOND);
        bench.step_after(CHALLENGE_FOR - 10 * SECOND);
        assert_eq!(bench.report().challenges, goes_on, "{count} challenges, {answers} answers");
        bench.step_after(30 * SECOND);
        assert!(!bench.report().challenges);
        bench.engine.challenged(SERVICE, 1 << 40, bench.now);
        assert!(!bench.report().challenges, "it does not begin by itself");
    }
}

#[test]
fn in_a_flood_only_verified_ones_are_responded_to() {
    const RESPONDER: u16 = 40;
    let mut settings = ordered(|order| order.max_entries = 4);
    settings.at_deadline = AtDeadline::Respond;
    for (verify, unverified_one) in [(Verify::Never, Sent::To(RESPONDER)), (Verify::Always, Sent::Reset)] {
        let mut bench = Bench::new(ServiceQueue { verify, ..settings.clone() }, &[]);
        bench.follow(|plan| plan.responder = RESPONDER);
        let now = bench.now;
        bench.arrive([1]);
        bench.take(unverified(2, now));
        assert_eq!(bench.step_after(10 * SECOND), [(1, Sent::To(RESPONDER)), (2, unverified_one)], "{verify:?}");
    }
}

#[test]
fn whether_clients_are_asked_can_be_set() {
    for (verify, asks, sent) in [(Verify::Always, true, vec![2]), (Verify::Never, false, vec![1, 2])] {
        let mut settings = ordered(|order| order.max_entries = 4);
        settings.verify = verify;
        let mut bench = Bench::new(settings, &[]);
        assert_eq!(states(&bench), [(SERVICE, false, asks)]);
        let now = bench.now;
        bench.take(unverified(1, now));
        bench.now += ms(1);
        bench.arrive([2]);
        assert_eq!(bench.sent(), [], "the packet path asks");
        bench.follow(|plan| plan.servers = vec![place(1, 1, 5)]);
        assert_eq!((flows(&bench.step()), bench.report().challenges), (sent, asks), "{verify:?}");
    }
    // A change takes effect at once.
    let mut bench = challenged(4);
    bench.sent();
    bench.follow(|plan| {
        plan.settings = Arc::new(ServiceQueue { verify: Verify::Never, ..(*plan.settings).clone() });
        plan.servers = vec![place(1, 1, 5)];
    });
    assert_eq!(bench.step().len(), 2);
    assert_eq!(states(&bench), [(SERVICE, false, false)]);
}

#[test]
fn datagrams_whose_senders_cannot_be_asked_neither_begin_a_challenge_nor_wait_for_its_end() {
    let mut settings = ordered(|order| order.max_entries = 8);
    settings.udp_memory = 1 << 16;
    let mut bench = Bench::new(settings, &[]);
    let now = bench.now;
    (1..=4).for_each(|hash| bench.take(datagram(hash, now)));
    assert!(!bench.report().challenges);
    (5..=6).for_each(|hash| bench.take(unverified(hash, now)));
    assert!(bench.report().challenges);
    assert_eq!(flows(&bench.sent()).into_iter().filter(|flow| *flow < 5).count(), 0, "they are not asked");
    bench.follow(|plan| plan.servers = vec![place(1, 1, 8)]);
    assert_eq!(flows(&bench.step()), [1, 2, 3, 4]);
}

#[test]
fn services_are_told_of_whether_something_waits_and_until_when() {
    let mut bench = Bench::new(ServiceQueue::default(), &[place(1, 1, 1)]);
    assert_eq!((states(&bench), bench.engine.is_empty()), (vec![(SERVICE, false, false)], true));
    assert_eq!(bench.engine.next_deadline(), None);
    bench.arrive([1]);
    assert_eq!((states(&bench), bench.engine.is_empty()), (vec![(SERVICE, true, false)], false));
    bench.step();
    assert_eq!((states(&bench), bench.engine.is_empty()), (vec![(SERVICE, false, false)], true));
}

#[test]
fn no_more_released_flows_are_remembered_than_there_is_room_for() {
    let mut settings = ordered(|order| order.max_entries = 1 << 20);
    settings.verify = Verify::Never;
    let mut bench = Bench::new(settings, &[place(1, 1, u32::MAX)]);
    let count = REMEMBERED as u64 + 10;
    bench.arrive(0..count / 32);
    for begin in (0..count).step_by(1_000) {
        bench.arrive(begin..(begin + 1_000).min(count));
        bench.step();
    }
    assert_eq!((bench.engine.released.len(), bench.engine.released_order.len()), (REMEMBERED, REMEMBERED));
    assert!(!bench.engine.released.contains_key(&0) && bench.engine.released.contains_key(&(count - 1)));
}
