//! Admission: whether a server takes a new flow.
//!
//! A server is *hot* when its active flows per weight stand out from those of its peers; new flows then prefer another.
//! The controller turns `active / weight > theta` into a number of flows per server ([`crate::backend::Backend::hot_mark`]),
//! so the packet path compares integers.

use crate::backend::Backend;
use crate::service::Service;

/// May get new flows at all.
#[inline(always)]
pub const fn accepts(backend: &Backend) -> bool {
    backend.flags & (Backend::PRESENT | Backend::ACCEPTS | Backend::DOWN) == Backend::PRESENT | Backend::ACCEPTS
}

/// Whether live TCP flows of a backend go on.
#[inline(always)]
pub const fn keeps_flows(service: &Service, backend: &Backend) -> bool {
    backend.has(Backend::PRESENT) && !(backend.has(Backend::DOWN) && service.has(Service::RESET_ON_DOWN))
}

#[inline(always)]
pub const fn is_full(backend: &Backend, active: u32) -> bool {
    active >= backend.high_water
}

#[inline(always)]
pub const fn is_hot(backend: &Backend, active: u32) -> bool {
    active >= backend.hot_mark || is_full(backend, active)
}

/// Of two servers, whether the first has the smaller load for its weight. Ties go to the first.
#[inline(always)]
pub const fn less_loaded(active: u32, weight: u32, other_active: u32, other_weight: u32) -> bool {
    active as u64 * other_weight as u64 <= other_active as u64 * weight as u64
}
