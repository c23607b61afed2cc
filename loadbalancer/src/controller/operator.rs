//! What an operator asks, and changes.

use std::time::Instant;

use super::chores::Chore;
use super::component::Changed;
use super::dispatch::Controller;
use super::event::{Change, Event, Request};
use super::report::add_queues;
use crate::config::{Config, ConfigErrors};
use crate::network::interface;

impl Controller {
    /// Takes an event. What has changed is to be settled then, with what other events have changed.
    pub(super) fn take(&mut self, event: Event) -> Changed {
        match event {
            Event::Request(request) => {
                self.answer(request);
                Changed::NOTHING
            }
            Event::Reload => {
                // The error is logged, and shown by `status`.
                drop(self.reload());
                Changed::NOTHING
            }
            event => self.tell(&event),
        }
    }

    /// Answers. Whoever asked may have gone meanwhile; then nobody misses the answer.
    fn answer(&mut self, request: Request) {
        let now = Instant::now();
        self.shared.now = now;
        match request {
            Request::Gateway(reply) => match self.gateway_status() {
                Ok(mut status) => self.queue.report(move |queue| {
                    add_queues(&mut status, &queue.report);
                    drop(reply.send(status));
                }),
                Err(error) => tracing::error!(%error, "cannot read the counters"),
            },
            Request::Quality(reply) => drop(reply.send(self.quality_status())),
            Request::Channels(reply) => drop(reply.send(self.channels_status())),
            Request::Standby(reply) => drop(reply.send(self.leases.pool.status(now))),
            Request::Queue(reply) => self.queue.report(|queue| drop(reply.send(queue))),
            Request::Change(server, change, reply) => drop(reply.send(self.change(&server, change))),
            Request::Reload(reply) => drop(reply.send(self.reload())),
        }
    }

    /// Reads the configuration anew. A wrong one changes nothing.
    fn reload(&mut self) -> Result<(), String> {
        let result = self.try_reload();
        match &result {
            Ok(()) => tracing::info!(config = %self.shared.registry.path().display(), "configuration reloaded"),
            Err(error) => tracing::error!(%error, "the configuration was not reloaded; the old one stays"),
        }
        self.reload_error = result.clone().err();
        result
    }

    fn try_reload(&mut self) -> Result<(), String> {
        // Who shows it says that it is an error.
        let text = |errors: ConfigErrors| errors.to_string().trim_start_matches("error: ").to_owned();
        let new = Config::load(self.shared.registry.path()).map_err(text)?;
        self.reject_fixed(&new)?;
        for interface in &new.gateway.interfaces {
            interface::index(&interface.name).map_err(|error| error.to_string())?;
        }
        if let Some(name) = &new.gateway.vip_interface
            && interface::index(name).is_err()
        {
            return Err(format!(
                "there is no interface {name}\nhelp: correct `vip_interface` in [gateway]; `ip link` lists them"
            ));
        }
        self.shared.now = Instant::now();
        self.leases.pool.follow(&new, self.shared.now);
        self.shared.registry.set_file(new);
        self.settle(Changed::MEMBERS);
        self.shared.chores.ask(self.vips());
        match self.interfaces.error() {
            Some(error) => Err(error.clone()),
            None => self.shared.plane.error.clone().map_or(Ok(()), Err),
        }
    }

    /// Some keys cannot change while the controller runs.
    fn reject_fixed(&self, new: &Config) -> Result<(), String> {
        let old = self.shared.registry.config();
        let fixed = [
            ("[limits]", new.limits != old.limits),
            ("gateway.pin_directory", new.gateway.pin_directory != old.gateway.pin_directory),
            ("gateway.hash_seed", new.gateway.hash_seed.is_some_and(|seed| seed != self.shared.plane.seed)),
            ("[admin]", new.admin != old.admin),
            ("[metrics]", new.metrics != old.metrics),
        ];
        match fixed.into_iter().find(|(_, changed)| *changed) {
            Some((key, _)) => Err(format!(
                "{key} cannot change while the controller runs\nhelp: restart it, or restore the old value"
            )),
            None => Ok(()),
        }
    }

    /// The VIPs of all services, for the interface that gets them.
    pub(super) fn vips(&self) -> Chore {
        let config = self.shared.registry.config();
        Chore::Vips { interface: config.gateway.vip_interface.clone(), vips: config.vips() }
    }

    /// Changes what the operator has set on a server.
    fn change(&mut self, server: &str, change: Change) -> Result<String, String> {
        let registry = &mut self.shared.registry;
        let named = registry.members().map(|(service, it, id)| (format!("{}/{}", service.name, it.name), &it.name, id));
        let found: Vec<_> =
            named.filter(|(full, name, _)| full == server || *name == server).map(|(full, _, id)| (full, id)).collect();
        let (name, id) = match found.as_slice() {
            [] => return Err(format!("there is no server {server}\nhelp: `loadbalancer backends` lists them")),
            [one] => one.clone(),
            many => {
                let names: Vec<&str> = many.iter().map(|(name, _)| name.as_str()).collect();
                return Err(format!("{server} may be any of {}\nhelp: give one of these names", names.join(", ")));
            }
        };
        let state = registry.server_mut(id).ok_or("the server is being set up; try again")?;
        match change {
            Change::Drain => state.status.drained = true,
            Change::Enable => {
                state.status.drained = false;
                state.status.set_weight = None;
            }
            Change::Weight(weight) => state.status.set_weight = Some(weight),
        }
        tracing::info!(server = %name, ?change, "changed by the operator");
        self.settle(Changed::plan(true));
        self.shared.plane.error.clone().map_or(Ok(name), Err)
    }
}
