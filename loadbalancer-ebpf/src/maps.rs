//! The maps, and all access to them.
//!
//! Sizes here are the smallest useful ones; the controller sets the real sizes when it loads the program. References
//! that a lookup gives live as long as the program runs: the kernel frees map memory only after a grace period.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xsub};

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::affinity::Bucket;
use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::clock;
use loadbalancer_common::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};
use loadbalancer_common::outcome::{OutcomeCounters, SLOTS};
use loadbalancer_common::path::{LastHop, Path};
use loadbalancer_common::probe::Probe;
use loadbalancer_common::queue::{ClassKey, Ticket};
use loadbalancer_common::ring::RingBlock;
use loadbalancer_common::service::{Reply, Service, ServiceState, Vip, VipKey4, VipKey6};
use loadbalancer_common::settings::{Settings, program};
use loadbalancer_common::signal::{self, Observed, Signals, Who};

/// The other programs, by [`loadbalancer_common::settings::program`].
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
pub static VIPS4: HashMap<VipKey4, Vip> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
pub static VIPS6: HashMap<VipKey6, Vip> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
pub static REPLIES4: HashMap<VipKey4, Reply> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
pub static REPLIES6: HashMap<VipKey6, Reply> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: Array<Service> = Array::with_max_entries(2, 0);
#[map]
static SERVICE_STATE: Array<ServiceState> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static RINGS: Array<RingBlock> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(2, 0);
#[map]
static ACTIVE: Array<u64> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static PATHS: Array<Path> = Array::with_max_entries(2, 0);
#[map]
static AFFINITY: Array<Bucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static CONNTRACK4: LruHashMap<Tuple<Addr4>, Translation<Addr4>> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static CONNTRACK6: LruHashMap<Tuple<Addr6>, Translation<Addr6>> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<Addr4>, Fragment<Addr4>> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<Addr6>, Fragment<Addr6>> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static LAST_HOPS4: LruHashMap<Addr4, LastHop> = LruHashMap::with_max_entries(64, 0);
#[map]
pub static LAST_HOPS6: LruHashMap<Addr6, LastHop> = LruHashMap::with_max_entries(64, 0);
/// Next source port to try, per backend: ports are taken in turn, so that each rests as long as possible.
#[map]
static NAT_PORTS: Array<u64> = Array::with_max_entries(2, 0);
/// Our own probes, by source port.
#[map]
static PROBES: HashMap<u32, Probe> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
/// Memory for what is too large for the stack.
#[map]
static SCRATCH: PerCpuArray<[u64; 48]> = PerCpuArray::with_max_entries(3, 0);
#[map]
static OUTCOMES: PerCpuArray<OutcomeCounters> = PerCpuArray::with_max_entries(2, 0);
#[map]
static BACKEND_COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::with_max_entries(2, 0);

/// What goes to the controller: flows that are to wait, and that a server has room.
#[map]
static QUEUE: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Classes of waiting clients, plus one, by [`ClassKey`].
#[map]
static CLASSES: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(64, BPF_F_NO_PREALLOC);
/// When a client has last shown that it is where its packets say, in ticks.
#[map]
static VERIFIED: LruHashMap<[u32; 4], u32> = LruHashMap::with_max_entries(64, 0);

/// Watched flows, by hash.
#[map]
static OBSERVED: Array<Observed> = Array::with_max_entries(1, 0);
/// By [`signal::index`].
#[map]
static SIGNALS: Array<Signals> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Fails an insertion if the key exists.
pub const ONLY_NEW: u64 = BPF_NOEXIST as u64;

#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Continues with another program. Returns only if there is none.
#[inline(always)]
pub fn tail_call(ctx: &XdpContext, index: u32) {
    // SAFETY: the program array holds XDP programs only.
    unsafe { PROGRAMS.tail_call(ctx, index) };
}

#[inline(always)]
pub fn service(id: u16) -> Option<&'static Service> {
    SERVICES.get(id as u32)
}

