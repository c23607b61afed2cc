//! The maps, and all access to them.
//!
//! Sizes here are the smallest useful ones; the controller sets the real sizes when it loads the program. References
//! that a lookup gives live as long as the program runs: the kernel frees map memory only after a grace period.

use core::cell::Cell;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use loadbalancer_common::affinity::{BUCKET_ENTRIES, Bucket, Entry};
use loadbalancer_common::backend::{Backend, BackendCounters};
use loadbalancer_common::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};
use loadbalancer_common::outcome::{OutcomeCounters, SLOTS};
use loadbalancer_common::path::{LastHop, Path};
use loadbalancer_common::probe::Probe;
use loadbalancer_common::queue::{ClassKey, HasRoom, Held, Ticket};
use loadbalancer_common::ring::RingBlock;
use loadbalancer_common::service::{Reply, Service, ServiceState, Vip, VipKey};
use loadbalancer_common::settings::{Settings, program};
use loadbalancer_common::signal::{self, Observed, Signals, Who};

mod live;

pub use live::{Live, Shared};

/// The other programs, by [`loadbalancer_common::settings::program`].
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static VIPS4: HashMap<VipKey<Addr4>, Vip> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
static VIPS6: HashMap<VipKey<Addr6>, Vip> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
static REPLIES4: HashMap<VipKey<Addr4>, Reply> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
static REPLIES6: HashMap<VipKey<Addr6>, Reply> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
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
static CONNTRACK4: LruHashMap<Tuple<Addr4>, Translation<Addr4>> = LruHashMap::with_max_entries(64, 0);
#[map]
static CONNTRACK6: LruHashMap<Tuple<Addr6>, Translation<Addr6>> = LruHashMap::with_max_entries(64, 0);
#[map]
static FRAGMENTS4: LruHashMap<FragmentKey<Addr4>, Fragment<Addr4>> = LruHashMap::with_max_entries(64, 0);
#[map]
static FRAGMENTS6: LruHashMap<FragmentKey<Addr6>, Fragment<Addr6>> = LruHashMap::with_max_entries(64, 0);
#[map]
static LAST_HOPS4: LruHashMap<Addr4, LastHop> = LruHashMap::with_max_entries(64, 0);
#[map]
static LAST_HOPS6: LruHashMap<Addr6, LastHop> = LruHashMap::with_max_entries(64, 0);
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

/// Sampled flows, by hash.
#[map]
static OBSERVED: Array<Observed> = Array::with_max_entries(1, 0);
/// By [`signal::index`].
#[map]
static SIGNALS: Array<Signals> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The maps of a family, by the type of its addresses.
pub trait Tables: Copy + PartialEq + 'static {
    fn vips() -> &'static HashMap<VipKey<Self>, Vip>;
    fn replies() -> &'static HashMap<VipKey<Self>, Reply>;
    fn conntrack() -> &'static LruHashMap<Tuple<Self>, Translation<Self>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment<Self>>;
    fn last_hops() -> &'static LruHashMap<Self, LastHop>;
}

macro_rules! tables {
    ($($addr:ty: $vips:ident, $replies:ident, $conntrack:ident, $fragments:ident, $last_hops:ident;)+) => {
        $(impl Tables for $addr {
            #[inline(always)]
            fn vips() -> &'static HashMap<VipKey<Self>, Vip> {
                &$vips
            }

            #[inline(always)]
            fn replies() -> &'static HashMap<VipKey<Self>, Reply> {
                &$replies
            }

            #[inline(always)]
            fn conntrack() -> &'static LruHashMap<Tuple<Self>, Translation<Self>> {
                &$conntrack
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment<Self>> {
                &$fragments
            }

            #[inline(always)]
            fn last_hops() -> &'static LruHashMap<Self, LastHop> {
                &$last_hops
            }
        })+
    };
}

tables! {
    Addr4: VIPS4, REPLIES4, CONNTRACK4, FRAGMENTS4, LAST_HOPS4;
    Addr6: VIPS6, REPLIES6, CONNTRACK6, FRAGMENTS6, LAST_HOPS6;
}

#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Continues with another program. Returns only if there is none.
#[inline(always)]
pub fn tail_call(ctx: &impl EbpfContext, index: u32) {
    // SAFETY: the program array holds XDP programs only.
    unsafe { PROGRAMS.tail_call(ctx, index) };
}

