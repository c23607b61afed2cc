//! One service that draws on the pool: how it does, and since when.

use std::time::Duration;

use super::need::Breach;
use super::settings::ServiceSettings;
use crate::quality::group::Level;

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) settings: ServiceSettings,
    pub(super) level: Level,
    pub(super) breach: Option<Breach>,
    pub(super) breach_since: Option<Duration>,
    pub(super) recovered_since: Option<Duration>,
    /// When a server last began to serve, or was given back.
    pub(super) changed: Option<Duration>,
    pub(super) gave_back: Option<Duration>,
    pub(super) relapses: u32,
    /// It is in need, and no server is free.
    pub(super) waits: bool,
}

impl Service {
    pub(super) fn new(settings: ServiceSettings) -> Self {
        Self {
            settings,
            // Nothing is known, and nothing wrong.
            level: Level { weight: 1, ..Level::default() },
            breach: None,
            breach_since: None,
            recovered_since: None,
            changed: None,
            gave_back: None,
            relapses: 0,
            waits: false,
        }
    }

    pub(super) fn recovery_for(&self) -> Duration {
        let doubled = self.settings.recovery_for.saturating_mul(1 << self.relapses.min(16));
        doubled.min(self.settings.recovery_most.max(self.settings.recovery_for))
    }
}
