//! What a new controller takes over of the weights that it finds.

use std::collections::{BTreeMap, HashMap};

use loadbalancer_common::backend::Backend;

use super::super::desire::{self, ServerId, Standing};
use super::Controller;
use crate::quality::adopt::{Found, entries};
use crate::quality::group::Entry;

impl Controller {
    /// How the servers that are in the kernel come in.
    pub(super) fn found_weights(&self) -> HashMap<ServerId, Entry> {
        let mut result = HashMap::new();
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let mut groups: BTreeMap<(u64, u8), Vec<(ServerId, Found)>> = BTreeMap::new();
            let mut slots = HashMap::new();
            for (server, id) in service.servers.iter().zip(ids) {
                let Some(number) = self.reconciler.numbers.backends.get(&(id.service, id.backend)) else { continue };
                let Some(backend) = self.reconciler.backend(*number) else { continue };
                let group = (id.service, server.tier);
                let slots =
                    slots.entry(group).or_insert_with(|| self.reconciler.slots_of(backend.service, server.tier));
                let standing = Standing { set_weight: set_weight(backend), ..Standing::default() };
                let out = Backend::ACCEPTS | Backend::DOWN | Backend::DRAINED;
                let found = Found {
                    nominal: u32::from(desire::nominal_weight(server, &standing)),
                    load: backend.weight,
                    slots: slots.get(number).copied().unwrap_or(0),
                    has_agent: service.agent.is_some(),
                    accepts: backend.has(Backend::ACCEPTS),
                    // One that is being started does not serve either.
                    ejected: !backend.has(out)
                        && backend.paths[0] != 0
                        && self.standby.phase(&service.name, &server.name).is_none(),
                };
                groups.entry(group).or_default().push((*id, found));
            }
            for members in groups.into_values() {
                let found: Vec<Found> = members.iter().map(|(_, found)| *found).collect();
                result.extend(members.iter().map(|(id, _)| *id).zip(entries(&found)));
            }
        }
        result
    }
}

/// Weight that the operator has set.
pub(super) fn set_weight(backend: &Backend) -> Option<u16> {
    backend.set_weight.checked_sub(1).map(|weight| weight as u16)
}
