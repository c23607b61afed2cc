//! Clients that are asked to show that they are at their address.

use super::*;

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
