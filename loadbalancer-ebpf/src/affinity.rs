//! The affinity table: finding, adding and ageing a flow's entry.

use loadbalancer_common::affinity::{BUCKET_ENTRIES, Bucket, Entry, LIVE_RANK, bucket, other_bucket, state, tag};
use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::clock::age;
use loadbalancer_common::settings::Settings;

use crate::maps;

/// An entry, and where it is. Not an `Option`, whose empty form would leave registers undefined that the compiler then
/// copies around, which the verifier refuses.
#[derive(Clone, Copy)]
pub struct Found {
    pub word: *mut u64,
    /// Free: nothing was found.
    pub entry: Entry,
}

impl Found {
    const NOTHING: Self = Self { word: core::ptr::null_mut(), entry: Entry(0) };

    #[inline(always)]
    pub fn is_some(&self) -> bool {
        !self.entry.is_free()
    }
}

/// The entry of a flow hash.
#[inline(always)]
pub fn find(settings: &Settings, hash: u64) -> Found {
    let first = bucket(hash, settings.affinity_mask);
    let wanted = tag(hash);
    let found = find_in(first, wanted);
    if found.is_some() {
        return found;
    }
    find_in(other_bucket(first, wanted, settings.affinity_mask), wanted)
}

/// The server that a client had before.
#[inline(always)]
pub fn server_of_client(settings: &Settings, client: u64, now: u16) -> u16 {
    let found = find(settings, client);
    let known = found.is_some() && age(now, found.entry.time()) <= settings.timeouts[state::CLIENT as usize];
    if known { found.entry.backend() } else { NO_BACKEND }
}

#[inline(always)]
fn find_in(index: u32, wanted: u32) -> Found {
    let Some(bucket) = maps::bucket(index) else {
        return Found::NOTHING;
    };
    let words = bucket.cast::<u64>();
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        // SAFETY: a bucket has so many words; a plain load of an aligned word is never torn.
        let (word, entry) = unsafe { (words.add(i), Entry(words.add(i).read_volatile())) };
        if entry.tag() == wanted && !entry.is_free() {
            return Found { word, entry };
        }
        i += 1;
    }
    Found::NOTHING
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
#[inline(always)]
pub fn insert(hash: u64, backend: u16, state: u8, now: u16) -> bool {
    affinity_insert(hash, backend as u32, state as u32, now as u32) != 0
}

/// See [`insert`]. Exported so that the verifier checks it once by itself, not anew for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_insert(hash: u64, backend: u32, state: u32, now: u32) -> u32 {
    let Some(settings) = maps::settings() else {
        return 0;
    };
    let (backend, state, now) = (backend as u16, state as u8, now as u16);
    let new = Entry::new(tag(hash), backend, state, now);
    let first = bucket(hash, settings.affinity_mask);
    let mut attempt = 0;
    while attempt < 3 {
        attempt += 1;
        let mut index = first;
        let mut best = cheapest(settings, first, now);
        if rank_of(best) >= LIVE_RANK {
            let second = other_bucket(first, tag(hash), settings.affinity_mask);
            let other = cheapest(settings, second, now);
            if rank_of(other) < rank_of(best) {
                (index, best) = (second, other);
            }
        }
        let Some(words) = maps::bucket(index) else {
            return 0;
        };
        // SAFETY: the index is below the number of words in a bucket.
        let place = unsafe { words.cast::<u64>().add(best as usize & (BUCKET_ENTRIES - 1)) };
        // SAFETY: as above.
        let entry = Entry(unsafe { place.read_volatile() });
        // Another CPU may have used the place since; a better one is looked for then.
        if entry.keep_rank(settings, now) <= rank_of(best) && replace(&Found { word: place, entry }, new) {
            return 1;
        }
    }
    0
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

/// The entry of a bucket that is given up most willingly: its rank, and in the lowest three bits its index.
#[inline(always)]
fn cheapest(settings: &Settings, index: u32, now: u16) -> u32 {
    let Some(words) = maps::bucket(index) else {
        return u32::MAX;
    };
    let words = words.cast::<u64>();
    let mut best = u32::MAX as u64;
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        // SAFETY: a bucket has so many words.
        let entry = Entry(unsafe { words.add(i).read_volatile() });
        let candidate = ((entry.keep_rank(settings, now) as u64) << 3) | i as u64;
        best ^= (best ^ candidate) & ones_if_less(candidate, best);
        // In assembly, so that the loop is not unrolled: all eight entries at once do not fit on the stack.
        // SAFETY: an addition.
        unsafe { core::arch::asm!("{0} += 1", inout(reg) i, options(pure, nomem, nostack)) };
    }
    best as u32
}

/// All ones if `a < b`, else zero; both below 2^63. In assembly, as the compiler makes a branch of every other form, and
/// branches multiply for the verifier (see `Entry::keep_rank`).
#[inline(always)]
fn ones_if_less(mut a: u64, b: u64) -> u64 {
    // SAFETY: two arithmetic instructions.
    unsafe { core::arch::asm!("{0} -= {1}", "{0} s>>= 63", inout(reg) a, in(reg) b, options(pure, nomem, nostack)) };
    a
}

#[inline(always)]
fn rank_of(cheapest: u32) -> u32 {
    cheapest >> 3
}

const _: () = assert!(size_of::<Bucket>() == BUCKET_ENTRIES * 8);
