//! What the engine is told: the services whose flows may wait, their servers, and how much room these have.

use std::sync::Arc;

use super::settings::ServiceQueue;

/// A service whose flows may wait, as it is in the kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    pub service: u16,
    pub name: String,
    pub settings: Arc<ServiceQueue>,
    /// Servers that may get new flows.
    pub servers: Vec<Candidate>,
    /// Backend that answers whom no server takes; zero: there is none.
    pub responder: u16,
    /// Whether clients that are refused are told so.
    pub tells: bool,
}

/// Settings may have many prefixes, and are mostly the very same.
impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        let rest = |plan: &Self| (plan.service, plan.responder, plan.tells);
        rest(self) == rest(other)
            && self.name == other.name
            && self.servers == other.servers
            && (Arc::ptr_eq(&self.settings, &other.settings) || self.settings == other.settings)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub backend: u16,
    pub weight: u32,
    /// Most active flows.
    pub high_water: u32,
    pub tier: u8,
}

/// Active flows of servers, which the packet path counts as well.
pub trait Room {
    fn active(&self, backend: u16) -> u32;
    /// Counts one more, if there are fewer than `high_water`.
    fn take(&self, backend: u16, high_water: u32) -> bool;
    fn give_back(&self, backend: u16);
}
