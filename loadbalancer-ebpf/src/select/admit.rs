//! Which server gets a new flow: ring slot, second choice, any server with room, next tier; else overflow.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use loadbalancer_common::admission::{accepts, is_full, is_hot, less_loaded};
use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::hash;
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::ring::{BLOCK_SLOTS, RingRef, SLOT_BLOCKS, SLOTS};
use loadbalancer_common::service::{MAX_TIERS, Service};

use crate::flow::affinity;
use crate::maps;
use crate::select::choice::Choice;
use crate::select::lease;

/// Searches of a tier for one flow.
const SEARCHES: u64 = 3;

/// The server that the ring of the preferred tier names, whatever its load: for a flow that is not new but not known.
#[inline(always)]
pub fn ring_slot(service: &Service, hash: u64) -> Option<u16> {
    slot(RingRef(service.tiers[0]), hash)
}

/// Whether a new flow has to wait because others do: else it would overtake them. Asked before [`new_flow`], and not there, as
/// there is no stack left below that.
#[inline(always)]
pub fn has_to_wait(service_id: u16) -> bool {
    lease::queue_waits(service_id as u32) != 0
}

/// A server for a new flow, already counted as one more active flow there.
#[inline(always)]
pub fn new_flow(service_id: u16, hash: u64, preferred: u16) -> Choice {
    Choice::from_bits(admit_new_flow(service_id as u32, hash, preferred as u32))
}

/// See [`new_flow`]. Exported so that the verifier checks it once by itself, not anew for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_new_flow(service_id: u32, hash: u64, preferred: u32) -> u32 {
    admit(service_id as u16, hash, preferred as u16).to_bits()
}

/// A server for a flow of a client that is to stay on one server; who asks notes it with [`affinity::note_client`], as there
/// is not enough stack for that below.
#[inline(always)]
pub fn new_flow_of_client(service_id: u16, client: u64, now: u16) -> Choice {
    Choice::from_bits(admit_client_flow(client, service_id as u32, now as u32))
}

/// See [`new_flow_of_client`]. Exported for the same reason as [`admit_new_flow`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_client_flow(client: u64, service: u32, now: u32) -> u32 {
    if has_to_wait(service as u16) {
        return Choice::refused(Outcome::Full).to_bits();
    }
    let Some(settings) = maps::settings() else {
        return Choice::refused(Outcome::Internal).to_bits();
    };
    let preferred = affinity::server_of_client(settings, client, now as u16 & TIME_MASK);
    new_flow(service as u16, client, preferred).to_bits()
}

#[inline(always)]
fn admit(service_id: u16, hash: u64, preferred: u16) -> Choice {
    let Some(service) = maps::service(service_id) else {
        return Choice::refused(Outcome::NoServer);
    };
    if preferred != NO_BACKEND && take(preferred) {
        return Choice::backend(preferred);
    }
    let Some(state) = maps::service_state(service_id) else {
        return Choice::refused(Outcome::Internal);
    };
    let epoch = state.room_epoch().load();
    if state.full_epoch().load() == epoch + 1 {
        return overflow();
    }
    let mut members = 0;
    let mut tier = 0;
    while tier < MAX_TIERS {
        let ring = RingRef(service.tiers[tier]);
        if ring.members() != 0 {
            members += ring.members();
            let chosen = in_tier(ring, hash);
            if chosen != NO_BACKEND {
                return Choice::backend(chosen);
            }
        }
        tier += 1;
    }
    if members == 0 {
        return Choice::refused(Outcome::NoServer);
    }
    state.full_epoch().store(epoch + 1);
    overflow()
}

/// Every server is at its mark, or others wait already: the flow waits as well (see [`crate::select::lease`]), or is refused.
#[inline(always)]
fn overflow() -> Choice {
    Choice::refused(Outcome::Full)
}