#[inline(always)]
pub fn vip<A: Tables>(key: &VipKey<A>) -> Option<&'static Vip> {
    // SAFETY: values of this map are replaced as a whole, and one word long.
    unsafe { A::vips().get(key) }
}

#[inline(always)]
pub fn reply<A: Tables>(key: &VipKey<A>) -> Option<&'static Reply> {
    // SAFETY: entries are never changed, only added and removed.
    unsafe { A::replies().get(key) }
}

/// The entry of a flow of `nat`.
#[inline(always)]
pub fn flow<A: Tables>(key: &Tuple<A>) -> Option<Live<Translation<A>>> {
    A::conntrack().get_ptr_mut(key).and_then(Live::of)
}

/// Adds the entry, or replaces what is there.
#[inline(always)]
pub fn insert_flow<A: Tables>(key: &Tuple<A>, value: &Translation<A>) -> bool {
    A::conntrack().insert(key, value, 0).is_ok()
}

/// Adds the entry, if there is none with this key.
#[inline(always)]
pub fn insert_new_flow<A: Tables>(key: &Tuple<A>, value: &Translation<A>) -> bool {
    A::conntrack().insert(key, value, BPF_NOEXIST as u64).is_ok()
}

#[inline(always)]
pub fn remove_flow<A: Tables>(key: &Tuple<A>) {
    if A::conntrack().remove(key).is_err() {
        // Already gone: the kernel evicted it.
    }
}

#[inline(always)]
pub fn fragment<A: Tables>(key: &FragmentKey<A>) -> Option<&'static Fragment<A>> {
    // SAFETY: entries are replaced as a whole.
    unsafe { A::fragments().get(key) }
}

#[inline(always)]
pub fn insert_fragment<A: Tables>(key: &FragmentKey<A>, value: &Fragment<A>) -> bool {
    A::fragments().insert(key, value, 0).is_ok()
}

#[inline(always)]
pub fn last_hop<A: Tables>(client: &A) -> Option<&'static LastHop> {
    // SAFETY: entries are replaced as a whole.
    unsafe { A::last_hops().get(client) }
}

#[inline(always)]
pub fn insert_last_hop<A: Tables>(client: &A, hop: &LastHop) {
    if A::last_hops().insert(client, hop, 0).is_err() {
        // The next packet of the client tries again.
    }
}

#[inline(always)]
pub fn service(id: u16) -> Option<&'static Service> {
    SERVICES.get(id as u32)
}

#[inline(always)]
pub fn service_state(id: u16) -> Option<Live<ServiceState>> {
    SERVICE_STATE.get_ptr_mut(id as u32).and_then(Live::of)
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

/// A bucket of the affinity table.
#[inline(always)]
pub fn bucket(index: u32) -> Option<&'static [Shared<Entry>; BUCKET_ENTRIES]> {
    const { assert!(size_of::<Bucket>() == size_of::<[Shared<Entry>; BUCKET_ENTRIES]>()) };
    // SAFETY: a bucket is so many words, and values of this map are never removed.
    AFFINITY.get_ptr_mut(index).map(|bucket| unsafe { &*bucket.cast() })
}

#[inline(always)]
pub fn observed(index: u32) -> Option<Live<Observed>> {
    OBSERVED.get_ptr_mut(index).and_then(Live::of)
}

#[inline(always)]
pub fn signals(who: Who) -> Option<Live<Signals>> {
    SIGNALS.get_ptr_mut(signal::index(who.backend(), who.channel())).and_then(Live::of)
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
    change_counters(backend, |counters| {
        counters.packets += 1;
        counters.bytes += bytes as u64;
    });
}

#[inline(always)]
pub fn count_to_client(backend: u16, bytes: u16) {
    change_counters(backend, |counters| {
        counters.reply_packets += 1;
        counters.reply_bytes += bytes as u64;
    });
}

#[inline(always)]
pub fn count_flow(backend: u16) {
    change_counters(backend, |counters| counters.flows += 1);
}

#[inline(always)]
fn change_counters(backend: u16, change: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(backend as u32) {
        // SAFETY: this CPU's own value, which nothing else writes while we run.
        change(unsafe { &mut *counters });
    }
}

