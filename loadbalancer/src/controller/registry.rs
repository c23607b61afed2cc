//! Who the servers are, and what is known of each.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use loadbalancer_common::backend::Backend;
use model::health::Health;
use model::ids::{ServerId, ServiceId};
use model::route::Resolved;

use super::plane::Plane;
use crate::config::{Config, Service};
use crate::dataplane::ids::ServiceNumber;
use crate::health::{AgentStatus, ServerHealth};
use decide::plan::reachability::reachability;
use decide::plan::status::ServerStatus;
use decide::plan::topology::Server;
use decide::quality::adopt::{Found, entries};
use decide::quality::group::entry::Entry;

/// All that is known of a server.
pub struct ServerState {
    pub status: ServerStatus,
    /// None: it is not checked.
    pub health: Option<ServerHealth>,
    /// What its agent says.
    pub agent: AgentStatus,
    pub entry: Entry,
    /// As in the configuration.
    pub channels: Vec<u8>,
    /// Some route leads to it; as of the last news of channels or of the network.
    pub reachable: bool,
    /// Probes are lost on its main channel: a lost check says nothing of the server.
    pub suspect_channel: bool,
    /// It is to be checked, but not to serve.
    pub held: bool,
    /// When its health last changed, in ticks: see [`crate::dataplane::census::affinity`].
    pub suspect_since: Option<u32>,
}

pub struct Registry {
    path: PathBuf,
    /// The configuration as it is in the file.
    file: Config,
    /// The same with leased standby servers in their services.
    config: Config,
    /// Who the servers of the configuration are, in its order; to tell that takes hashing texts.
    ids: Vec<Vec<ServerId>>,
    servers: HashMap<ServerId, ServerState>,
    /// A configuration was taken already.
    begun: bool,
    /// Who was there before the last change of the configuration, and is no more.
    gone: Vec<ServerId>,
}

