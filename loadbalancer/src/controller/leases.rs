//! Standby servers: what the pool is told, and what it asks for.

use std::time::Instant;

use loadbalancer_common::backend::Backend;
use model::health::Health;

use super::component::{Changed, Component, Shared};
use super::event::Event;
use super::plane::Plane;
use super::registry::Registry;
use super::standby::{self, Phase, StandbyPool};
use decide::plan::reachability::reachability;
use decide::plan::topology::Server;

pub struct Leases {
    pub pool: StandbyPool,
}

impl Leases {
    pub fn new(pool: StandbyPool) -> Self {
        Self { pool }
    }

    /// Standby servers that serve or drain in the kernel go on with that.
    pub fn adopt(&mut self, registry: &Registry, plane: &Plane, now: Instant) {
        let found = |service: &str, server: &Server| {
            let service = registry.file().services.iter().find(|candidate| candidate.name == service)?;
            let port = server.port.filter(|_| !service.mode.is_dsr());
            let backend = plane.backend(service.server_id(&Server { port, ..server.clone() }))?;
            let drains = backend.has(Backend::DRAINED);
            (drains || backend.has(Backend::ACCEPTS)).then_some(drains)
        };
        self.pool.adopt(found, now);
    }

    /// Tells the pool how its servers are, and what has come of it.
    fn observe(&mut self, shared: &Shared) -> standby::Changes {
        let mut changes = standby::Changes::default();
        let config = shared.registry.config();
        let topology = config.topology();
        for (key, service, server) in self.pool.leased() {
            let Some(service) = config.services.iter().find(|candidate| candidate.name == service) else {
                continue;
            };
            let port = server.port.filter(|_| !service.mode.is_dsr());
            let server = Server { port, ..server };
            let id = service.server_id(&server);
            let Some(state) = shared.registry.server(id) else { continue };
            let reach = reachability(&topology, &service.for_plan(), &server, &state.status, &shared.resolved);
            // Unlike a server that always was there, one that is not known yet does not serve.
            let up = state.status.health.is_none_or(|health| health == Health::Up) && reach.trouble.is_none();
            changes |= self.pool.observe(key, up, u64::from(shared.plane.active(id)), shared.now);
        }
        changes
    }

    /// How far the servers of the pool are is part of what is known of them.
    fn take(&self, changes: standby::Changes, shared: &mut Shared) -> Changed {
        if changes.members {
            return Changed::MEMBERS;
        }
        if changes.phases {
            self.note_phases(&mut shared.registry);
        }
        Changed::plan(changes.phases)
    }

    /// Marks the servers of the pool that do not serve yet, or no more.
    pub fn note_phases(&self, registry: &mut Registry) {
        let phases: Vec<_> = registry
            .members()
            .filter_map(|(service, server, id)| Some((id, self.pool.phase(&service.name, &server.name)?)))
            .collect();
        for (id, phase) in phases {
            if let Some(state) = registry.server_mut(id) {
                state.held = phase == Phase::Checking;
                state.status.drained = phase == Phase::Draining;
            }
        }
    }
}

impl Component for Leases {
    fn sync(&mut self, shared: &mut Shared) {
        self.note_phases(&mut shared.registry);
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        let Event::Hook(done) = event else { return Changed::NOTHING };
        let changes = self.pool.on_hook(done.clone(), shared.now);
        self.take(changes, shared)
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        if shared.registry.file().standby.servers.is_empty() && self.pool.leased().is_empty() {
            return Changed::NOTHING;
        }
        let mut changes = self.observe(shared);
        changes |= self.pool.step(&shared.levels, shared.now);
        self.take(changes, shared)
    }
}