/// The count of a backend's active flows.
#[inline(always)]
fn active_count(backend: u16) -> Option<&'static Shared<u64>> {
    // SAFETY: values of this map are one word, and never removed.
    ACTIVE.get_ptr_mut(backend as u32).map(|count| unsafe { &*count.cast() })
}

/// Active flows of a backend.
#[inline(always)]
pub fn active(backend: u16) -> u32 {
    active_count(backend).map_or(u32::MAX, |active| saturated(active.load()))
}

/// A count that the controller's correction may have pushed below zero for a moment reads as zero.
#[inline(always)]
fn saturated(active: u64) -> u32 {
    if active as i64 <= 0 { 0 } else { active as u32 }
}

/// Counts one more active flow, if the backend stays within `limit`.
#[inline(always)]
pub fn reserve(backend: u16, limit: u32) -> bool {
    let Some(active) = active_count(backend) else {
        return false;
    };
    if saturated(active.add(1)) >= limit {
        active.add(1u64.wrapping_neg());
        return false;
    }
    true
}

/// Counts one active flow less, and tells the service, and the controller if some wait, if the backend has room again.
#[inline(always)]
pub fn release(backend_id: u16) {
    let Some(active) = active_count(backend_id) else {
        return;
    };
    let before = active.add(1u64.wrapping_neg());
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
    state.room_epoch().add(1);
    // Without room in the buffer the controller is awake anyway.
    (state.waiting_until().load() != 0 && QUEUE.output::<HasRoom>(&HasRoom::new(service as u16), 0).is_ok()) as u32
}

/// Hands a record over to the controller. False: the buffer has no room.
#[inline(always)]
pub fn hand_over(held: &Held) -> bool {
    match QUEUE.reserve::<Held>(0) {
        Some(mut entry) => {
            entry.write(*held);
            entry.submit(0);
            true
        }
        None => false,
    }
}

/// A record and the frame that is to wait.
#[repr(C)]
struct HeldFrame<const N: usize> {
    held: Held,
    frame: [u8; N],
}

/// The same with a frame, which `copy` puts behind the record.
#[inline(always)]
pub fn hand_over_frame<const N: usize>(held: &Held, copy: impl FnOnce(&mut [u8; N]) -> bool) -> bool {
    let Some(mut entry) = QUEUE.reserve::<HeldFrame<N>>(0) else {
        return false;
    };
    // SAFETY: memory of the ring buffer, which has some value everywhere, and of which every value is valid.
    let record = unsafe { entry.assume_init_mut() };
    record.held = *held;
    let copied = copy(&mut record.frame);
    if copied {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    copied
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
pub fn ticket() -> Option<&'static Cell<Ticket>> {
    own_memory::<Cell<Ticket>>(2)
        // SAFETY: this CPU's own, which has some value everywhere, and of which every value is valid.
        .map(|ticket| unsafe { &*ticket })
}

/// This CPU's scratch memory, for what is too large for the stack.
///
/// # Safety
/// No other reference into it is used any more.
#[inline(always)]
pub unsafe fn scratch<T: Copy>() -> Option<&'static mut T> {
    // SAFETY: this CPU's own, and that nothing else refers to it is what the caller promises.
    own_memory::<T>(0).map(|scratch| unsafe { &mut *scratch })
}

/// This CPU's memory for a parsed packet.
///
/// # Safety
/// As for [`scratch`].
#[inline(always)]
pub unsafe fn packet<T: Copy>() -> Option<&'static mut T> {
    // SAFETY: as above.
    own_memory::<T>(1).map(|packet| unsafe { &mut *packet })
}

#[inline(always)]
fn own_memory<T>(index: u32) -> Option<*mut T> {
    const { assert!(size_of::<T>() <= size_of::<[u64; 48]>() && align_of::<T>() <= 8) };
    SCRATCH.get_ptr_mut(index).map(|memory| memory.cast())
}

/// A number that no other packet gets for this backend.
#[inline(always)]
pub fn next_port_number(backend: u16) -> u64 {
    // SAFETY: values of this map are one word, and never removed.
    let next: Option<&Shared<u64>> = NAT_PORTS.get_ptr_mut(backend as u32).map(|next| unsafe { &*next.cast() });
    next.map_or(0, |next| next.add(1))
}