#[inline(always)]
pub fn service_state(id: u16) -> Option<*mut ServiceState> {
    SERVICE_STATE.get_ptr_mut(id as u32)
}

#[inline(always)]
pub fn ring_block(index: u32) -> Option<&'static RingBlock> {
    RINGS.get(index)
}

#[inline(always)]
pub fn backend(id: u16) -> Option<&'static Backend> {
    BACKENDS.get(id as u32)
}

#[inline(always)]
pub fn path(id: u32) -> Option<&'static Path> {
    PATHS.get(id)
}

/// The probe that a port of the prober stands for.
#[inline(always)]
pub fn probe(port: u32) -> Option<&'static Probe> {
    // SAFETY: entries are replaced as a whole.
    unsafe { PROBES.get(port) }
}

#[inline(always)]
pub fn bucket(index: u32) -> Option<*mut Bucket> {
    AFFINITY.get_ptr_mut(index)
}

#[inline(always)]
pub fn observed(index: u32) -> Option<*mut Observed> {
    OBSERVED.get_ptr_mut(index)
}

#[inline(always)]
pub fn signals(who: Who) -> Option<*mut Signals> {
    SIGNALS.get_ptr_mut(signal::index(who.backend(), who.channel()))
}

/// Adds to a shared counter.
#[inline(always)]
pub fn add32(word: *mut u32, by: u32) {
    // SAFETY: the pointer is to a map value, aligned to its size.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(word, by) };
}

/// See [`add32`].
#[inline(always)]
pub fn add64(word: *mut u64, by: u64) {
    // SAFETY: the pointer is to a map value, aligned to its size.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, by) };
}

/// Coarse time in ticks.
#[inline(always)]
pub fn now() -> u32 {
    clock::ticks(coarse_ns())
}

/// Coarse time in nanoseconds, some milliseconds behind at most.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Time in nanoseconds.
#[inline(always)]
pub fn precise_ns() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts one frame.
#[inline(always)]
pub fn count(service: u16, outcome: u32) {
    if let Some(counters) = OUTCOMES.get_ptr_mut(service as u32) {
        // SAFETY: the pointer is to this CPU's own value, which nothing else writes while we run.
        unsafe {
            if let Some(counter) = (*counters).0.get_mut(outcome as usize % SLOTS) {
                *counter += 1;
            }
        }
    }
}

#[inline(always)]
pub fn count_to_server(backend: u16, bytes: u16) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend as u32) {
        // SAFETY: this CPU's own value.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes as u64;
        }
    }
}

#[inline(always)]
pub fn count_to_client(backend: u16, bytes: u16) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend as u32) {
        // SAFETY: this CPU's own value.
        unsafe {
            (*counters).reply_packets += 1;
            (*counters).reply_bytes += bytes as u64;
        }
    }
}

#[inline(always)]
pub fn count_flow(backend: u16) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend as u32) {
        // SAFETY: this CPU's own value.
        unsafe { (*counters).flows += 1 };
    }
}

/// Replaces a shared word if it is still `old`.
#[inline(always)]
pub fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the pointer is to a map value, aligned to its size.
    let (found, _) =
        unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new) };
    found == old
}

/// See [`compare_exchange`].
#[inline(always)]
pub fn compare_exchange32(word: *mut u32, old: u32, new: u32) -> bool {
    // SAFETY: the pointer is to a map value, aligned to its size.
    let (found, _) =
        unsafe { atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new) };
    found == old
}

/// Active flows of a backend.
#[inline(always)]
pub fn active(backend: u16) -> u32 {
    match ACTIVE.get(backend as u32) {
        Some(active) => saturated(*active),
        None => u32::MAX,
    }
}

/// A count that the controller's correction may have pushed below zero for a moment reads as zero.
#[inline(always)]
fn saturated(active: u64) -> u32 {
    if active as i64 <= 0 { 0 } else { active as u32 }
}

