//! Measures rings: imbalance, disruption and time, printed as tables (`cargo test ring::figures -- --nocapture`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use loadbalancer_common::hash::{mix, scale, second};

use super::deal::fraction;
use super::*;

/// Member counts up to the largest at which a member has 100 slots.
const SIZES: [u16; 5] = [2, 30, 100, 300, 655];

/// Sets of members that each figure is the mean of. An unoptimised build takes ten times as long, so it tries fewer.
const SETS: u64 = if cfg!(debug_assertions) { 1 } else { 8 };

/// Member counts of the table. An unoptimised build leaves out most of the large ones, which take most of the time.
fn sizes(state: State) -> &'static [u16] {
    match state {
        _ if !cfg!(debug_assertions) => &SIZES,
        State::Nominal => &[2, 655],
        State::Drifted | State::Configuration => &[30, 100],
    }
}

/// Scales weights, so that 10 % of the smallest are still many steps.
const UNIT: u32 = 1_000;

const CHANGES: [&str; 8] = ["lost", "added", "-10 %", "+10 %", "-50 %", "+50 %", "x 4", "all 20 %"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Weights are the nominal ones before the change.
    Nominal,
    /// Weights are up to 20 % off the nominal ones before the change.
    Drifted,
    /// The nominal weights change too: another configuration.
    Configuration,
}

fn set(size: u16, unequal: bool, seed: u64) -> Vec<Member> {
    let member = |backend: u16| {
        let id = mix(mix(seed) ^ u64::from(backend));
        let weight = if unequal { 1 + scale(mix(id ^ seed), 100) } else { 50 } * UNIT;
        Member { backend, id, nominal: weight, weight }
    };
    (1..=size).map(member).collect()
}

fn vary(members: &mut [Member], seed: u64) {
    for member in members {
        member.weight = (f64::from(member.weight) * (0.8 + 0.4 * fraction(mix(member.id ^ seed)))) as u32;
    }
}

/// The set before and after a change of the given member.
fn change(base: &[Member], state: State, which: usize, kind: &str, seed: u64) -> (Vec<Member>, Vec<Member>) {
    let mut before = base.to_vec();
    if state == State::Drifted {
        vary(&mut before, seed ^ 1);
    }
    let mut after = before.clone();
    let mut scaled = |factor: f64| after[which].weight = (f64::from(after[which].weight) * factor) as u32;
    match kind {
        "lost" => scaled(0.0),
        "added" => before[which].weight = 0,
        "-10 %" => scaled(0.9),
        "+10 %" => scaled(1.1),
        "-50 %" => scaled(0.5),
        "+50 %" => scaled(1.5),
        "x 4" => scaled(4.0),
        "all 20 %" => vary(&mut after, seed ^ 2),
        _ => panic!("no change is called {kind}"),
    }
    if kind == "added" && state != State::Configuration {
        // A standby server: it comes without having been part of the nominal ring.
        before[which].nominal = 0;
        after[which].nominal = 0;
    }
    if state == State::Configuration {
        for member in before.iter_mut().chain(&mut after) {
            member.nominal = member.weight;
        }
    }
    (before, after)
}

fn ideal(members: &[Member]) -> Vec<f64> {
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    members.iter().map(|member| f64::from(member.weight) * f64::from(SLOTS) / total).collect()
}

/// Slots by member (backends are numbered from one).
fn counts(slots: &[u16], members: usize) -> Vec<f64> {
    let mut counts = vec![0.0; members + 1];
    for backend in slots {
        counts[usize::from(*backend)] += 1.0;
    }
    counts.split_off(1)
}

/// What the members that gain must gain.
fn gain(before: &[f64], after: &[f64]) -> f64 {
    before.iter().zip(after).map(|(before, after)| (after - before).max(0.0)).sum()
}

/// Largest deviation from the ideal, relative to what is allowed: a slot, or 1 %.
fn imbalance(slots: &[u16], members: &[Member]) -> f64 {
    let ideal = ideal(members);
    let deviations = counts(slots, members.len()).into_iter().zip(&ideal);
    deviations.map(|(slots, ideal)| (slots - ideal).abs() / (ideal / 100.0).max(1.0)).fold(0.0, f64::max)
}

/// Maglev as published, with turns in proportion to weights: what `build` is compared with.
fn plain_maglev(members: &[Member]) -> Vec<u16> {
    let mut slots = vec![0; SLOTS as usize];
    let mut walks: Vec<(u32, u32)> =
        members.iter().map(|m| (scale(m.id, SLOTS), 1 + scale(second(m.id), SLOTS - 1))).collect();
    let turn = |index: usize, count: u32| {
        let time = (f64::from(count) + fraction(mix(members[index].id))) / f64::from(members[index].weight);
        (Reverse(time.to_bits()), index, count)
    };
    let mut turns: BinaryHeap<_> =
        (0..members.len()).filter(|index| members[*index].weight > 0).map(|index| turn(index, 0)).collect();
    for _ in 0..SLOTS {
        let (_, index, count) = turns.pop().expect("a member has a weight");
        let (slot, step) = &mut walks[index];
        while slots[*slot as usize] != 0 {
            *slot = (*slot + *step) % SLOTS;
        }
        slots[*slot as usize] = members[index].backend;
        turns.push(turn(index, count + 1));
    }
    slots
}

