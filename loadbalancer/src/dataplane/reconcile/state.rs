//! What the reconciler believes that the kernel's tables hold.

use loadbalancer_common::backend::PATH_SLOTS;

use super::super::error::MapError;
use super::super::ids::PathNumber;
use super::super::signals::Source;
use super::super::sizes::Sizes;
use super::change::Change;
use super::found::Found;
use super::numbers::Numbers;
use super::paths::Paths;
use super::rings::{Deal, Rings};
use super::tables::Tables;

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) sizes: Sizes,
    pub(super) found: Found,
    pub(super) numbers: Numbers,
    pub(super) paths: Paths,
    pub(super) rings: Rings,
    /// Writes until now.
    pub(super) writes: u64,
}

impl State {
    /// The tables as they are: a new controller goes on where another stopped.
    pub(super) fn read(tables: &impl Tables, sizes: Sizes, deal: Deal) -> Result<Self, MapError> {
        let found = tables.found()?;
        Ok(Self {
            sizes,
            numbers: Numbers::of(&found),
            paths: Paths::of(&found, tables, sizes.paths())?,
            rings: Rings::of(&found.services, &sizes, deal),
            found,
            writes: 0,
        })
    }

    /// Writes, and believes it from then on.
    pub(super) fn write(&mut self, change: &Change, tables: &mut impl Tables) -> Result<(), MapError> {
        tables.write(change)?;
        self.found.note(change);
        self.writes += u64::from(change.is_counted());
        Ok(())
    }

    /// Reads everything anew. Gives the number of differences to what was believed. Paths are written again at once, as nothing else
    /// would be; the next [`Self::apply`] mends the rest.
    pub(super) fn compare(&mut self, tables: &mut impl Tables) -> Result<usize, MapError> {
        let found = tables.found()?;
        let mut differences = found.differences(&self.found);
        for (number, path) in self.paths.all() {
            if tables.path(number)?.as_ref() != Some(path) {
                tables.write(&Change::Path(number, *path))?;
                differences += 1;
            }
        }
        differences += self.rings.forget_damaged(|ring| tables.ring(ring));
        self.found = found;
        Ok(differences)
    }

    /// Every server with the channels of its paths.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.numbers.backends().flat_map(move |(server, backend)| {
            let paths = self.found.backend(backend).paths;
            let path = move |place: usize| self.paths.get(PathNumber(paths[place]));
            let channel = move |place: usize| {
                // Slots of the same path lie beside each other.
                let is_new = place == 0 || paths[place] != paths[place - 1];
                let path_here = is_new.then(|| path(place)).flatten()?;
                let mut before = (0..place).filter_map(path);
                before.all(|other| other.channel != path_here.channel).then_some(path_here.channel)
            };
            (0..PATH_SLOTS).filter_map(channel).map(move |channel| Source { server, backend, channel })
        })
    }
}
