//! What a ring promises, whatever its members. The figures are in `figures`.

use bytemuck::Zeroable;
use loadbalancer_common::hash::mix;
use proptest::prelude::*;

use super::*;

/// An unoptimised build takes ten times as long, so it tries fewer sets.
const CASES: u32 = if cfg!(debug_assertions) { 16 } else { 256 };

fn slots_of(ring: &Ring, backend: u16) -> usize {
    ring.slots().iter().filter(|slot| **slot == backend).count()
}

/// Members with the given nominal and present weights; ids are hashes, as in use.
fn members(weights: &[(u32, u32)], seed: u64) -> Vec<Member> {
    let numbered = weights.iter().zip(1..=u16::MAX);
    numbered
        .map(|(&(nominal, weight), backend)| Member {
            backend,
            id: mix(mix(seed) ^ u64::from(backend)),
            nominal,
            weight,
        })
        .collect()
}

fn same(weights: &[u32]) -> Vec<(u32, u32)> {
    weights.iter().map(|weight| (*weight, *weight)).collect()
}

/// Weights of members, from alike to very different ones, some zero, some far from nominal.
fn weights(max_members: usize) -> impl Strategy<Value = Vec<(u32, u32)>> {
    let weight = prop_oneof![1 => Just(0u32), 5 => 90u32..=110, 5 => 1u32..=100_000, 1 => any::<u32>()];
    let pair = prop_oneof![3 => weight.clone().prop_map(|weight| (weight, weight)), 2 => (weight.clone(), weight)];
    prop::collection::vec(pair, 0..=max_members)
}

/// Every slot is owned, by members with a weight only, each within a slot of its fair share.
fn assert_fair(ring: &Ring, members: &[Member]) {
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    if total == 0.0 {
        assert!(ring.slots().iter().all(|slot| *slot == 0) && ring.members().is_empty());
        return;
    }
    let mut counts = vec![0u32; usize::from(u16::MAX) + 1];
    for backend in ring.slots() {
        counts[usize::from(*backend)] += 1;
    }
    assert_eq!(counts[0], 0, "slots without a member");
    let all = f64::from(SLOTS);
    // Those below one slot get one at the cost of the others, who lose at most a slot for each of them.
    let light = members.iter().filter(|m| m.weight > 0 && f64::from(m.weight) * all < total).count() as f64;
    for member in members {
        let slots = f64::from(counts[usize::from(member.backend)]);
        let ideal = f64::from(member.weight) * all / total;
        if member.weight == 0 {
            assert_eq!(slots, 0.0, "{member:?} has no weight");
        } else {
            assert!(slots >= 1.0, "{member:?} has a weight and no slot");
            let least = ideal * (1.0 - light / all) - 1.0;
            // What light members get too much can push others below one slot in turn, hence not `ideal + 1`.
            assert!(
                slots > least && slots < ideal + 1.0 || slots == 1.0,
                "{member:?}: {slots} slots, fair: {ideal:.2}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_member_is_within_a_slot_of_its_fair_share(weights in weights(300), seed: u64) {
        let members = members(&weights, seed);
        assert_fair(&build(&members), &members);
    }

    #[test]
    fn order_of_members_and_backend_numbers_do_not_matter(weights in weights(100), seed: u64, rotation: usize) {
        let members = members(&weights, seed);
        let ring = build(&members);

        let mut turned = members.clone();
        turned.rotate_left(rotation % members.len().max(1));
        prop_assert_eq!(&build(&turned), &ring);

        let renumbered: Vec<Member> =
            members.iter().map(|member| Member { backend: u16::MAX - member.backend, ..*member }).collect();
        let expected: Vec<u16> =
            ring.slots().iter().map(|slot| if *slot == 0 { 0 } else { u16::MAX - slot }).collect();
        let other = build(&renumbered);
        prop_assert_eq!(other.slots(), expected.as_slice());
    }

    #[test]
    fn a_change_from_nominal_weights_moves_only_what_the_gaining_members_gain(
        nominal in prop::collection::vec(1u32..=100_000, 2..200), changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..=100_000), 1..10), seed: u64,
    ) {
        let before = members(&same(&nominal), seed);
        let mut after = before.clone();
        for (which, weight) in changes {
            let member = which.get(&before).backend;
            after[usize::from(member) - 1].weight = weight;
        }
        prop_assume!(after.iter().any(|member| member.weight > 0));
        let (old, new) = (build(&before), build(&after));
        let gained: usize = before
            .iter()
            .map(|member| slots_of(&new, member.backend).saturating_sub(slots_of(&old, member.backend)))
            .sum();
        prop_assert_eq!(disruption(&old, &new), gained);
    }

    #[test]
    fn one_member_that_loses_weight_costs_no_other_a_slot(
        nominal in prop::collection::vec(1u32..=100_000, 2..200), which: prop::sample::Index, left in 0.0..1.0f64, seed: u64,
    ) {
        let before = members(&same(&nominal), seed);
        let mut after = before.clone();
        let loser = &mut after[which.index(before.len())];
        loser.weight = (f64::from(loser.weight) * left) as u32;
        let loser = *loser;
        let (old, new) = (build(&before), build(&after));
        for member in before.iter().filter(|member| member.backend != loser.backend) {
            prop_assert!(slots_of(&new, member.backend) >= slots_of(&old, member.backend), "{member:?} lost slots");
        }
    }
}

