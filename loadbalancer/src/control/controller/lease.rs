//! Standby servers: what the pool is told, and what it asks for.

use std::collections::HashMap;
use std::time::Instant;

use loadbalancer_common::backend::Backend;

use super::super::desire;
use super::super::standby::{self, HookDone, Phase};
use super::Controller;
use crate::health::Health;

impl Controller {
    /// Standby servers that serve or drain in the kernel go on with that.
    pub(super) fn adopt_standby(&mut self, now: Instant) {
        let (file, reconciler) = (&self.file, &self.reconciler);
        let found = |service: &str, server: &crate::config::Server| {
            let service = file.services.iter().find(|candidate| candidate.name == service)?;
            let port = server.port.filter(|_| !service.mode.is_dsr());
            let id = desire::server_id(service, &crate::config::Server { port, ..server.clone() });
            let backend = reconciler.backend(*reconciler.numbers.backends.get(&(id.service, id.backend))?)?;
            let drains = backend.has(Backend::DRAINED);
            (drains || backend.has(Backend::ACCEPTS)).then_some(drains)
        };
        self.standby.adopt(found, now);
    }

    /// What a hook came to.
    pub fn on_hook(&mut self, done: HookDone) {
        let changes = self.standby.on_hook(done, Instant::now());
        self.take_standby_changes(changes);
    }

    /// Tells the pool how its servers and the services are, and does what it asks for.
    pub(super) fn step_standby(&mut self) {
        if self.file.standby.servers.is_empty() && self.standby.leased().is_empty() {
            return;
        }
        let now = Instant::now();
        let mut changes = standby::Changes::default();
        for (key, service, server) in self.standby.leased() {
            let Some(service) = self.config.services.iter().find(|candidate| candidate.name == service) else {
                continue;
            };
            let port = server.port.filter(|_| !service.mode.is_dsr());
            let server = crate::config::Server { port, ..server };
            let id = desire::server_id(service, &server);
            let Some(state) = self.servers.get(&id) else { continue };
            let reach = desire::reach(&self.config, service, &server, &state.standing, &self.resolved);
            // Unlike a server that always was there, one that is not known yet does not serve.
            let up = state.standing.health.is_none_or(|health| health == Health::Up) && reach.trouble.is_none();
            let number = self.reconciler.numbers.backends.get(&(id.service, id.backend));
            let flows = number.map_or(0, |number| u64::from(self.reconciler.active(*number)));
            let one = self.standby.observe(key, up, flows, now);
            changes.members |= one.members;
            changes.phases |= one.phases;
        }
        let mut levels = HashMap::new();
        for service in self.file.services.iter().filter(|service| service.standby.is_some()) {
            let identities: Vec<u64> =
                desire::parts(service).into_iter().map(|part| desire::service_identity(service, part)).collect();
            levels.insert(service.name.clone(), self.quality.level(&identities));
        }
        let one = self.standby.step(&levels, now);
        changes.members |= one.members;
        changes.phases |= one.phases;
        self.take_standby_changes(changes);
    }

    pub(super) fn take_standby_changes(&mut self, changes: standby::Changes) {
        if changes.members {
            self.config = self.standby.effective(&self.file);
            self.follow_config();
        }
        if changes.phases || changes.members {
            for service in &self.config.services {
                for server in &service.servers {
                    let Some(phase) = self.standby.phase(&service.name, &server.name) else { continue };
                    if let Some(state) = self.servers.get_mut(&desire::server_id(service, server)) {
                        state.held = phase == Phase::Checking;
                        state.standing.drained = phase == Phase::Draining;
                    }
                }
            }
            self.apply();
        }
    }
}
