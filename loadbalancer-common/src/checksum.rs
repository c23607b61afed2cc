//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept as the plain one's-complement sum of 16-bit words *as they lie in memory*. That sum is independent of
//! byte order up to a byte swap (RFC 1071, section 2B), so it is computed on native words and stored as it is.

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What replacing `old` by `new` adds to a sum (RFC 1624, equation 3: `~m + m'`).
#[inline(always)]
pub const fn replace16(old: u16, new: u16) -> u64 {
    (!old) as u64 + new as u64
}

/// See [`replace16`].
#[inline(always)]
pub const fn replace32(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// A checksum field after `difference` was added to what it covers.
#[inline(always)]
pub const fn update(checksum: u16, difference: u64) -> u16 {
    !fold((!checksum) as u64 + difference)
}

/// Checksum field of a sum.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Sum of whole bytes; an odd last byte counts as if a zero followed.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        sum += u16::from_ne_bytes([pair[0], pair[1]]) as u64;
    }
    if let [last] = pairs.remainder() {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    sum
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn header_of_the_textbook() {
        // 45 00 00 73 00 00 40 00 40 11 [b8 61] c0 a8 00 01 c0 a8 00 c7
        let header = [0x45u8, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(finish(sum_bytes(&header)).to_ne_bytes(), [0xb8, 0x61]);
    }

    proptest! {
        #[test]
        fn incremental_update_equals_recomputation(mut data in prop::collection::vec(any::<u8>(), 8..64), new: u32, at in 0usize..2) {
            let at = at * 4;
            let before = finish(sum_bytes(&data));
            let old = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            data[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            let updated = update(before, replace32(old, new));
            // 0x0000 and 0xffff are the same number in one's complement.
            prop_assert_eq!(fold(!updated as u64 + 0xffff), fold(!finish(sum_bytes(&data)) as u64 + 0xffff));
        }
    }
}
