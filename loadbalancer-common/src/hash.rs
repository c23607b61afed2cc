//! Flow hashing: one keyed 64-bit hash decides ring slot, affinity bucket, tag, path slot and tunnel source port.
//!
//! The mixer is the 64-bit finalizer of MurmurHash3 (Austin Appleby, public domain), applied once per 64-bit word and
//! keyed by a seed that clients do not know, so that they cannot aim at one bucket. Gateways that share an address must
//! share the seed: it is a setting.

use crate::net::{Addr4, Addr6, Be16};

#[inline(always)]
pub const fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[inline(always)]
const fn words(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

#[inline(always)]
const fn ports(source: Be16, destination: Be16, protocol: u8) -> u64 {
    ((source.0 as u64) << 32) | ((destination.0 as u64) << 16) | protocol as u64
}

/// Hash of an IPv4 flow as the client sends it.
#[inline(always)]
pub const fn flow4(seed: u64, src: Addr4, dst: Addr4, sport: Be16, dport: Be16, protocol: u8) -> u64 {
    mix(mix(seed ^ words(src.0, dst.0)) ^ ports(sport, dport, protocol))
}

/// Hash of an IPv6 flow as the client sends it.
#[inline(always)]
pub const fn flow6(seed: u64, src: Addr6, dst: Addr6, sport: Be16, dport: Be16, protocol: u8) -> u64 {
    let mut h = mix(seed ^ words(src.0[0], src.0[1]));
    h = mix(h ^ words(src.0[2], src.0[3]));
    h = mix(h ^ words(dst.0[0], dst.0[1]));
    h = mix(h ^ words(dst.0[2], dst.0[3]));
    mix(h ^ ports(sport, dport, protocol))
}

/// Hash of a `nat` flow by what is at hand in both directions without a look at its addresses: its backend, and the source port
/// that it has there.
#[inline(always)]
pub const fn nat_flow(seed: u64, backend: u16, port: Be16, protocol: u8) -> u64 {
    mix(seed ^ ports(port, Be16(backend), protocol))
}

/// Marks hashes of clients, so that they never meet the hash of a flow.
const CLIENT: u64 = 0x636c_6965_6e74_0000;

/// Hash of an IPv4 client of a service, for services that keep a client on one server.
#[inline(always)]
pub const fn client4(seed: u64, src: Addr4, service: u16) -> u64 {
    mix(mix(seed ^ src.0 as u64) ^ CLIENT ^ service as u64)
}

/// Hash of an IPv6 client of a service, for services that keep a client on one server.
#[inline(always)]
pub const fn client6(seed: u64, src: Addr6, service: u16) -> u64 {
    let h = mix(seed ^ words(src.0[0], src.0[1]));
    mix(mix(h ^ words(src.0[2], src.0[3])) ^ CLIENT ^ service as u64)
}

/// A second, independent hash of the same flow (the second choice of a server, the first port tried).
#[inline(always)]
pub const fn second(hash: u64) -> u64 {
    mix(hash ^ 0x9e37_79b9_7f4a_7c15)
}

/// Scales the upper half of a hash to `0..n` without a division (Lemire, "Fast Random Integer Generation in an
/// Interval", 2019).
#[inline(always)]
pub const fn scale(hash: u64, n: u32) -> u32 {
    (((hash >> 32) * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_stays_in_range_and_reaches_the_ends() {
        assert_eq!(scale(0, 65_537), 0);
        assert_eq!(scale(u64::MAX, 65_537), 65_536);
    }

    #[test]
    fn every_part_of_a_flow_changes_its_hash() {
        let (a, b) = (Addr4(1), Addr4(2));
        let base = flow4(7, a, b, Be16::new(1), Be16::new(2), 6);
        assert_ne!(base, flow4(8, a, b, Be16::new(1), Be16::new(2), 6));
        assert_ne!(base, flow4(7, b, a, Be16::new(1), Be16::new(2), 6));
        assert_ne!(base, flow4(7, a, b, Be16::new(2), Be16::new(1), 6));
        assert_ne!(base, flow4(7, a, b, Be16::new(1), Be16::new(2), 17));
        assert_ne!(client4(7, a, 1), client4(7, a, 2));
    }

    #[test]
    fn low_bits_are_even_over_sequential_clients() {
        let mut counts = [0u32; 16];
        for n in 0..16_000u32 {
            let h = flow4(1, Addr4(n.to_be()), Addr4(9), Be16::new(40_000), Be16::new(80), 6);
            counts[(h & 15) as usize] += 1;
        }
        // 1,000 expected in each; 6 sigma is about 190.
        assert!(counts.iter().all(|c| (810..1190).contains(c)), "{counts:?}");
    }
}
