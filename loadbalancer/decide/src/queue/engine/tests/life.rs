//! What becomes of an entry from its arrival to its end, and if it comes again.

use super::*;

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
