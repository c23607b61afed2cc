//! Who is released next, and to which server.

use super::*;

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
        let servers: Vec<Candidate> =
            (1..).zip(&weights).map(|(backend, weight)| place(backend, *weight, 1_000)).collect();
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
        Candidate { tier: 1, ..place(1, 100, 10) },
        Candidate { tier: 0, ..place(2, 1, 2) },
        Candidate { tier: 2, ..place(3, 1, 10) },
        Candidate { tier: 0, ..place(4, 1, 3) },
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
fn a_client_goes_to_the_server_that_it_had_if_that_has_room() {
    let servers = [place(1, 1, 4), place(2, 1, 4), Candidate { tier: 1, ..place(3, 1, 4) }];
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
