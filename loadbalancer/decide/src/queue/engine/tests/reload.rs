//! What another configuration makes of those that wait.

use super::*;

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
