//! References to values of maps that change while they are in use.

use core::cell::UnsafeCell;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::mem::transmute_copy;
use core::ptr::NonNull;

use loadbalancer_common::conntrack::Translation;
use loadbalancer_common::path::LastHop;
use loadbalancer_common::service::ServiceState;
use loadbalancer_common::signal::{self, Observed, Pending, Signals, Who};

/// A word that other CPUs or the controller change meanwhile: read and written as a whole, and once for each call.
#[repr(transparent)]
pub struct Shared<W>(UnsafeCell<W>);

impl<W: Copy> Shared<W> {
    #[inline(always)]
    pub fn load(&self) -> W {
        // SAFETY: a word of a map's value, aligned to its size: a plain load of it is never torn.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn store(&self, value: W) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) };
    }

    /// Replaces the word if it is still `old`.
    #[inline(always)]
    pub fn compare_exchange(&self, old: W, new: W) -> bool {
        const { assert!(size_of::<W>() == 8 || size_of::<W>() == 4) };
        const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
        // SAFETY: a word of a map's value, of one of the two sizes, aligned to it.
        unsafe {
            if size_of::<W>() == 8 {
                let (old, new): (u64, u64) = (transmute_copy(&old), transmute_copy(&new));
                atomic_cxchg::<u64, ORDER, ORDER>(self.0.get().cast(), old, new).0 == old
            } else {
                let (old, new): (u32, u32) = (transmute_copy(&old), transmute_copy(&new));
                atomic_cxchg::<u32, ORDER, ORDER>(self.0.get().cast(), old, new).0 == old
            }
        }
    }
}

impl Shared<u64> {
    /// Adds, and gives what there was before.
    #[inline(always)]
    pub fn add(&self, by: u64) -> u64 {
        // SAFETY: a word of a map's value, aligned to its size.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), by) }
    }
}

impl Shared<u32> {
    /// See the one of 64 bits.
    #[inline(always)]
    pub fn add(&self, by: u32) -> u32 {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(self.0.get(), by) }
    }
}

/// A value of a map, of which words change while it is in use: the one kind of reference to what is tracked. Which words
/// change, and so have a name here, is told below.
#[repr(transparent)]
pub struct Live<T>(NonNull<T>);

impl<T> Clone for Live<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Live<T> {}

impl<T> Live<T> {
    /// `value`: from a look-up. What that gives lives until a grace period after its removal, and this program ends before.
    #[inline(always)]
    pub(super) fn of(value: *mut T) -> Option<Self> {
        NonNull::new(value).map(Self)
    }
}

/// Names the words of a value that change, with their types.
macro_rules! shared {
    ($([$($generic:ident)?] $value:ty { $($field:ident: $word:ty,)+ })+) => {
        $(impl$(<$generic>)? Live<$value> {
            $(#[inline(always)]
            pub fn $field(&self) -> &'static Shared<$word> {
                // SAFETY: a word of the value, aligned to its size, which lives as long as the value.
                unsafe {
                    let word: *mut $word = &raw mut (*self.0.as_ptr()).$field;
                    &*word.cast::<Shared<$word>>()
                }
            })+
        })+
    };
}

shared! {
    [] ServiceState {
        room_epoch: u64,
        full_epoch: u64,
        queue_until: u64,
        waiting_until: u64,
        challenge: u64,
    }
    [A] Translation<A> {
        time: u32,
        state: u32,
    }
    [] Observed {
        who: Who,
        pending: Pending,
        client_next: u32,
        request_start: u32,
        gap_start: u32,
        gap_end: u32,
        server_next: u32,
        acknowledged: u32,
        server: u32,
    }
    [] Signals {
        handshake_ns: u64,
        response_ns: u64,
        lost_syns: u32,
        refused_syns: u32,
        segments: u32,
        lost_segments: u32,
        refused_requests: u32,
        unanswered: u32,
    }
}

impl<A: 'static> Live<Translation<A>> {
    /// The whole entry. Words that change are what they were at some moment.
    #[inline(always)]
    pub fn get(&self) -> &'static Translation<A> {
        // SAFETY: the entry lives until this program ends; other CPUs change only state, time and last hop, of which the
        // last may be read half old: a reply that goes there is lost like any other packet on a link that is being changed.
        unsafe { &*self.0.as_ptr() }
    }

    /// Where the client's packets come from now.
    #[inline(always)]
    pub fn set_last_hop(&self, hop: &LastHop) {
        // SAFETY: as above.
        unsafe { (*self.0.as_ptr()).last_hop = *hop };
    }
}

impl Live<Signals> {
    #[inline(always)]
    pub fn handshakes(&self) -> &'static [Shared<u32>; signal::BUCKETS] {
        // SAFETY: words of the value, each aligned to its size.
        unsafe { &*(&raw mut (*self.0.as_ptr()).handshakes).cast() }
    }

    #[inline(always)]
    pub fn responses(&self) -> &'static [Shared<u32>; signal::BUCKETS] {
        // SAFETY: as above.
        unsafe { &*(&raw mut (*self.0.as_ptr()).responses).cast() }
    }
}
