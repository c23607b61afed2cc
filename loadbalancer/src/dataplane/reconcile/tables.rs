//! The kernel's tables as the reconciler needs them. There are two: the packet path's maps, and those of the tests.

use loadbalancer_common::path::Path;

use super::super::error::MapError;
use super::super::ids::{BackendNumber, PathNumber, RingNumber};
use super::change::Change;
use super::found::Found;

pub(super) trait Tables {
    /// All that the tables hold, but paths and rings.
    fn found(&self) -> Result<Found, MapError>;

    fn path(&self, path: PathNumber) -> Result<Option<Path>, MapError>;

    /// All words of a ring's place.
    fn ring(&self, ring: RingNumber) -> impl Iterator<Item = u64>;

    /// Active flows of a server.
    fn active(&self, backend: BackendNumber) -> u32;

    fn write(&mut self, change: &Change) -> Result<(), MapError>;
}
