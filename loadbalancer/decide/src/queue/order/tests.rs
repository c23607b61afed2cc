//! Each rule as a promise, and all of them against a list that is searched from end to end.

mod model;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Verified, of a source of its own, and with a deadline that is far away.
fn arrival(key: u64, ring: u8, arrived: Duration) -> Arrival<u64> {
    let deadline = arrived + 1_000 * SECOND;
    Arrival { key, source: u128::from(key), ring, class: 0, arrived, deadline, verified: true, value: key }
}

fn unverified(key: u64, ring: u8, arrived: Duration) -> Arrival<u64> {
    Arrival { verified: false, ..arrival(key, ring, arrived) }
}

fn push(queue: &mut Queue<u64>, arrival: Arrival<u64>) {
    let now = arrival.arrived;
    let key = arrival.key;
    assert_eq!(queue.push(arrival, now), Pushed::New { evicted: None }, "{key}");
}

fn bounded(max_entries: usize) -> Queue<u64> {
    Queue::new(&Settings { max_entries, ..Settings::default() })
}

/// With so many in each ring; their keys tell the ring by the rest of a division.
fn filled(each: [u64; RINGS]) -> Queue<u64> {
    let mut queue = bounded(usize::MAX);
    for (ring, count) in each.into_iter().enumerate() {
        (0..count).for_each(|n| push(&mut queue, arrival(n * RINGS as u64 + ring as u64, ring as u8, Duration::ZERO)));
    }
    queue
}

fn pop_ring(queue: &mut Queue<u64>, now: Duration) -> usize {
    usize::from(queue.pop(now, Which::All).expect("somebody waits").ring)
}

fn pop_keys(queue: &mut Queue<u64>, now: Duration) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop(now, Which::All)).map(|entry| entry.key).collect()
}

fn in_ring(queue: &Queue<u64>, ring: u8) -> usize {
    queue.iter().filter(|entry| entry.ring == ring).count()
}

fn counts(rings: impl IntoIterator<Item = usize>) -> [i64; RINGS] {
    rings.into_iter().fold([0; RINGS], |mut counts, ring| {
        counts[ring] += 1;
        counts
    })
}

#[test]
fn rings_share_releases_by_weight_within_one_in_any_window() {
    let mut queue = filled([1_700, 900, 500, 300, 200]);
    let rings: Vec<usize> = (0..31 * 90).map(|_| pop_ring(&mut queue, Duration::ZERO)).collect();
    for times in [1, 2, 7] {
        for window in rings.windows(31 * times) {
            for (count, weight) in counts(window.iter().copied()).into_iter().zip([16, 8, 4, 2, 1]) {
                assert!((count - weight * times as i64).abs() <= 1, "{count} instead of {weight} x {times}");
            }
        }
    }
}

#[test]
fn weights_that_do_not_divide_well_are_kept_too() {
    for (weights, pops) in [([7, 1, 3, 1_000, 13], 1_024 * 2), ([1, 1, 1, 1, 1], 1_000), ([0, 3, 0, 0, 0], 700)] {
        let mut queue = filled([2_500; RINGS]);
        queue.set_settings(&Settings { weights, max_entries: usize::MAX, ..Settings::default() });
        let sum: u32 = weights.iter().map(|weight| weight.max(&1)).sum();
        let found = counts((0..pops).map(|_| pop_ring(&mut queue, Duration::ZERO)));
        for (count, weight) in found.into_iter().zip(weights) {
            let wanted = i64::from(weight.max(1)) * pops / i64::from(sum);
            assert!((count - wanted).abs() <= 1, "{weights:?}: {count} instead of {wanted}");
        }
    }
}

#[test]
fn a_ring_that_was_idle_gains_no_credit() {
    let mut queue = filled([0, 0, 0, 200, 200]);
    assert_eq!((0..150).map(|_| pop_ring(&mut queue, Duration::ZERO)).min(), Some(3));
    (10_000..10_200).for_each(|key| push(&mut queue, arrival(key, 0, Duration::ZERO)));
    let found = counts((0..19).map(|_| pop_ring(&mut queue, Duration::ZERO)));
    assert!((15..=17).contains(&found[0]) && found[3] > 0 && found[4] > 0, "{found:?}");
}