impl Registry {
    /// Nobody is known before [`Self::follow`].
    pub fn new(path: PathBuf, file: Config) -> Self {
        Self {
            path,
            config: file.clone(),
            file,
            ids: Vec::new(),
            servers: HashMap::new(),
            begun: false,
            gone: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> &Config {
        &self.file
    }

    pub fn set_file(&mut self, file: Config) {
        self.file = file;
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Servers of the configuration with their services.
    pub fn members(&self) -> impl Iterator<Item = (&Service, &Server, ServerId)> {
        self.by_service().flat_map(|(service, servers)| servers.map(move |(server, id)| (service, server, id)))
    }

    pub fn by_service(&self) -> impl Iterator<Item = (&Service, impl Iterator<Item = (&Server, ServerId)>)> {
        self.config
            .services
            .iter()
            .zip(&self.ids)
            .map(|(service, ids)| (service, service.servers.iter().zip(ids.iter().copied())))
    }

    pub fn server(&self, id: ServerId) -> Option<&ServerState> {
        self.servers.get(&id)
    }

    pub fn server_mut(&mut self, id: ServerId) -> Option<&mut ServerState> {
        self.servers.get_mut(&id)
    }

    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &ServerState)> {
        self.servers.iter().map(|(id, state)| (*id, state))
    }

    pub fn servers_mut(&mut self) -> impl Iterator<Item = (ServerId, &mut ServerState)> {
        self.servers.iter_mut().map(|(id, state)| (*id, state))
    }

    pub fn statuses(&self) -> HashMap<ServerId, ServerStatus> {
        self.servers.iter().map(|(id, state)| (*id, state.status.clone())).collect()
    }

    pub fn gone(&self) -> &[ServerId] {
        &self.gone
    }

    /// As operators know it; empty: it is gone.
    pub fn name_of(&self, id: ServerId) -> String {
        let found = self.members().find(|(_, _, candidate)| *candidate == id);
        found.map_or_else(String::new, |(service, server, _)| format!("{}/{}", service.name, server.name))
    }

    /// Takes the configuration to go by. `leased`: whether a server is of the standby pool, and not in full service.
    pub fn follow(&mut self, config: Config, plane: &Plane, leased: impl Fn(&str, &str) -> bool) {
        self.config = config;
        let of_service = |service: &Service| service.servers.iter().map(|it| service.server_id(it)).collect();
        self.ids = self.config.services.iter().map(of_service).collect();
        // All that are there at the beginning begin together, and need no slow start.
        let (entry, found) =
            if self.begun { (Entry::New, HashMap::new()) } else { (Entry::Known, self.found_weights(plane, leased)) };
        self.begun = true;
        let mut before = std::mem::take(&mut self.servers);
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            for (server, id) in service.servers.iter().zip(ids) {
                let mut state = before.remove(id).unwrap_or_else(|| {
                    let kernel = plane.backend(*id);
                    let entry = found.get(id).copied().or(kernel.map(|_| Entry::Known)).unwrap_or(entry);
                    ServerState::new(kernel, entry)
                });
                state.follow(service, server, plane.backend(*id));
                self.servers.insert(*id, state);
            }
        }
        self.gone = before.into_keys().collect();
    }

    /// Which servers some route leads to now.
    pub fn note_reachable(&mut self, resolved: &Resolved) {
        let topology = self.config.topology();
        for ((service, planned), ids) in self.config.services.iter().zip(&topology.services).zip(&self.ids) {
            for (server, id) in service.servers.iter().zip(ids) {
                let Some(state) = self.servers.get_mut(id) else { continue };
                let reachability = reachability(&topology, planned, server, &state.status, resolved);
                state.reachable = reachability.trouble.is_none();
            }
        }
    }

    /// How the servers that are in the kernel come in.
    fn found_weights(&self, plane: &Plane, leased: impl Fn(&str, &str) -> bool) -> HashMap<ServerId, Entry> {
        let mut result = HashMap::new();
        for (service, servers) in self.by_service() {
            let mut groups: BTreeMap<(ServiceId, u8), Vec<(ServerId, Found)>> = BTreeMap::new();
            let mut slots = HashMap::new();
            for (server, id) in servers {
                let Some(number) = plane.number(id) else { continue };
                let Some(backend) = plane.backend(id) else { continue };
                let group = (id.service, server.tier);
                let slots = slots
                    .entry(group)
                    .or_insert_with(|| plane.reconciler.slots_of(ServiceNumber(backend.service), server.tier));
                let status = ServerStatus { set_weight: set_weight(backend), ..ServerStatus::default() };
                let out = Backend::ACCEPTS | Backend::DOWN | Backend::DRAINED;
                let found = Found {
                    nominal: u32::from(status.nominal_weight(server)),
                    load: backend.weight,
                    slots: slots.get(&number).copied().unwrap_or(0),
                    has_agent: service.agent.is_some(),
                    accepts: backend.has(Backend::ACCEPTS),
                    // One that is being started does not serve either.
                    ejected: !backend.has(out) && backend.paths[0] != 0 && !leased(&service.name, &server.name),
                };
                groups.entry(group).or_default().push((id, found));
            }
            for members in groups.into_values() {
                let found: Vec<Found> = members.iter().map(|(_, found)| *found).collect();
                result.extend(members.iter().map(|(id, _)| *id).zip(entries(&found)));
            }
        }
        result
    }
}

impl ServerState {
    /// What the operator has set outlives the controller that was told so.
    fn new(kernel: Option<&Backend>, entry: Entry) -> Self {
        Self {
            status: ServerStatus {
                health: None,
                drained: kernel.is_some_and(|backend| backend.has(Backend::DRAINED)),
                set_weight: kernel.and_then(set_weight),
                ..ServerStatus::default()
            },
            health: None,
            agent: AgentStatus::default(),
            entry,
            channels: Vec::new(),
            reachable: false,
            suspect_channel: false,
            held: false,
            suspect_since: None,
        }
    }

    fn follow(&mut self, service: &Service, server: &Server, kernel: Option<&Backend>) {
        self.channels.clone_from(&server.channels);
        match &service.check {
            Some(check) => {
                match &mut self.health {
                    Some(health) => health.set_thresholds(check.thresholds),
                    none => *none = Some(ServerHealth::new(check.thresholds, Instant::now())),
                }
                // A server that was up or down for an earlier controller is so until its first check.
                if self.status.health.is_none() {
                    let down = kernel.is_some_and(|backend| backend.has(Backend::DOWN));
                    self.status.health = Some(if down { Health::Down } else { Health::Unknown });
                }
            }
            None => {
                self.health = None;
                self.status.health = None;
            }
        }
        if service.agent.is_none() {
            self.agent = AgentStatus::default();
        }
    }
}

/// Weight that the operator has set.
fn set_weight(backend: &Backend) -> Option<u16> {
    backend.set_weight.checked_sub(1).map(|weight| weight as u16)
}
