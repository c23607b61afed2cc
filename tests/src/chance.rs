//! What chance may do without a test failing by it.

use std::ops::RangeInclusive;

/// What has a smaller probability is taken for impossible. A test looks at a hundred counts at most, so chance makes it fail with a
/// probability below 10^-8.
pub const IMPOSSIBLE: f64 = 1e-10;

/// The counts of successes in so many independent attempts, each with a probability of `share`: all others together are
/// [`IMPOSSIBLE`]. Exact, from the binomial distribution.
///
/// It holds as well for what a gateway deals to its servers: the hash makes a flow's first choice random, and that new flows avoid
/// hot servers only brings counts closer to their mean.
pub fn counts(attempts: u64, share: f64) -> RangeInclusive<u64> {
    least(attempts, share)..=attempts - least(attempts, 1.0 - share)
}

/// As [`counts`], where a share is known to lie between two.
pub fn counts_between(attempts: u64, shares: [f64; 2]) -> RangeInclusive<u64> {
    *counts(attempts, shares[0]).start()..=*counts(attempts, shares[1]).end()
}

/// The largest count below which all together have at most half of the probability.
fn least(attempts: u64, share: f64) -> u64 {
    if share >= 1.0 {
        return attempts;
    }
    // In logarithms: the probability of no success at all may be too small for a number.
    let mut logarithm = attempts as f64 * (1.0 - share).ln();
    let mut below = 0.0;
    for count in 0..attempts {
        below += logarithm.exp();
        if below > IMPOSSIBLE / 2.0 {
            return count;
        }
        logarithm += ((attempts - count) as f64 / (count + 1) as f64 * share / (1.0 - share)).ln();
    }
    attempts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a count, by Pascal's triangle.
    fn probabilities(attempts: usize, share: f64) -> Vec<f64> {
        (0..attempts).fold(vec![1.0], |row, _| {
            (0..=row.len())
                .map(|count| {
                    let hit = count.checked_sub(1).map_or(0.0, |before| row[before] * share);
                    hit + row.get(count).map_or(0.0, |same| same * (1.0 - share))
                })
                .collect()
        })
    }

    #[test]
    fn what_is_outside_is_impossible_and_what_is_at_the_edge_is_not() {
        for (attempts, share) in [(10, 0.5), (400, 0.25), (400, 0.75), (2_000, 0.1), (500, 0.05), (1_000, 0.001)] {
            let range = counts(attempts, share);
            let all = probabilities(attempts as usize, share);
            let (low, high) = (*range.start() as usize, *range.end() as usize);
            let outside = [all[..low].iter().sum::<f64>(), all[high + 1..].iter().sum()];
            let with_edge = [outside[0] + all[low], outside[1] + all[high]];
            assert!(outside.iter().all(|part| *part <= IMPOSSIBLE / 2.0), "{attempts} {share} {range:?} {outside:?}");
            assert!(
                with_edge.iter().all(|part| *part > IMPOSSIBLE / 2.0),
                "{attempts} {share} {range:?} {with_edge:?}"
            );
        }
    }

    #[test]
    fn what_is_certain_is_certain() {
        assert_eq!((counts(7, 0.0), counts(7, 1.0), counts(0, 0.5)), (0..=0, 7..=7, 0..=0));
    }

    #[test]
    fn many_attempts_stay_close_to_their_share() {
        // Six and a half standard deviations of 71.
        let range = counts(20_000, 0.5);
        assert!((9_530..9_560).contains(range.start()) && (10_440..10_470).contains(range.end()), "{range:?}");
    }
}
