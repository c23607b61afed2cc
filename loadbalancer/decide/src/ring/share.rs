//! How many slots each member gets.
//!
//! A divisor method of apportionment: a member's share times a common factor, plus a fraction of its own, rounded down,
//! where the factor is the one that gives all slots away. Divisor methods are monotone: if one weight falls, the others'
//! shares rise or stay. That the fraction is the member's own spreads the moments at which equal members gain a slot.

use loadbalancer_common::hash::{mix, second};
use loadbalancer_common::ring::SLOTS;

use super::{deal::fraction, member::Member};

/// Keeps the fractions apart from what `deal` derives from the same ids.
const ROUNDING: u64 = 0x726f_756e_6469_6e67;

/// Halvings after which an interval of `f64` is two neighbours, with room to spare.
const HALVINGS: u32 = 80;

/// Slots of each member; the sum is [`SLOTS`], or zero if all weights are.
pub fn shares(members: &[Member], weight: impl Fn(&Member) -> u32) -> Vec<u32> {
    let weights: Vec<f64> = members.iter().map(|member| f64::from(weight(member))).collect();
    let total: f64 = weights.iter().sum();
    if total == 0.0 {
        return vec![0; members.len()];
    }
    let all = f64::from(SLOTS);

    // Every member with a weight gets a slot; the fair factor shares out what that leaves.
    let used = |factor: f64| weights.iter().filter(|weight| **weight > 0.0).map(|w| (w * factor).max(1.0)).sum::<f64>();
    let (fair, _) = bisect((all + 1.0) / total, |factor| used(factor) <= all);

    let own: Vec<f64> = members.iter().map(|member| fraction(mix(second(member.id) ^ ROUNDING))).collect();
    // Never further than rounding from the fair share, whatever the fractions happen to be.
    let count = |member: usize, factor: f64| {
        let (weight, share) = (weights[member], weights[member] * fair);
        if weight == 0.0 {
            return 0;
        }
        (weight * factor + own[member]).floor().clamp(share.floor(), share.ceil()).max(1.0) as u32
    };
    let sum = |factor: f64| (0..members.len()).map(|member| u64::from(count(member, factor))).sum::<u64>();
    let lightest = weights.iter().copied().filter(|weight| *weight > 0.0).fold(f64::INFINITY, f64::min);
    let (factor, above) = bisect(fair + 1.0 / lightest, |factor| sum(factor) <= u64::from(SLOTS));

    let mut counts: Vec<u32> = (0..members.len()).map(|member| count(member, factor)).collect();
    // Members that step up at the very same factor: the first of them, by id, do.
    let mut left = u64::from(SLOTS) - sum(factor);
    for (member, slots) in counts.iter_mut().enumerate() {
        if left > 0 && count(member, above) > *slots {
            *slots += 1;
            left -= 1;
        }
    }
    assert_eq!(left, 0, "the shares of {} members do not fill the ring", members.len());
    counts
}

/// The point up to which `fits` holds, from below and from above. It must hold at zero, and not again once it fails.
fn bisect(high: f64, fits: impl Fn(f64) -> bool) -> (f64, f64) {
    let (mut low, mut high) = (0.0, high);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if fits(middle) { low = middle } else { high = middle }
    }
    (low, high)
}
