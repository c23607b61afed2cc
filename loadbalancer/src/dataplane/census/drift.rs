//! By what the packet path's counters of active flows are off. Pure.

use std::collections::{HashMap, HashSet};

use super::super::ids::BackendNumber;

#[derive(Debug, Default)]
pub(super) struct DriftCorrection {
    /// What the last count asked for: it is made if the next one agrees.
    last: HashMap<BackendNumber, i64>,
}

impl DriftCorrection {
    /// What is to be added to which counters. All counts are by backend number: the counters `before` and `after` a walk, and what
    /// the walk has `counted`.
    pub(super) fn corrections(
        &mut self,
        before: &[i64],
        after: &[i64],
        counted: &[u32],
        down: &HashSet<BackendNumber>,
    ) -> Vec<(BackendNumber, i64)> {
        let last = std::mem::take(&mut self.last);
        let mut corrections = Vec::new();
        for (number, ((before, after), counted)) in before.iter().zip(after).zip(counted).enumerate().skip(1) {
            let error = i64::from(*counted) - (before + after) / 2;
            // What changed during the walk may be seen or not.
            if error.abs() <= (after - before).abs() {
                continue;
            }
            let backend = BackendNumber(number as u16);
            let last = last.get(&backend).copied().unwrap_or(0);
            if down.contains(&backend) {
                // It gets no flows, so one count will do; it must not seem full of those that died with it when it comes back.
                corrections.push((backend, error));
            } else if last.signum() == error.signum() {
                // Two counts agree: the smaller one is safe.
                corrections.push((backend, if error.abs() < last.abs() { error } else { last }));
            } else {
                self.last.insert(backend, error);
            }
        }
        corrections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: BackendNumber = BackendNumber(1);

    /// Counts one server, whose counter stands at `before` and `after` the walk.
    fn count(drift: &mut DriftCorrection, before: i64, after: i64, counted: u32, is_down: bool) -> Option<i64> {
        let down = if is_down { HashSet::from([SERVER]) } else { HashSet::new() };
        let corrections = drift.corrections(&[0, before], &[0, after], &[0, counted], &down);
        assert!(corrections.iter().all(|(backend, _)| *backend == SERVER), "{corrections:?}");
        corrections.first().map(|(_, correction)| *correction)
    }

    #[test]
    fn a_counter_is_corrected_once_two_counts_agree_by_the_smaller_one() {
        for (first, second, correction) in [(90, 95, -5), (95, 90, -5), (110, 104, 4), (104, 110, 4)] {
            let mut drift = DriftCorrection::default();
            assert_eq!(count(&mut drift, 100, 100, first, false), None);
            assert_eq!(count(&mut drift, 100, 100, second, false), Some(correction), "{first}, {second}");
            // What was corrected is forgotten: the next error is a first one again.
            assert_eq!(count(&mut drift, 100, 100, second, false), None, "{first}, {second}");
        }
    }

    #[test]
    fn counts_that_disagree_correct_nothing() {
        let mut drift = DriftCorrection::default();
        for counted in [90, 110, 90, 110] {
            assert_eq!(count(&mut drift, 100, 100, counted, false), None);
        }
        // Nor does one between which there was none.
        assert_eq!(count(&mut drift, 100, 100, 100, false), None);
        assert_eq!(count(&mut drift, 100, 100, 110, false), None);
    }

    #[test]
    fn what_changes_during_the_walk_is_no_error() {
        let mut drift = DriftCorrection::default();
        for _ in 0..3 {
            assert_eq!(count(&mut drift, 100, 110, 95, false), None);
            assert_eq!(count(&mut drift, 110, 100, 115, false), None);
        }
        assert_eq!(count(&mut drift, 100, 110, 94, false), None);
        assert_eq!(count(&mut drift, 100, 110, 94, false), Some(-11));
    }

    #[test]
    fn one_count_will_do_for_a_server_that_is_down() {
        let mut drift = DriftCorrection::default();
        assert_eq!(count(&mut drift, 100, 100, 3, true), Some(-97));
        assert_eq!(count(&mut drift, 100, 100, 90, false), None);
        assert_eq!(count(&mut drift, 100, 100, 3, true), Some(-97), "not the smaller one of before");
    }

    #[test]
    fn a_counter_below_zero_is_corrected() {
        let mut drift = DriftCorrection::default();
        assert_eq!(count(&mut drift, -2, -2, 0, false), None);
        assert_eq!(count(&mut drift, -2, -2, 0, false), Some(2));
    }
}