#[test]
fn extreme_sets_get_what_they_must() {
    let all = SLOTS as usize;
    let cases: [(&str, Vec<(u32, u32)>); 11] = [
        ("no members", vec![]),
        ("no weights", same(&[0, 0])),
        ("one member", same(&[7])),
        ("one of two left", vec![(5, 0), (5, 1)]),
        ("all down", vec![(5, 0), (5, 0)]),
        ("none nominal", vec![(0, 3), (0, 3)]),
        ("largest weights", same(&[u32::MAX; 3])),
        ("largest and smallest", same(&[u32::MAX, 1, 1])),
        ("one heavy, many light", same(&[&[u32::MAX][..], &[1; 1_999]].concat())),
        ("half of them down", [vec![(1, 0); 1_000], vec![(1, 1); 1_000]].concat()),
        ("as many as there are numbers", vec![(1, 1); usize::from(u16::MAX)]),
    ];
    for (case, weights) in cases {
        let members = members(&weights, 1);
        let ring = build(&members);
        println!("{case}: {} members", ring.members().len());
        assert_eq!(ring.slots().len(), all);
        assert_fair(&ring, &members);
    }
}

#[test]
fn weights_in_another_unit_give_the_same_ring() {
    let weights: Vec<u32> = (0..50).map(|n| n * n + 1).collect();
    let thousandfold: Vec<u32> = weights.iter().map(|weight| weight * 1_000).collect();
    let ring = |weights: &[u32]| build(&members(&same(weights), 3));
    assert_eq!(disruption(&ring(&weights), &ring(&thousandfold)), 0);
}

#[test]
fn a_member_that_comes_back_finds_the_ring_it_left() {
    let whole = members(&same(&[10; 40]), 9);
    let mut without = whole.clone();
    without[3].weight = 0;
    let (before, gap) = (build(&whole), build(&without));
    assert_eq!(disruption(&before, &gap), slots_of(&before, whole[3].backend));
    assert_eq!(build(&whole), before);
}

#[test]
fn blocks_hold_the_slots_and_then_the_members_with_slots_in_order_of_ids() {
    for count in [0usize, 1, 31, 32, 33, 1_000] {
        let mut set = members(&vec![(3, 3); count], 4);
        if let Some(down) = set.get_mut(20) {
            down.weight = 0;
        }
        let ring = build(&set);
        let mut out = vec![RingBlock([u16::MAX; BLOCK_SLOTS as usize]); blocks(ring.members().len())];
        ring.write_blocks(&mut out);

        let numbers: Vec<u16> = out.iter().flat_map(|block| block.0).collect();
        let (slots, list) = numbers.split_at((SLOT_BLOCKS * BLOCK_SLOTS) as usize);
        let (slots, padding) = slots.split_at(SLOTS as usize);
        assert_eq!(slots, ring.slots());
        assert!(padding.iter().all(|number| *number == 0));

        set.sort_by_key(|member| member.id);
        let expected: Vec<u16> = set.iter().filter(|member| member.weight > 0).map(|member| member.backend).collect();
        let (list, padding) = list.split_at(expected.len());
        assert_eq!(list, expected);
        assert!(padding.iter().all(|number| *number == 0) && padding.len() < BLOCK_SLOTS as usize);
    }
}

#[test]
#[should_panic(expected = "another size of room")]
fn blocks_of_another_number_are_refused() {
    build(&members(&same(&[1]), 0)).write_blocks(&mut [RingBlock::zeroed()]);
}
