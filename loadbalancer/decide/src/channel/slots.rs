//! Shares of path slots, with as few slots changed as possible: flows on the others stay where they are.

use loadbalancer_common::backend::PATH_SLOTS;

use crate::quality::signal::ChannelKey;

/// Channel of each slot; None: there is no channel.
pub type Slots = [Option<ChannelKey>; PATH_SLOTS];

/// The same with the channels' places in their order instead of their keys.
pub(super) type Places = [Option<usize>; PATH_SLOTS];

/// How many slots each channel is to have. The channel that is served least for its weight gets the next one
/// (Sainte-Lague's method), so that a weight below a sixteenth of all gets none.
///
/// `counts` are slots that channels have already, `most` what each may have; it is not kept if slots would be left over.
pub(super) fn fill(counts: &[usize], weights: &[f64], most: &[usize]) -> Vec<usize> {
    let mut counts = counts.to_vec();
    while counts.iter().sum::<usize>() < PATH_SLOTS {
        let served = |place: &usize| (counts[*place] as f64 + 0.5) / weights[*place];
        let able = || (0..counts.len()).filter(|place| weights[*place] > 0.0);
        let least = |one: &usize, other: &usize| served(one).total_cmp(&served(other));
        let below = able().filter(|place| counts[*place] < most[*place]).min_by(least);
        let Some(place) = below.or_else(|| able().min_by(least)) else { break };
        counts[place] += 1;
    }
    counts
}

/// Whether some channel has too many or too few slots by more than half of one and a margin.
pub(super) fn is_off(counts: &[usize], weights: &[f64], margin: f64) -> bool {
    let total: f64 = weights.iter().sum();
    let due = |weight: &f64| PATH_SLOTS as f64 * weight / total;
    total > 0.0 && counts.iter().zip(weights).any(|(count, weight)| (*count as f64 - due(weight)).abs() > 0.5 + margin)
}

pub(super) fn count(slots: &Places, channels: usize) -> Vec<usize> {
    let mut counts = vec![0; channels];
    slots.iter().flatten().for_each(|channel| counts[*channel] += 1);
    counts
}

/// Gives each channel its number of slots. What has too many loses some, free slots go first.
pub(super) fn assign(slots: &mut Places, counts: &[usize]) {
    let mut surplus = count(slots, counts.len());
    surplus.iter_mut().zip(counts).for_each(|(has, wanted)| *has = has.saturating_sub(*wanted));
    for slot in slots.iter_mut() {
        if let Some(channel) = *slot
            && surplus[channel] > 0
        {
            surplus[channel] -= 1;
            *slot = None;
        }
    }
    let mut lacking = count(slots, counts.len());
    lacking.iter_mut().zip(counts).for_each(|(has, wanted)| *has = wanted.saturating_sub(*has));
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        // The one that lacks most, so that slots of a channel are spread.
        let most = (0..lacking.len()).rev().max_by_key(|channel| lacking[*channel]);
        if let Some(channel) = most.filter(|channel| lacking[*channel] > 0) {
            lacking[channel] -= 1;
            *slot = Some(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: [usize; 3] = [PATH_SLOTS; 3];

    #[test]
    fn slots_follow_weights() {
        for (weights, wanted) in [
            (&[1.0, 1.0][..], &[4, 4][..]),
            (&[3.0, 1.0], &[6, 2]),
            (&[1.0, 51.0], &[0, 8]),
            (&[1.0, 0.0], &[8, 0]),
            (&[1.0, 1.0, 1.0], &[3, 3, 2]),
            (&[7.0], &[8]),
            (&[0.0, 0.0], &[0, 0]),
        ] {
            assert_eq!(fill(&vec![0; weights.len()], weights, &ANY), wanted, "{weights:?}");
        }
    }

    #[test]
    fn nobody_gets_more_than_allowed_while_others_may() {
        assert_eq!(fill(&[0, 0], &[1.0, 1.0], &[2, 8]), [2, 6]);
        assert_eq!(fill(&[0, 0], &[1.0, 0.0], &[2, 8]), [8, 0], "there is nobody else");
    }

    #[test]
    fn a_share_is_off_only_beyond_half_a_slot_and_the_margin() {
        for (weights, wanted) in [([1.0, 1.0], false), ([1.4, 1.0], false), ([1.6, 1.0], true), ([0.0, 0.0], false)] {
            assert_eq!(is_off(&[4, 4], &weights, 0.3), wanted, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn every_slot_has_a_channel_and_only_what_must_change_changes(
            before in prop::array::uniform8(prop::option::of(0usize..3)),
            weights in prop::array::uniform3(0.1..10.0f64),
        ) {
            let has = count(&before, 3);
            let wanted = fill(&[0; 3], &weights, &ANY);
            let mut after = before;
            assign(&mut after, &wanted);
            prop_assert_eq!(count(&after, 3), wanted.clone());
            let kept = before.iter().zip(&after).filter(|(before, after)| before.is_some() && before == after).count();
            let could_be_kept: usize = has.iter().zip(&wanted).map(|(has, wanted)| *has.min(wanted)).sum();
            prop_assert_eq!(kept, could_be_kept);
        }
    }
}
