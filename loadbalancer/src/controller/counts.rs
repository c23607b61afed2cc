//! Once a second: how many flows each server has, and who has too many.

use std::collections::HashMap;
use std::time::Instant;

use loadbalancer_common::backend::Backend;
use loadbalancer_common::service::mode;
use model::health::Health;
use model::ids::ServiceId;

use super::component::{Changed, Component, Shared};
use super::component::{SECOND, TICK};
use super::event::Event;
use crate::dataplane::census::{self, Census};
use crate::dataplane::ids::BackendNumber;
use crate::dataplane::reconcile::ReconcileError;
use decide::hot::{self, Load};

pub struct Counts {
    pub census: Census,
    due: Instant,
}

impl Counts {
    pub fn new(now: Instant) -> Self {
        Self { census: Census::new(SECOND, now), due: now }
    }

    /// Counts flows, and corrects the packet path's counters.
    fn count(&mut self, shared: &Shared) -> Result<(), ReconcileError> {
        let plane = &shared.plane;
        let numbers = plane.reconciler.numbers();
        let states = || shared.registry.servers().filter_map(|(id, state)| Some((plane.number(id)?, state)));
        let is_nat = |number| plane.reconciler.service(number).is_some_and(|service| service.mode == mode::NAT);
        let down = states().filter(|(_, state)| state.status.health == Some(Health::Down));
        let servers = census::Servers {
            suspect: states().filter_map(|(number, state)| Some((number, state.suspect_since?))).collect(),
            down: down.map(|(number, _)| number).collect(),
            has_nat: numbers.services().any(|(_, number)| is_nat(number)),
        };
        if self.census.count(plane.maps(), plane.reconciler.settings(), &servers, shared.now)? {
            numbers.services().for_each(|(_, number)| plane.reconciler.room(number));
        }
        Ok(())
    }
}

/// Sets from how many flows on each server is hot.
fn mark_hot(shared: &mut Shared) -> Result<(), ReconcileError> {
    let mut marks = Vec::new();
    let plane = &shared.plane;
    for (_, servers) in shared.registry.by_service() {
        let mut tiers: HashMap<(ServiceId, u8), Vec<(BackendNumber, Load)>> = HashMap::new();
        for (server, id) in servers {
            let Some((number, backend)) = plane.number(id).zip(plane.backend(id)) else { continue };
            if backend.has(Backend::ACCEPTS) {
                let load = Load { active: plane.active(id), weight: backend.weight };
                tiers.entry((id.service, server.tier)).or_default().push((number, load));
            }
        }
        for members in tiers.values() {
            let loads: Vec<Load> = members.iter().map(|(_, load)| *load).collect();
            marks.extend(members.iter().map(|(id, _)| *id).zip(hot::marks(&loads)));
        }
    }
    marks.into_iter().try_for_each(|(id, mark)| shared.plane.reconciler.set_hot_mark(id, mark))
}

impl Component for Counts {
    fn sync(&mut self, _shared: &mut Shared) {}

    fn on(&mut self, _event: &Event, _shared: &mut Shared) -> Changed {
        Changed::NOTHING
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        if shared.now < self.due {
            return Changed::NOTHING;
        }
        // A tick that comes a little early is the right one.
        self.due = shared.now + SECOND - TICK / 2;
        if let Err(error) = self.count(shared).and_then(|()| mark_hot(shared)) {
            tracing::error!(%error, "cannot count flows");
        }
        Changed::NOTHING
    }
}
