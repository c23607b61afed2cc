//! The affinity table: finding, adding and ageing a flow's entry.

use loadbalancer_common::affinity::{
    BUCKET_ENTRIES, Bucket, Entry, LIVE_RANK, bucket, other_bucket, state, tag,
};
use loadbalancer_common::settings::Settings;

use crate::maps;

/// An entry, and where it is.
#[derive(Clone, Copy)]
pub struct Found {
    pub word: *mut u64,
    pub entry: Entry,
}

/// The entry of a flow hash.
#[inline(always)]
pub fn find(settings: &Settings, hash: u64) -> Option<Found> {
    let first = bucket(hash, settings.affinity_mask);
    let wanted = tag(hash);
    if let Some(found) = find_in(first, wanted) {
        return Some(found);
    }
    find_in(other_bucket(first, wanted, settings.affinity_mask), wanted)
}

#[inline(always)]
fn find_in(index: u32, wanted: u32) -> Option<Found> {
    let words = maps::bucket(index)?.cast::<u64>();
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        // SAFETY: a bucket has so many words; a plain load of an aligned word is never torn.
        let (word, entry) = unsafe { (words.add(i), Entry(words.add(i).read_volatile())) };
        if entry.tag() == wanted && !entry.is_free() {
            return Some(Found { word, entry });
        }
        i += 1;
    }
    None
}

/// Brings an entry up to date. Whoever changes the state also keeps the count of active flows.
#[inline(always)]
pub fn touch(found: &Found, state: u8, now: u16) {
    let new = found.entry.with(state, now);
    if new != found.entry
        && maps::compare_exchange(found.word, found.entry.0, new.0)
        && state::is_active(found.entry.state())
        && !state::is_active(state)
    {
        maps::release(found.entry.backend());
    }
}

/// Puts a new entry into the better place of the flow's two buckets, and gives up what was there. False if other CPUs
/// were faster each time; the flow then goes by its ring slot.
#[inline(never)]
pub fn insert(settings: &Settings, hash: u64, backend: u16, state: u8, now: u16) -> bool {
    let new = Entry::new(tag(hash), backend, state, now);
    let first = bucket(hash, settings.affinity_mask);
    let mut attempt = 0;
    while attempt < 3 {
        let Some(mut place) = cheapest(settings, first, now) else {
            return false;
        };
        if place.entry.keep_rank(settings, now) >= LIVE_RANK {
            let second = other_bucket(first, tag(hash), settings.affinity_mask);
            if let Some(other) = cheapest(settings, second, now)
                && other.entry.keep_rank(settings, now) < place.entry.keep_rank(settings, now)
            {
                place = other;
            }
        }
        if replace(&place, new) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Replaces an entry, if it is still there.
#[inline(always)]
pub fn replace(place: &Found, new: Entry) -> bool {
    if !maps::compare_exchange(place.word, place.entry.0, new.0) {
        return false;
    }
    if state::is_active(place.entry.state()) {
        maps::release(place.entry.backend());
    }
    true
}

/// The entry of a bucket that is given up most willingly.
#[inline(always)]
fn cheapest(settings: &Settings, index: u32, now: u16) -> Option<Found> {
    let words = maps::bucket(index)?.cast::<u64>();
    let mut best_index = 0usize;
    let mut best_rank = u32::MAX;
    let mut best = Entry(0);
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        // SAFETY: a bucket has so many words.
        let entry = Entry(unsafe { words.add(i).read_volatile() });
        let rank = entry.keep_rank(settings, now);
        if rank < best_rank {
            (best_index, best_rank, best) = (i, rank, entry);
        }
        i += 1;
    }
    // SAFETY: the index is below the number of words in a bucket.
    Some(Found { word: unsafe { words.add(best_index & (BUCKET_ENTRIES - 1)) }, entry: best })
}

const _: () = assert!(size_of::<Bucket>() == BUCKET_ENTRIES * 8);
