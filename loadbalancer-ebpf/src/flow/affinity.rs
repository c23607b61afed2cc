//! The affinity table: finding, adding and ageing a flow's entry.

use loadbalancer_common::affinity::{BUCKET_ENTRIES, Entry, LIVE_RANK, bucket, other_bucket, state, tag};
use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::clock::age;
use loadbalancer_common::settings::Settings;

use crate::maps::{self, Shared};
use crate::packed::Pair;

/// An entry, and where it is. Not an `Option`, whose empty form would leave registers undefined that the compiler then
/// copies around, which the verifier refuses.
#[derive(Clone, Copy)]
pub struct Found {
    word: Option<&'static Shared<Entry>>,
    /// Free: nothing was found.
    pub entry: Entry,
}

impl Found {
    const NOTHING: Self = Self { word: None, entry: Entry(0) };

    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.word.is_some()
    }

    /// Puts another entry in its place, if it is still there.
    #[inline(always)]
    fn exchange(&self, new: Entry) -> bool {
        self.word.is_some_and(|word| word.compare_exchange(self.entry, new))
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
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        let word = &bucket[i];
        let entry = word.load();
        if entry.tag() == wanted && !entry.is_free() {
            return Found { word: Some(word), entry };
        }
        i += 1;
    }
    Found::NOTHING
}

/// Brings an entry up to date. Whoever changes the state also keeps the count of active flows.
#[inline(always)]
pub fn touch(found: &Found, state: u8, now: u16) {
    let new = found.entry.with(state, now);
    if new != found.entry && found.exchange(new) && state::is_active(found.entry.state()) && !state::is_active(state) {
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
        let Some(bucket) = maps::bucket(index) else {
            return 0;
        };
        let word = &bucket[best as usize & (BUCKET_ENTRIES - 1)];
        let place = Found { word: Some(word), entry: word.load() };
        // Another CPU may have used the place since; a better one is looked for then.
        if place.entry.keep_rank(settings, now) <= rank_of(best) && replace(&place, new) {
            return 1;
        }
    }
    0
}

/// Replaces an entry, if it is still there.
#[inline(always)]
pub fn replace(place: &Found, new: Entry) -> bool {
    if !place.exchange(new) {
        return false;
    }
    if state::is_active(place.entry.state()) {
        maps::release(place.entry.backend());
    }
    true
}

/// What the packet that begins a flow is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum First {
    Syn = 0,
    /// Of TCP, but not its first: the flow was picked up in its middle.
    Middle = 1,
    Datagram = 2,
}

/// How a flow begins, as the functions that open and note it take it: above the lowest bit the first packet; in it, whether
/// there is an entry, of a flow that is over or that lost its server.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Beginning(u32);

impl Beginning {
    #[inline(always)]
    pub fn new(first: First, has_entry: bool) -> Self {
        Self((first as u32) << 1 | has_entry as u32)
    }

    #[inline(always)]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub fn is(self, first: First) -> bool {
        self.0 >> 1 == first as u32
    }

    #[inline(always)]
    pub fn has_entry(self) -> bool {
        self.0 & 1 != 0
    }

    /// State that the flow begins with.
    #[inline(always)]
    fn state(self) -> u8 {
        if self.is(First::Datagram) { state::UDP } else { state::TCP_SYN }
    }
}

/// Notes a new flow, counted on its backend already, and the server of its client unless that is zero.
#[inline(always)]
pub fn note_flow(hash: u64, client: u64, backend: u16, now: u16, beginning: Beginning) {
    affinity_note_flow(hash, client, Pair(backend, now).to_bits(), beginning.to_bits());
}

/// See [`note_flow`]. Exported so that the verifier checks it once by itself, with a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_note_flow(hash: u64, client: u64, backend_now: u32, beginning: u32) -> u32 {
    let Some(settings) = maps::settings() else {
        return 0;
    };
    let Pair(backend, now) = Pair::from_bits(backend_now);
    note(settings, hash, backend, now, Beginning::from_bits(beginning));
    if client != 0 {
        affinity_note_client(client, backend_now);
    }
    0
}

/// Notes the server that a client's flows go to. What another CPU does meanwhile is as good; the next flow tries again.
#[inline(always)]
pub fn note_client(client: u64, backend: u16, now: u16) {
    affinity_note_client(client, Pair(backend, now).to_bits());
}

/// See [`note_client`]. Exported for the same reason as [`affinity_note_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn affinity_note_client(client: u64, backend_now: u32) -> u32 {
    let Some(settings) = maps::settings() else {
        return 0;
    };
    let Pair(backend, now) = Pair::from_bits(backend_now);
    let found = find(settings, client);
    if !found.is_some() {
        insert(client, backend, state::CLIENT, now);
    } else {
        replace(&found, Entry::new(found.entry.tag(), backend, state::CLIENT, now));
    }
    0
}

/// Puts a new flow, counted on its backend already, into the table.
#[inline(always)]
pub fn note(settings: &Settings, hash: u64, backend: u16, now: u16, beginning: Beginning) {
    let mut replaced = false;
    let found = find(settings, hash);
    if beginning.has_entry() && found.is_some() {
        replaced = replace(&found, Entry::new(found.entry.tag(), backend, beginning.state(), now));
    }
    if !replaced && !insert(hash, backend, beginning.state(), now) {
        // Without an entry nothing would ever end the flow.
        maps::release(backend);
    }
    maps::count_flow(backend);
}

/// The entry of a bucket that is given up most willingly: its rank, and in the lowest three bits its index.
#[inline(always)]
fn cheapest(settings: &Settings, index: u32, now: u16) -> u32 {
    let Some(bucket) = maps::bucket(index) else {
        return u32::MAX;
    };
    let mut best = u32::MAX as u64;
    let mut i = 0;
    while i < BUCKET_ENTRIES {
        let entry = bucket[i & (BUCKET_ENTRIES - 1)].load();
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
