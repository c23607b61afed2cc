//! Which numbers services and servers have in the kernel.

use std::collections::{HashMap, HashSet};

use super::super::ids::{BackendNumber, ServiceNumber};
use super::error::ReconcileError;
use super::found::Found;
use model::ids::{BackendId, ServerId, ServiceId};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    services: HashMap<ServiceId, ServiceNumber>,
    backends: HashMap<ServerId, BackendNumber>,
}

impl Numbers {
    pub(super) fn of(found: &Found) -> Self {
        let services = found.services.iter().enumerate().filter(|(_, service)| service.mode != 0);
        let services = services.map(|(number, service)| (ServiceId(service.identity), ServiceNumber(number as u16)));
        let server = |(number, backend): (BackendNumber, &loadbalancer_common::backend::Backend)| {
            let service = found.service(ServiceNumber(backend.service)).identity;
            (ServerId { service: ServiceId(service), backend: BackendId(backend.identity) }, number)
        };
        Self { services: services.collect(), backends: found.present().map(server).collect() }
    }

    /// None: it is not in the kernel.
    pub fn service(&self, id: ServiceId) -> Option<ServiceNumber> {
        self.services.get(&id).copied()
    }

    /// None: it is not in the kernel.
    pub fn backend(&self, server: ServerId) -> Option<BackendNumber> {
        self.backends.get(&server).copied()
    }

    pub fn services(&self) -> impl Iterator<Item = (ServiceId, ServiceNumber)> {
        self.services.iter().map(|(id, number)| (*id, *number))
    }

    pub fn backends(&self) -> impl Iterator<Item = (ServerId, BackendNumber)> {
        self.backends.iter().map(|(server, number)| (*server, *number))
    }

    /// A number that no service has. `capacity`: services that there may be.
    pub(super) fn free_service(&self, found: &Found, capacity: u32) -> Result<ServiceNumber, ReconcileError> {
        let is_free = |number: &ServiceNumber| {
            found.service(*number).mode == 0 && !self.services.values().any(|taken| taken == number)
        };
        let full = ReconcileError::Full { what: "another service", capacity, key: "services" };
        (1..=capacity as u16).map(ServiceNumber).find(is_free).ok_or(full)
    }

    /// A number that no server has, or has had until its flows were forgotten. `capacity`: servers that there may be.
    pub(super) fn free_backend(&self, found: &Found, capacity: u32) -> Result<BackendNumber, ReconcileError> {
        let is_free = |number: &BackendNumber| {
            found.backend(*number).identity == 0 && !self.backends.values().any(|taken| taken == number)
        };
        let full = ReconcileError::Full { what: "another server", capacity, key: "backends" };
        (1..=capacity.min(u32::from(u16::MAX)) as u16).map(BackendNumber).find(is_free).ok_or(full)
    }

    pub(super) fn insert_service(&mut self, id: ServiceId, number: ServiceNumber) {
        self.services.insert(id, number);
    }

    pub(super) fn insert_backend(&mut self, server: ServerId, number: BackendNumber) {
        self.backends.insert(server, number);
    }

    pub(super) fn remove_service(&mut self, id: ServiceId) {
        self.services.remove(&id);
    }

    pub(super) fn remove_backends(&mut self, numbers: &HashSet<BackendNumber>) {
        self.backends.retain(|_, number| !numbers.contains(number));
    }
}