/// Two random choices of which the cool one, or the less loaded, is taken (Mitzenmacher, "The Power of Two Choices",
/// 2001); a server with room, if both are full.
#[inline(always)]
fn in_tier(ring: RingRef, hash: u64) -> u16 {
    let Some(first) = slot(ring, hash) else {
        return NO_BACKEND;
    };
    let Some(backend) = maps::backend(first) else {
        return NO_BACKEND;
    };
    let active = maps::active(first);
    let first_open = accepts(backend) && !is_full(backend, active);
    if first_open && !is_hot(backend, active) && maps::reserve(first, backend.high_water) {
        return first;
    }
    if let Some(second) = slot(ring, hash::second(hash))
        && let Some(other) = maps::backend(second)
    {
        let other_active = maps::active(second);
        if accepts(other)
            && !is_full(other, other_active)
            && (!first_open
                || !is_hot(other, other_active)
                || !less_loaded(active, backend.weight, other_active, other.weight))
            && maps::reserve(second, other.high_water)
        {
            return second;
        }
    }
    if first_open && maps::reserve(first, backend.high_water) {
        return first;
    }
    // What was found may be taken by another CPU meanwhile; then the next one is looked for.
    let mut attempt = 0;
    while attempt < SEARCHES {
        let id = search_tier(ring.0, hash::second(hash) + attempt) as u16;
        if id == NO_BACKEND || take(id) {
            return id;
        }
        attempt += 1;
    }
    NO_BACKEND
}

/// Any server of the tier with room, from a place that the hash gives. A loop by helper (Linux 5.17): the verifier would
/// walk any other loop once per server.
#[inline(never)]
fn search_tier(ring: u64, hash: u64) -> u32 {
    // The helper takes the whole register, of which the compiler leaves the upper half as it is unless it must change the
    // lower. Backend numbers, and with them members, have 16 bits.
    let members = RingRef(ring).members() & u16::MAX as u32;
    let block = RingRef(ring).block() as u64;
    let mut search = Search((block << 32) | ((members as u64) << 16) | hash::scale(hash, members) as u64);
    // SAFETY: the callback has the helper's signature and gets the context that it expects.
    let result = unsafe { bpf_loop(members, search_step as *mut c_void, (&raw mut search).cast(), 0) };
    if result < 0 || search.0 & Search::FOUND == 0 { NO_BACKEND as u32 } else { search.0 as u16 as u32 }
}

/// Block of the ring (upper half), its members and the place to begin at (16 bits each); or what was found. One word,
/// because kernels before 6.8 round the stack of each function up to 32 bytes, and there are many below each other here.
struct Search(u64);

impl Search {
    /// The lowest bits are the number of a backend.
    const FOUND: u64 = 1 << 63;
}

/// One step of [`search_tier`]; 1 ends it.
#[inline(never)]
extern "C" fn search_step(index: u64, search: &mut Search) -> u64 {
    let word = search.0;
    let members = (word >> 16) as u16 as u32;
    let mut position = word as u16 as u32 + index as u32;
    if position >= members {
        position -= members;
    }
    let id = number((word >> 32) as u32 + SLOT_BLOCKS, position);
    if has_room(id) {
        search.0 = Search::FOUND | id as u64;
        return 1;
    }
    0
}

#[inline(always)]
fn has_room(id: u16) -> bool {
    match maps::backend(id) {
        Some(backend) => accepts(backend) && maps::active(id) < backend.high_water,
        None => false,
    }
}

/// Counts one more flow on a backend that may get it.
#[inline(always)]
fn take(id: u16) -> bool {
    match maps::backend(id) {
        Some(backend) => accepts(backend) && maps::reserve(id, backend.high_water),
        None => false,
    }
}

#[inline(always)]
fn slot(ring: RingRef, hash: u64) -> Option<u16> {
    if ring.members() == 0 {
        return None;
    }
    match number(ring.block(), hash::scale(hash, SLOTS)) {
        NO_BACKEND => None,
        id => Some(id),
    }
}

/// Backend number at a position that is counted from a block on.
#[inline(always)]
fn number(block: u32, position: u32) -> u16 {
    match maps::ring_block(block + position / BLOCK_SLOTS) {
        Some(block) => block.0[(position % BLOCK_SLOTS) as usize],
        None => NO_BACKEND,
    }
}
