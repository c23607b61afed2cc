//! Routes to all servers: what is to be resolved, and what has come of it.

use model::route::{Resolved, Route};
use tokio::sync::watch;

use super::chores::Chore;
use super::component::{Changed, Component, Shared};
use super::desired::leaving;
use super::event::Event;
use super::targets;
use crate::network::resolver::Targets;

/// Servers whose routes are logged by name when many change at once.
const MOST_LOGGED: usize = 20;

pub struct Routes {
    targets: watch::Sender<Targets>,
}

impl Routes {
    pub fn new(targets: watch::Sender<Targets>) -> Self {
        Self { targets }
    }

    /// Says what is to be resolved.
    pub fn follow(&self, shared: &Shared) {
        let mut targets = Targets::default();
        let config = shared.registry.config();
        let topology = config.topology();
        targets.routes.extend(shared.registry.members().flat_map(|(_, server, _)| topology.routes(server)));
        let leaving = leaving(&shared.registry, &shared.plane);
        targets.routes.extend(leaving.values().flatten().map(|backend| Route::from(backend.addr)));
        targets.interfaces.extend(config.gateway.interfaces.iter().map(|interface| interface.name.clone()));
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }
}

impl Component for Routes {
    fn sync(&mut self, shared: &mut Shared) {
        shared.chores.ask(policies(shared));
        self.follow(shared);
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        let Event::Resolved(resolved) = event else { return Changed::NOTHING };
        log_changes(&shared.resolved, resolved);
        let mut resolved = resolved.clone();
        for (route, hop) in &mut resolved.hops {
            // While an address is asked for again, what was known stays good.
            if matches!(hop, Err(error) if error.pending)
                && let Some(Ok(known)) = shared.resolved.hops.get(route)
            {
                *hop = Ok(known.clone());
            }
        }
        shared.resolved = resolved;
        // The kernel's routes for probes go with their interface, and come back here.
        shared.chores.ask(policies(shared));
        Changed::plan(true)
    }

    fn tick(&mut self, _shared: &mut Shared) -> Changed {
        Changed::NOTHING
    }
}

/// What binds probes to channels.
pub fn policies(shared: &Shared) -> Chore {
    let config = shared.registry.config();
    Chore::Policies { first_mark: config.gateway.channel_marks, routes: targets::policy_routes(config) }
}

/// Says which servers' routes have changed, by name only as long as a person would read them.
fn log_changes(before: &Resolved, resolved: &Resolved) {
    let (mut found, mut lost) = (0usize, 0usize);
    for (route, hop) in &resolved.hops {
        let address = route.target;
        let interface = route.via.as_ref().map(|via| via.interface.as_str());
        match (before.hops.get(route), hop) {
            (Some(Ok(before)), Ok(now)) if before == now => {}
            (Some(Err(before)), Err(now)) if before == now => {}
            (_, Err(error)) if error.pending => {}
            (_, Ok(hop)) => {
                found += 1;
                if found <= MOST_LOGGED {
                    tracing::info!(server = %address, interface, ifindex = hop.ifindex, "way found");
                }
            }
            (_, Err(error)) => {
                lost += 1;
                if lost <= MOST_LOGGED {
                    tracing::warn!(server = %address, interface, reason = %error.reason, "no way to the server");
                }
            }
        }
    }
    if found > MOST_LOGGED {
        tracing::info!(servers = found - MOST_LOGGED, "ways found to more servers");
    }
    if lost > MOST_LOGGED {
        tracing::warn!(servers = lost - MOST_LOGGED, "no way to more servers; `loadbalancer backends` lists them");
    }
}
