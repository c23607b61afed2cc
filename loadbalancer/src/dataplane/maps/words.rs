//! Single words of values that the packet path changes as well, by name.

use std::sync::atomic::{AtomicU64, Ordering};

use loadbalancer_common::service::ServiceState;

use super::super::ids::{BackendNumber, ServiceNumber};
use super::handles::Maps;
use super::mapped::Mapped;

impl Mapped<ServiceState> {
    /// See [`ServiceState::room_epoch`].
    pub fn room_epoch(&self, service: ServiceNumber) -> &AtomicU64 {
        self.word(service, ServiceState::ROOM_EPOCH)
    }

    /// See [`ServiceState::queue_until`].
    pub fn queue_until(&self, service: ServiceNumber) -> &AtomicU64 {
        self.word(service, ServiceState::QUEUE_UNTIL)
    }

    /// See [`ServiceState::waiting_until`].
    pub fn waiting_until(&self, service: ServiceNumber) -> &AtomicU64 {
        self.word(service, ServiceState::WAITING_UNTIL)
    }

    /// See [`ServiceState::challenge`].
    pub fn challenge(&self, service: ServiceNumber) -> &AtomicU64 {
        self.word(service, ServiceState::CHALLENGE)
    }

    fn word(&self, service: ServiceNumber, word: usize) -> &AtomicU64 {
        &self.value(usize::from(service.0))[word]
    }
}

impl Maps {
    /// The packet path's counter of a server's active flows. As both sides correct it, it may be below zero for a moment.
    pub fn active_counter(&self, backend: BackendNumber) -> &AtomicU64 {
        &self.active.words()[usize::from(backend.0)]
    }

    /// Active flows of a server.
    pub fn active_flows(&self, backend: BackendNumber) -> u32 {
        let active = self.active_counter(backend).load(Ordering::SeqCst) as i64;
        active.clamp(0, i64::from(u32::MAX)) as u32
    }
}