#[test]
fn a_ring_without_verified_ones_gains_no_credit_while_only_those_are_released() {
    let mut queue = filled([0, 300, 0, 0, 0]);
    (10_000..10_200).for_each(|key| push(&mut queue, unverified(key, 0, Duration::ZERO)));
    for _ in 0..100 {
        assert_eq!(queue.pop(Duration::ZERO, Which::Verified).map(|entry| entry.ring), Some(1));
    }
    let found = counts((0..24).map(|_| pop_ring(&mut queue, Duration::ZERO)));
    assert!((15..=17).contains(&found[0]), "{found:?}");
}

#[test]
fn the_lowest_ring_never_starves() {
    let mut queue = filled([40, 40, 40, 40, 10]);
    let mut since = 0;
    for key in 10_000..10_300 {
        // All others are refilled all the time, and come and go.
        let ring = pop_ring(&mut queue, Duration::ZERO);
        since = if ring == 4 { 0 } else { since + 1 };
        assert!(since <= 31, "{since} releases without it");
        if in_ring(&queue, 4) == 1 {
            break;
        }
        push(&mut queue, arrival(key, ring.min(3) as u8, Duration::ZERO));
    }
    assert_eq!(in_ring(&queue, 4), 1);
}

#[test]
fn only_verified_ones_are_released_if_so_wished() {
    let mut queue = bounded(10);
    push(&mut queue, unverified(1, 0, Duration::ZERO));
    assert_eq!(queue.peek(Duration::ZERO, Which::Verified), None);
    assert_eq!(queue.pop(Duration::ZERO, Which::Verified), None);
    assert!(queue.verify(1) && !queue.verify(1) && !queue.verify(2));
    assert_eq!(queue.pop(Duration::ZERO, Which::Verified).map(|entry| entry.key), Some(1));
}

#[test]
fn the_earliest_deadline_is_first_and_of_equal_ones_the_earliest_arrival() {
    let mut queue = bounded(10);
    for (key, arrived, deadline) in [(1, 3, 900), (2, 1, 500), (3, 2, 900), (4, 4, 100), (5, 4, 900), (6, 4, 501)] {
        let verified = key % 3 == 0;
        push(&mut queue, Arrival { deadline: ms(deadline), verified, ..arrival(key, 2, ms(arrived)) });
    }
    assert_eq!(queue.peek(ms(5), Which::All).map(|entry| *entry.value), Some(4));
    assert_eq!(pop_keys(&mut queue, ms(5)), [4, 2, 6, 3, 1, 5]);
}

#[test]
fn in_standing_overload_the_newest_is_first_and_afterwards_the_deadline_again() {
    let mut queue = bounded(100);
    (0..5).for_each(|key| push(&mut queue, arrival(key, 1, ms(key))));
    // Above the target since 100 ms, for an interval at 2.1 s.
    assert_eq!(queue.peek(ms(2_099), Which::All).map(|entry| entry.key), Some(0));
    assert_eq!(queue.peek(ms(2_100), Which::All).map(|entry| entry.key), Some(4));
    assert!(!queue.is_overloaded(1), "looking ahead changes nothing");
    (5..8).for_each(|key| push(&mut queue, arrival(key, 1, ms(2_095 + key))));
    assert!((0..5).all(|ring| queue.is_overloaded(ring) == (ring == 1)));
    let mut pop = |now| queue.pop(now, Which::All).map(|entry| (entry.key, queue.is_overloaded(1)));
    for key in [7, 6, 5, 4, 3, 2, 1] {
        assert_eq!(pop(ms(2_150)), Some((key, true)));
    }
    assert_eq!(pop(ms(2_150)), Some((0, false)));
    (8..11).for_each(|key| push(&mut queue, arrival(key, 1, ms(2_200))));
    assert_eq!(pop_keys(&mut queue, ms(2_250)), [8, 9, 10]);
}

