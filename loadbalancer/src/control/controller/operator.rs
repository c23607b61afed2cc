//! What an operator changes.

use std::time::Instant;

use super::super::desire;
use super::super::snapshot::Change;
use super::Controller;
use crate::config::{Config, ConfigErrors};
use crate::quality::signal::ServerKey;

impl Controller {
    /// Reads the configuration anew. A wrong one changes nothing.
    pub fn reload(&mut self) -> Result<(), String> {
        let result = self.try_reload();
        match &result {
            Ok(()) => tracing::info!(config = %self.config_path.display(), "configuration reloaded"),
            Err(error) => tracing::error!(%error, "the configuration was not reloaded; the old one stays"),
        }
        self.reload_error = result.clone().err();
        result
    }

    fn try_reload(&mut self) -> Result<(), String> {
        // Who shows it says that it is an error.
        let text = |errors: ConfigErrors| errors.to_string().trim_start_matches("error: ").to_owned();
        let new = Config::load(&self.config_path).map_err(text)?;
        let fixed = [
            ("[limits]", new.limits != self.config.limits),
            ("gateway.pin_directory", new.gateway.pin_directory != self.config.gateway.pin_directory),
            ("gateway.hash_seed", new.gateway.hash_seed.is_some_and(|seed| seed != self.seed)),
            ("[admin]", new.admin != self.config.admin),
            ("[metrics]", new.metrics != self.config.metrics),
        ];
        if let Some((key, _)) = fixed.into_iter().find(|(_, changed)| *changed) {
            return Err(format!(
                "{key} cannot change while the controller runs\nhelp: restart it, or restore the old value"
            ));
        }
        for interface in &new.gateway.interfaces {
            crate::dataplane::kernel::interface_index(&interface.name).map_err(|error| error.to_string())?;
        }
        if let Some(name) = &new.gateway.vip_interface
            && crate::dataplane::kernel::interface_index(name).is_err()
        {
            return Err(format!(
                "there is no interface {name}\nhelp: correct `vip_interface` in [gateway]; `ip link` lists them"
            ));
        }
        self.standby.follow(&new, Instant::now());
        let old = std::mem::replace(&mut self.config, self.standby.effective(&new));
        self.file = new;
        self.follow_config();
        self.forget_changed_probes(&old);
        self.attach().map_err(|error| error.to_string())?;
        self.apply();
        self.apply_error.clone().map_or(Ok(()), Err)
    }

    /// Monitors are known by their position: where it may have changed, what they told is forgotten.
    fn forget_changed_probes(&mut self, old: &Config) {
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let before = old.services.iter().find(|before| before.name == service.name);
            if before.is_some_and(|it| (&it.check, &it.monitors) != (&service.check, &service.monitors)) {
                for state in ids.iter().filter_map(|id| self.servers.get(id)) {
                    self.quality.forget_probes(ServerKey(state.check_key));
                }
            }
        }
    }

    /// Changes what the operator has set on a server.
    pub fn change(&mut self, server: &str, change: &Change) -> Result<String, String> {
        let mut found = Vec::new();
        for service in &self.config.services {
            for candidate in &service.servers {
                let full = format!("{}/{}", service.name, candidate.name);
                if full == server || candidate.name == server {
                    found.push((full, desire::server_id(service, candidate)));
                }
            }
        }
        let (name, id) = match found.as_slice() {
            [] => return Err(format!("there is no server {server}\nhelp: `loadbalancer backends` lists them")),
            [one] => one.clone(),
            many => {
                let names: Vec<&str> = many.iter().map(|(name, _)| name.as_str()).collect();
                return Err(format!("{server} may be any of {}\nhelp: give one of these names", names.join(", ")));
            }
        };
        let state = self.servers.get_mut(&id).ok_or("the server is being set up; try again")?;
        match change {
            Change::Drain => state.standing.drained = true,
            Change::Enable => {
                state.standing.drained = false;
                state.standing.set_weight = None;
            }
            Change::Weight(weight) => state.standing.set_weight = Some(*weight),
        }
        tracing::info!(server = %name, ?change, "changed by the operator");
        self.apply();
        self.apply_error.clone().map_or(Ok(name), Err)
    }
}
