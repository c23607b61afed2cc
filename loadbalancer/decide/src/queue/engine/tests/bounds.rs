//! What bounds how many wait, and who gives way.

use super::*;

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
