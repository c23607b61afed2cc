//! What is known of a server beside its configuration, and what follows for its share of new flows.

use model::health::Health;

use super::topology::Server;
use crate::channel::slots::Slots;
use crate::tiers::Help;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// None: not checked.
    pub health: Option<Health>,
    pub drained: bool,
    /// Weight that the operator has set.
    pub set_weight: Option<u16>,
    /// What measured quality makes of it; None: nothing was measured yet.
    pub decision: Option<WeightDecision>,
    /// Channel of each path slot; None: it has no channels.
    pub slots: Option<Slots>,
    /// All its channels are dead.
    pub cut_off: bool,
}

/// What measured quality makes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightDecision {
    /// Weight in the ring.
    pub ring: u32,
    /// Whether new flows may go to it.
    pub serves: bool,
    /// Weight by which its active flows are judged.
    pub load: u32,
    pub high_water: Option<u32>,
    /// Its share in the ring of a tier above its own.
    pub help: Option<Help>,
}

impl ServerStatus {
    /// Weight as configured, or as the operator has set it.
    pub fn nominal_weight(&self, server: &Server) -> u16 {
        if self.drained { 0 } else { self.set_weight.unwrap_or(server.weight) }
    }

    /// Whether the server gets new flows.
    pub fn serves(&self, server: &Server, reachable: bool) -> bool {
        self.health.is_none_or(Health::may_serve)
            && reachable
            && self.nominal_weight(server) > 0
            && self.decision.is_none_or(|decision| decision.serves)
    }

    /// Weight in the ring. A server that serves no more may stay in it for the moment that the next ring takes.
    pub fn ring_weight(&self, server: &Server, reachable: bool) -> u32 {
        match self.decision {
            Some(decision) => decision.ring,
            None if self.serves(server, reachable) => u32::from(self.nominal_weight(server)),
            None => 0,
        }
    }
}