/// Counts one more active flow, if the backend stays within `limit`.
#[inline(always)]
pub fn reserve(backend: u16, limit: u32) -> bool {
    let Some(active) = ACTIVE.get_ptr_mut(backend as u32) else {
        return false;
    };
    // SAFETY: the pointer is to a map value, aligned to its size.
    unsafe {
        let before = atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(active, 1);
        if saturated(before) >= limit {
            atomic_xsub::<u64, u64, { AtomicOrdering::SeqCst }>(active, 1);
            return false;
        }
    }
    true
}

/// Counts one active flow less, and tells the service, and the controller if some wait, if the backend has room again.
#[inline(always)]
pub fn release(backend_id: u16) {
    let Some(active) = ACTIVE.get_ptr_mut(backend_id as u32) else {
        return;
    };
    // SAFETY: the pointer is to a map value, aligned to its size.
    let before = unsafe { atomic_xsub::<u64, u64, { AtomicOrdering::SeqCst }>(active, 1) };
    let Some(backend) = backend(backend_id) else {
        return;
    };
    if saturated(before) >= backend.high_water {
        room_again(backend.service as u32);
    }
}

/// Tells a service that it has room again, and wakes the controller if some flow waits; it looks for itself who has room.
/// Exported: what it needs would be on the stack of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn room_again(service: u32) -> u32 {
    let Some(state) = service_state(service as u16) else {
        return 0;
    };
    // SAFETY: the pointer is to a map value, aligned to its size.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(&raw mut (*state).room_epoch, 1);
        // Without room in the buffer the controller is awake anyway.
        if (&raw const (*state).waiting_until).read_volatile() != 0
            && QUEUE.output::<u64>(&(*state).room_epoch, 0).is_ok()
        {
            return 1;
        }
    }
    0
}

/// Memory for a record of the ring buffer; it must be submitted or discarded.
#[inline(always)]
pub fn queue_record<T: 'static>() -> Option<RingBufEntry<T>> {
    QUEUE.reserve::<T>(0)
}

/// Class of a client's address, plus one; zero: none.
#[inline(always)]
pub fn class(key: &ClassKey) -> u32 {
    let (length, data) = key.parts();
    CLASSES.get(Key::new(length, data)).copied().unwrap_or(0)
}

/// When a client has last shown that it is where its packets say, in ticks.
#[inline(always)]
pub fn verified(addr: &[u32; 4]) -> Option<u32> {
    // SAFETY: values are one word.
    unsafe { VERIFIED.get(addr) }.copied()
}

#[inline(always)]
pub fn set_verified(addr: &[u32; 4], now: u32) {
    if VERIFIED.insert(addr, now, 0).is_err() {
        // The client is challenged again.
    }
}

/// This CPU's memory for the ticket of the frame that is given back.
#[inline(always)]
pub fn ticket() -> Option<*mut Ticket> {
    SCRATCH.get_ptr_mut(2).map(|pointer| pointer.cast::<Ticket>())
}

/// This CPU's scratch memory.
#[inline(always)]
pub fn scratch<T>() -> Option<*mut T> {
    const { assert!(size_of::<T>() <= size_of::<[u64; 48]>() && align_of::<T>() <= 8) };
    SCRATCH.get_ptr_mut(0).map(|pointer| pointer.cast::<T>())
}

/// This CPU's memory for a parsed packet.
#[inline(always)]
pub fn packet<T>() -> Option<*mut T> {
    const { assert!(size_of::<T>() <= size_of::<[u64; 48]>() && align_of::<T>() <= 8) };
    SCRATCH.get_ptr_mut(1).map(|pointer| pointer.cast::<T>())
}

/// A number that no other packet gets for this backend.
#[inline(always)]
pub fn next_port_number(backend: u16) -> u64 {
    match NAT_PORTS.get_ptr_mut(backend as u32) {
        // SAFETY: the pointer is to a map value, aligned to its size.
        Some(next) => unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(next, 1) },
        None => 0,
    }
}