#[test]
fn a_moment_below_the_target_ends_overload() {
    let mut queue = bounded(100);
    push(&mut queue, arrival(0, 1, ms(0)));
    push(&mut queue, arrival(1, 1, ms(1_950)));
    assert_eq!(queue.pop(ms(2_000), Which::All).map(|entry| entry.key), Some(0));
    // Above the target since 2,050 ms only.
    push(&mut queue, arrival(2, 1, ms(4_049)));
    assert!(!queue.is_overloaded(1));
    push(&mut queue, arrival(3, 1, ms(4_050)));
    assert!(queue.is_overloaded(1));
    assert_eq!(queue.remove(1).map(|entry| entry.key), Some(1));
    assert!(!queue.is_overloaded(1));
}

#[test]
fn one_that_is_tried_again_and_again_has_waited_all_the_time() {
    let mut queue = bounded(100);
    push(&mut queue, arrival(0, 1, ms(0)));
    for now in (100..=2_100).step_by(100) {
        let entry = queue.pop(ms(now), Which::All).expect("it waits");
        assert_eq!(queue.give_back(entry), None);
        assert_eq!(queue.is_overloaded(1), now == 2_100, "at {now} ms");
    }
}

#[test]
fn a_key_that_waits_keeps_its_arrival_and_can_only_become_verified() {
    let mut queue = bounded(1);
    push(&mut queue, unverified(1, 3, ms(10)));
    for verified in [false, true, false] {
        let again = Arrival { value: 77, class: 5, verified, ..arrival(1, 0, ms(500)) };
        assert_eq!(queue.push(again, ms(500)), Pushed::Known);
    }
    let waits = queue.get(1).expect("it waits");
    assert_eq!((waits.arrived, waits.deadline, waits.ring, waits.class), (ms(10), ms(10) + 1_000 * SECOND, 3, 0));
    assert_eq!((*waits.value, waits.verified, queue.len(), queue.unverified()), (1, true, 1, 0));
}

#[test]
fn a_source_gets_no_more_than_its_bound_until_one_leaves() {
    let mut queue = Queue::new(&Settings { max_per_source: 2, ..Settings::default() });
    let of_seven = |key| Arrival { source: 7, ..arrival(key, key as u8, Duration::ZERO) };
    push(&mut queue, of_seven(1));
    push(&mut queue, of_seven(2));
    push(&mut queue, arrival(9, 0, Duration::ZERO));
    let refused = queue.push(of_seven(3), Duration::ZERO);
    assert_eq!(refused, Pushed::Refused { arrival: of_seven(3), why: Full::Source });
    assert_eq!(queue.push(of_seven(2), Duration::ZERO), Pushed::Known);
    let entry = queue.remove(1).expect("it waits");
    push(&mut queue, of_seven(3));
    assert_eq!(queue.give_back(entry), None, "beyond the bound");
    assert_eq!(queue.len(), 4);
}

