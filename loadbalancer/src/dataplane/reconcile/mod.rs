//! Brings the kernel's maps to what is wanted: desired state minus actual state, in the order that is safe under traffic.
//!
//! The actual state is read from the kernel at the start, so a new controller goes on where another stopped, and again for
//! every full comparison. What is written is decided by values alone (`entry`, `order`); the maps are behind `tables`.

mod order;
mod entry;
mod state;
mod found;
mod numbers;
mod paths;
mod rings;
mod change;
mod tables;
mod kernel;
mod error;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use loadbalancer_common::backend::{Backend, PATH_SLOTS};
use loadbalancer_common::path::Path;
use loadbalancer_common::ring::{RingRef, SLOTS};
use loadbalancer_common::service::{MAX_TIERS, Service};
use loadbalancer_common::settings::Settings;

use super::ids::{BackendNumber, PathNumber, ServiceNumber};
use super::load::Kernel;
use super::signals::Source;
use decide::plan::desired::Desired;

use change::Change;
use state::State;
use tables::Tables;

pub use error::ReconcileError;
pub use numbers::Numbers;

/// The kernel, and what is believed of its tables. The only writer of services, servers and what leads to them.
#[derive(Debug)]
pub struct Reconciler {
    kernel: Kernel,
    state: State,
    /// See [`Self::sources`]: they are asked for often, and change only here.
    sources: Vec<Source>,
}

impl Reconciler {
    /// Takes the kernel's state as it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn new(kernel: Kernel) -> Result<Self, ReconcileError> {
        Ok(Self { state: State::read(&kernel, kernel.sizes, rings::deal)?, kernel, sources: Vec::new() })
    }

    /// Makes the maps say what is desired. After an error, what was done so far stands, and the next call goes on.
    ///
    /// # Errors
    /// A table is full, or the kernel refuses.
    pub fn apply(&mut self, desired: &Desired) -> Result<(), ReconcileError> {
        let result = self.state.apply(desired, &mut self.kernel);
        self.sources = self.state.sources().collect();
        result
    }

    /// Reads everything anew. Gives the number of differences to what was believed, which the next [`Self::apply`] mends.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn compare(&mut self) -> Result<usize, ReconcileError> {
        Ok(self.state.compare(&mut self.kernel)?)
    }

    /// Sets from how many active flows on a backend is hot.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_hot_mark(&mut self, number: BackendNumber, hot_mark: u32) -> Result<(), ReconcileError> {
        if let Some(before) = self.backend(number).filter(|backend| backend.hot_mark != hot_mark) {
            let change = Change::Backend(number, Backend { hot_mark, ..*before });
            self.kernel.write(&change)?;
            self.state.found.note(&change);
        }
        Ok(())
    }

    /// New flows may find room in the service again.
    pub fn room(&self, service: ServiceNumber) {
        self.kernel.maps.service_state.room_epoch(service).fetch_add(1, Ordering::SeqCst);
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    pub fn settings(&self) -> &Settings {
        &self.state.found.settings
    }

    /// Which numbers services and servers have.
    pub fn numbers(&self) -> &Numbers {
        &self.state.numbers
    }

    /// Map writes until now.
    pub fn writes(&self) -> u64 {
        self.state.writes
    }

    /// The servers that a service has in the kernel.
    pub fn backends_of(&self, service: ServiceNumber) -> impl Iterator<Item = (BackendNumber, &Backend)> {
        let is_server = move |backend: &Backend| backend.service == service.0 && !backend.has(Backend::LOCAL);
        self.state.found.present().filter(move |(_, backend)| is_server(backend))
    }

    pub fn backend(&self, number: BackendNumber) -> Option<&Backend> {
        self.state.found.backends.get(usize::from(number.0))
    }

    pub fn service(&self, number: ServiceNumber) -> Option<&Service> {
        self.state.found.services.get(usize::from(number.0))
    }

    /// A path as the kernel has it.
    pub fn path(&self, number: PathNumber) -> Option<&Path> {
        self.state.paths.get(number)
    }

    /// Which of a backend's channels each of its path slots has.
    pub fn channels_of(&self, backend: BackendNumber) -> [Option<u8>; PATH_SLOTS] {
        let paths = self.backend(backend).map_or([0; PATH_SLOTS], |backend| backend.paths);
        paths.map(|path| self.path(PathNumber(path)).map(|path| path.channel))
    }

    /// How many slots each backend has in the ring of a tier.
    pub fn slots_of(&self, service: ServiceNumber, tier: u8) -> HashMap<BackendNumber, u32> {
        let mut slots = HashMap::new();
        let ring = self.service(service).map_or(0, |service| service.tiers[usize::from(tier) % MAX_TIERS]);
        if let Some(ring) = self.state.rings.number(RingRef(ring)) {
            let numbers = self.kernel.ring(ring).flat_map(bytemuck::cast::<u64, [u16; 4]>).take(SLOTS as usize);
            numbers.for_each(|number| *slots.entry(BackendNumber(number)).or_default() += 1);
        }
        slots
    }

    /// Whose passive signals there may be: every server with the channels of its paths.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Active flows of a server.
    pub fn active(&self, backend: BackendNumber) -> u32 {
        self.kernel.maps.active_flows(backend)
    }
}