/// Slots moved and the least that had to, summed over some sets; the same for plain Maglev.
#[derive(Clone, Copy, Default)]
struct Moved {
    slots: f64,
    maglev: f64,
    least: f64,
    worst: f64,
}

impl Moved {
    fn ratio(&self) -> f64 {
        self.slots / self.least
    }

    fn maglev_ratio(&self) -> f64 {
        self.maglev / self.least
    }
}

fn differing(before: &[u16], after: &[u16]) -> f64 {
    before.iter().zip(after).filter(|(before, after)| before != after).count() as f64
}

/// A set of members with its rings.
struct Built {
    members: Vec<Member>,
    ring: Ring,
    maglev: Vec<u16>,
}

impl Built {
    fn new(members: Vec<Member>, with_maglev: bool, worst_imbalance: &mut f64) -> Self {
        let ring = build(&members);
        *worst_imbalance = worst_imbalance.max(imbalance(ring.slots(), &members));
        let maglev = if with_maglev { plain_maglev(&members) } else { vec![] };
        Self { members, ring, maglev }
    }
}

/// Disruption by each of [`CHANGES`].
///
/// The least: what the ideal shares (`SLOTS * weight / sum`) of the members that gain rise by, in whole slots.
fn measure(state: State, size: u16, unequal: bool, worst_imbalance: &mut f64) -> [Moved; CHANGES.len()] {
    let mut moved = [Moved::default(); CHANGES.len()];
    let with_maglev = state == State::Configuration;
    for seed in 0..SETS {
        let base = set(size, unequal, seed);
        let which = scale(mix(seed ^ 0x77), size.into()) as usize;
        let mut old: Option<Built> = None;
        for (moved, kind) in moved.iter_mut().zip(CHANGES) {
            let (before, after) = change(&base, state, which, kind, seed);
            let old = match old.take_if(|old| old.members == before) {
                Some(same) => old.insert(same),
                None => old.insert(Built::new(before, with_maglev, worst_imbalance)),
            };
            let new = Built::new(after, with_maglev, worst_imbalance);
            let slots = differing(old.ring.slots(), new.ring.slots());
            let least = gain(&ideal(&old.members), &ideal(&new.members)).ceil();
            if state == State::Nominal {
                let counts = |built: &Built| counts(built.ring.slots(), size.into());
                assert_eq!(
                    slots,
                    gain(&counts(old), &counts(&new)),
                    "{size} members, {kind}: more than counts changed"
                );
            }
            moved.slots += slots;
            moved.maglev += differing(&old.maglev, &new.maglev);
            moved.least += least;
            moved.worst = moved.worst.max(slots / least);
        }
    }
    moved
}

/// The largest mean ratio that is accepted. Where all weights are off nominal or the nominal weights change, the price of
/// being without history grows as members have fewer slots (see the module `ring`).
fn bar(state: State, size: u16) -> f64 {
    match (state, size) {
        (State::Nominal, _) | (_, ..=30) => 2.0,
        (_, ..=100) => 3.5,
        (_, ..=300) => 5.5,
        _ => 7.5,
    }
}

#[test]
fn figures_of_disruption_and_balance() {
    let mut worst_imbalance = 0.0f64;
    for state in [State::Nominal, State::Drifted, State::Configuration] {
        println!("\nslots moved / least, {state:?}: mean of {SETS} (worst)");
        println!("{:>8} {:>8}{}", "members", "weights", CHANGES.map(|kind| format!("{kind:>14}")).concat());
        for (size, unequal) in sizes(state).iter().flat_map(|size| [(*size, false), (*size, true)]) {
            let row = measure(state, size, unequal, &mut worst_imbalance);
            let cells = row.map(|moved| format!("{:>7.2} ({:4.1})", moved.ratio(), moved.worst));
            println!("{size:>8} {:>8}{}", if unequal { "1..100" } else { "equal" }, cells.concat());
            if state == State::Configuration {
                let cells = row.map(|moved| format!("{:>7.2}       ", moved.maglev_ratio()));
                println!("{:>17}{}", "plain Maglev", cells.concat());
            }
            for (moved, kind) in row.iter().zip(CHANGES) {
                let ratio = if state == State::Nominal { moved.worst } else { moved.ratio() };
                assert!(ratio <= bar(state, size), "{state:?}, {size} members, {kind}: {ratio:.2} times the least");
                if state == State::Configuration && size >= 100 && kind != "all 20 %" {
                    assert!(ratio < moved.maglev_ratio(), "{size} members, {kind}: plain Maglev moves less");
                }
            }
        }
    }
    println!("\nlargest deviation from the ideal share, of what is allowed (1 %, or a slot): {worst_imbalance:.3}");
    assert!(worst_imbalance <= 1.0);
}

#[test]
fn equal_members_differ_by_less_than_one_percent_with_100_slots_each() {
    println!("largest deviation from the ideal share, equal weights:");
    for size in SIZES {
        let members = set(size, false, 5);
        let ideal = f64::from(SLOTS) / f64::from(size);
        let ring = build(&members);
        let worst = counts(ring.slots(), members.len()).into_iter().map(|c| (c - ideal).abs()).fold(0.0, f64::max);
        println!("{size:>6} members: {worst:.2} slots, {:.3} %", 100.0 * worst / ideal);
        assert!(worst / ideal <= 0.01, "{size} members: {worst} slots of {ideal}");
    }
}