#[test]
fn who_has_to_go_when_there_is_no_room() {
    /// One that waits at first, in the order of their arrivals: key, ring, verified.
    type Waiting = &'static [(u64, u8, bool)];
    enum Goes {
        Key(u64),
        Newcomer,
    }
    use Goes::*;
    let crowd: Waiting = &[(1, 3, true), (2, 3, false), (3, 3, true), (4, 3, false)];
    let proven: Waiting = &[(1, 3, true), (2, 3, true), (3, 3, true)];
    let cases: &[(&str, Waiting, u8, bool, bool, Goes)] = &[
        ("the newest unverified one of the fullest ring", crowd, 0, false, false, Key(4)),
        ("in overload the oldest unverified one", crowd, 0, false, true, Key(2)),
        ("the newest verified one, if there is no other", proven, 0, false, false, Key(3)),
        ("in overload the oldest verified one", proven, 0, false, true, Key(1)),
        ("of its own ring only an unverified one, for one that is verified", crowd, 3, true, false, Key(4)),
        ("in overload too", crowd, 3, true, true, Key(2)),
        ("none of its own ring for one that is not", crowd, 3, false, false, Newcomer),
        ("no verified one of its own ring", proven, 3, true, false, Newcomer),
        ("fullest is by weight", &[(1, 0, false), (2, 0, false), (3, 4, false)], 2, false, false, Key(3)),
        ("counted as if the newcomer were in", &[(1, 0, true), (2, 1, true)], 4, true, false, Newcomer),
        (
            "of equal ones the least urgent",
            &[(1, 2, true), (2, 3, true), (3, 3, true), (4, 2, true), (5, 2, true), (6, 2, true)],
            0,
            false,
            false,
            Key(3),
        ),
        (
            "of equal ones the newcomer's",
            &[(1, 2, false), (2, 2, false), (3, 2, true), (4, 3, false), (5, 3, false)],
            2,
            false,
            false,
            Newcomer,
        ),
    ];
    for (name, waiting, ring, verified, in_overload, goes) in cases {
        let mut queue = bounded(waiting.len());
        for (at, (key, ring, verified)) in waiting.iter().enumerate() {
            push(&mut queue, Arrival { verified: *verified, ..arrival(*key, *ring, ms(at as u64)) });
        }
        let now = if *in_overload { 10 * SECOND } else { ms(50) };
        let newcomer = Arrival { verified: *verified, ..arrival(99, *ring, now) };
        match (queue.push(newcomer.clone(), now), goes) {
            (Pushed::New { evicted: Some(entry) }, Key(key)) => assert_eq!(entry.key, *key, "{name}"),
            (Pushed::Refused { arrival, why: Full::Entries }, Newcomer) => assert_eq!(arrival, newcomer, "{name}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
        assert_eq!(queue.len(), waiting.len(), "{name}");
    }
}

#[test]
fn no_crowd_takes_the_room_of_another_ring() {
    let mut queue = bounded(310);
    (0..1_000).for_each(|key| drop(queue.push(arrival(key, 4, Duration::ZERO), Duration::ZERO)));
    assert_eq!(in_ring(&queue, 4), 310);
    (1_000..2_000).for_each(|key| drop(queue.push(unverified(key, 0, Duration::ZERO), Duration::ZERO)));
    (2_000..3_000).for_each(|key| drop(queue.push(unverified(key, 2, Duration::ZERO), Duration::ZERO)));
    // 310 by 16 : 4 : 1.
    let lens = [0, 1, 2, 3, 4].map(|ring| in_ring(&queue, ring));
    for (len, wanted) in lens.into_iter().zip([236usize, 0, 59, 0, 15]) {
        assert!(wanted.abs_diff(len) <= 1, "{lens:?}");
    }
}

#[test]
fn all_whose_deadline_has_come_expire_in_its_order() {
    let mut queue = bounded(10);
    for (key, ring, deadline) in [(1, 0, 30), (2, 4, 10), (3, 2, 20), (4, 2, 31), (5, 0, 20)] {
        push(&mut queue, Arrival { deadline: ms(deadline), verified: key > 2, ..arrival(key, ring, ms(key)) });
    }
    assert_eq!(queue.next_deadline(), Some(ms(10)));
    assert_eq!(queue.expire(ms(9)), []);
    let keys: Vec<u64> = queue.expire(ms(30)).iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [2, 3, 5, 1]);
    assert_eq!((queue.len(), queue.next_deadline()), (1, Some(ms(31))));
}

#[test]
fn one_that_is_given_back_has_its_old_place_and_costs_its_ring_nothing() {
    let mut queue = filled([1_000, 500, 300, 200, 100]);
    let mut released = Vec::new();
    let mut out = Vec::new();
    let mut pops = 0;
    while released.len() < 31 * 20 {
        let entry = queue.pop(Duration::ZERO, Which::All).expect("there are more");
        pops += 1;
        // Two of three are out for a while, and come back.
        if pops % 3 == 0 {
            released.push((entry.ring, entry.key));
        } else {
            out.push(entry);
        }
        if out.len() == 5 {
            out.drain(..).for_each(|entry| assert_eq!(queue.give_back(entry), None));
        }
    }
    let found = counts(released.iter().map(|(ring, _)| usize::from(*ring)));
    for (count, weight) in found.into_iter().zip([16, 8, 4, 2, 1]) {
        // Up to five are out.
        assert!((count - weight * 20).abs() <= 6, "{found:?}");
    }
    let entry = queue.pop(Duration::ZERO, Which::All).expect("there are more");
    let key = entry.key;
    queue.give_back(entry);
    assert_eq!(queue.pop(Duration::ZERO, Which::All).map(|entry| entry.key), Some(key));
}

#[test]
fn only_what_was_paid_is_given_back() {
    let mut queue = filled([200, 0, 0, 0, 200]);
    // Were a removed one paid for, its ring would be released for nothing each time.
    for key in (0..50).map(|n| n * 5 + 4) {
        let entry = queue.remove(key).expect("it waits");
        queue.give_back(entry);
    }
    let found = counts((0..170).map(|_| pop_ring(&mut queue, Duration::ZERO)));
    assert_eq!((found[0], found[4]), (160, 10));
}

#[test]
fn of_one_that_came_again_while_it_was_out_the_first_arrival_stays() {
    let mut queue = bounded(10);
    push(&mut queue, unverified(1, 0, ms(0)));
    let entry = queue.pop(ms(5), Which::All).expect("it waits");
    push(&mut queue, Arrival { value: 2, ..arrival(1, 0, ms(7)) });
    assert_eq!(queue.give_back(entry).map(|later| later.value), Some(2));
    let waits = queue.get(1).expect("it waits");
    assert_eq!((*waits.value, waits.arrived, waits.verified, queue.len()), (1, ms(0), true, 1));
}

#[test]
fn draining_leaves_nothing_behind() {
    let mut queue = filled([3, 2, 1, 0, 4]);
    queue.pop(10 * SECOND, Which::All);
    assert!(queue.is_overloaded(0));
    let mut keys: Vec<u64> = queue.drain().iter().map(|entry| entry.key).collect();
    keys.sort_unstable();
    assert_eq!(keys.len(), 9);
    assert!(queue.is_empty() && queue.iter().next().is_none() && !queue.is_overloaded(0));
    assert_eq!((queue.waiting_of_class(0), queue.oldest_of_class(0), queue.next_deadline()), (0, None, None));
    push(&mut queue, arrival(keys[0], 0, 11 * SECOND));
    assert_eq!(pop_keys(&mut queue, 11 * SECOND), keys[..1]);
}

#[test]
fn one_that_waits_takes_less_than_400_bytes_with_a_frame_of_100() {
    /// The frame, and what an allocator takes for itself (glibc: 8 bytes, and all in steps of 16).
    const FRAME: usize = 100 + 12;
    // Among them some just after tables have doubled, which is when it is most.
    for count in [10_000, 66_000, 100_000, 131_073] {
        let mut queue = Queue::new(&Settings { max_entries: count, ..Settings::default() });
        for key in 0..count as u64 {
            let value = vec![0u8; 100].into_boxed_slice();
            let (source, ring, class) = (u128::from(key) << 64, (key % 5) as u8, (key % 7) as u16);
            let (arrived, deadline) = (Duration::from_micros(key), ms(3_000));
            let arrival = Arrival { key, source, ring, class, arrived, deadline, verified: key % 3 == 0, value };
            assert!(matches!(queue.push(arrival, Duration::ZERO), Pushed::New { evicted: None }));
        }
        let each = queue.memory() / count;
        assert!(each < 250 && each + FRAME < 400, "{count}: {each} bytes each beside the frame");
    }
}
