//! The kernel's side: what the maps should say, and whether they do.

use std::time::{Duration, Instant};

use loadbalancer_common::backend::Backend;
use model::ids::{ServerId, ServiceId};

use crate::dataplane::ids::{BackendNumber, ServiceNumber};
use crate::dataplane::maps::Maps;
use crate::dataplane::reconcile::{ReconcileError, Reconciler};
use decide::plan::desired::Desired;

/// How often all maps are compared with what they should say.
const COMPARE: Duration = Duration::from_secs(30);

pub struct Plane {
    pub reconciler: Reconciler,
    /// Key of the flow hash.
    pub seed: u64,
    /// Why the maps are not up to date.
    pub error: Option<String>,
    /// Differences that others have made, and that were mended.
    pub repairs: u64,
    compare_due: Instant,
}

impl Plane {
    pub fn new(reconciler: Reconciler, seed: u64, now: Instant) -> Self {
        Self { reconciler, seed, error: None, repairs: 0, compare_due: now + COMPARE }
    }

    pub fn maps(&self) -> &Maps {
        &self.reconciler.kernel().maps
    }

    pub fn service_number(&self, id: ServiceId) -> Option<ServiceNumber> {
        self.reconciler.numbers().service(id)
    }

    pub fn number(&self, id: ServerId) -> Option<BackendNumber> {
        self.reconciler.numbers().backend(id)
    }

    pub fn backend(&self, id: ServerId) -> Option<&Backend> {
        self.reconciler.backend(self.number(id)?)
    }

    /// Flows that a server has.
    pub fn active(&self, id: ServerId) -> u32 {
        self.number(id).map_or(0, |number| self.reconciler.active(number))
    }

    /// Who is in the kernel, with the number that it has there.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, BackendNumber)> {
        self.reconciler.numbers().backends()
    }

    /// Makes the kernel say what is wanted now.
    pub fn apply(&mut self, desired: &Desired) {
        let error = self.reconciler.apply(desired).err().map(|error| error.to_string());
        if let Some(error) = &error
            && self.error.as_ref() != Some(error)
        {
            tracing::error!(%error, "the kernel's maps are not up to date");
        }
        self.error = error;
    }

    /// Now and then: whether somebody else has changed the maps.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn compare(&mut self, now: Instant) -> Result<bool, ReconcileError> {
        if now < self.compare_due {
            return Ok(false);
        }
        self.compare_due = now + COMPARE;
        let differences = self.reconciler.compare()?;
        if differences > 0 {
            self.repairs += differences as u64;
            tracing::warn!(differences, "the kernel's maps were changed by someone else; they are mended");
        }
        Ok(differences > 0)
    }
}
