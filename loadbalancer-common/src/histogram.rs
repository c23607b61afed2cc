//! Counts of values by their logarithm: one histogram for the packet path and the controller.

use bytemuck::{Pod, Zeroable};

/// Each octave has 2^`FINE` buckets of equal width, as HdrHistogram has it; values are counted in units of 2^`UNIT`. What is
/// below 2^`FINE` units has a bucket for each unit; what is beyond the last bucket is counted there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Histogram<C, const BUCKETS: usize, const UNIT: u32, const FINE: u32> {
    pub buckets: [C; BUCKETS],
}

impl<C, const BUCKETS: usize, const UNIT: u32, const FINE: u32> Histogram<C, BUCKETS, UNIT, FINE> {
    /// Bucket of a value.
    #[inline(always)]
    pub const fn bucket(value: u64) -> usize {
        let units = value >> UNIT;
        // The highest bit tells the octave, the next ones the bucket in it.
        let octave = (u64::BITS - units.leading_zeros()).saturating_sub(FINE + 1);
        let bucket = ((octave as u64) << FINE) + (units >> octave);
        if bucket >= BUCKETS as u64 { BUCKETS - 1 } else { bucket as usize }
    }

    /// Least value of a bucket, and its width.
    pub const fn bounds(bucket: usize) -> (u64, u64) {
        let octave = (bucket >> FINE).saturating_sub(1);
        let units = bucket - (octave << FINE);
        ((units as u64) << octave << UNIT, 1 << octave << UNIT)
    }
}

impl<C: Copy + Default, const BUCKETS: usize, const UNIT: u32, const FINE: u32> Default
    for Histogram<C, BUCKETS, UNIT, FINE>
{
    fn default() -> Self {
        Self { buckets: [C::default(); BUCKETS] }
    }
}

impl<const BUCKETS: usize, const UNIT: u32, const FINE: u32> Histogram<u64, BUCKETS, UNIT, FINE> {
    pub fn record(&mut self, value: u64) {
        self.buckets[Self::bucket(value)] += 1;
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Takes in what another one has.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Octaves = Histogram<u64, 64, 1, 0>;
    type Eighths = Histogram<u64, 240, 0, 3>;

    #[test]
    fn buckets_join_without_gap_up_to_the_last() {
        let mut end = 0;
        for index in 0..240 {
            let (least, width) = Eighths::bounds(index);
            assert_eq!(least, end, "bucket {index}");
            assert!([least, least + width - 1].iter().all(|value| Eighths::bucket(*value) == index));
            assert!(width == 1 || width * 8 <= least, "bucket {index} is wider than an eighth");
            end = least + width;
        }
        assert_eq!(end, 1 << 32);
        assert_eq!([end, u64::MAX].map(Eighths::bucket), [239; 2]);
    }

    #[test]
    fn counts_are_added_up() {
        let mut histogram = Octaves::default();
        [0, 1, 2, 1_000_000, u64::MAX].iter().for_each(|value| histogram.record(*value));
        assert_eq!([0, 1, 19, 63].map(|bucket| histogram.buckets[bucket]), [2, 1, 1, 1]);
        histogram.merge(&histogram.clone());
        assert_eq!(histogram.count(), 10);
    }

    proptest! {
        #[test]
        fn a_value_is_within_its_bucket(value: u64, eighth in 0u64..1 << 32) {
            let (least, width) = Octaves::bounds(Octaves::bucket(value));
            prop_assert!(value >= least && value - least < width);
            let (least, width) = Eighths::bounds(Eighths::bucket(eighth));
            prop_assert!(eighth >= least && eighth - least < width);
        }
    }
}
