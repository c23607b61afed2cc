//! The one shape that all parts of the controller have.

use std::collections::HashMap;
use std::ops::BitOrAssign;
use std::time::{Duration, Instant};

use model::route::Resolved;

use super::chores::Chores;
use super::event::Event;
use super::plane::Plane;
use super::registry::Registry;
use crate::network::prober::Prober;
use decide::quality::group::Level;

/// How often components are told the time: as often as quality is to be turned into weights.
pub const TICK: Duration = Duration::from_millis(250);
/// How often flows are counted, and other things looked after.
pub const SECOND: Duration = Duration::from_secs(1);

/// What all components see, and what they tell each other by.
pub struct Shared {
    pub registry: Registry,
    pub plane: Plane,
    /// The network, as it was last told.
    pub resolved: Resolved,
    /// How the services do that may get standby servers, by name.
    pub levels: HashMap<String, Level>,
    /// Where probes through VIPs come from, and what has waited goes back by.
    pub prober: Option<Prober>,
    /// What takes time, done elsewhere.
    pub chores: Chores,
    /// When the event came that is being taken.
    pub now: Instant,
}

/// What an event has changed for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Which servers the services have: every component is brought to it.
    pub members: bool,
    /// Over which channels servers are reached, or from where: probes follow.
    pub paths: bool,
    /// What the kernel should say.
    pub plan: bool,
}

impl Changed {
    pub const NOTHING: Self = Self { members: false, paths: false, plan: false };
    pub const MEMBERS: Self = Self { members: true, paths: false, plan: true };
    pub const PATHS: Self = Self { members: false, paths: true, plan: true };

    /// Only the kernel is to be told, if at all.
    pub const fn plan(changed: bool) -> Self {
        Self { members: false, paths: false, plan: changed }
    }
}

impl BitOrAssign for Changed {
    fn bitor_assign(&mut self, other: Self) {
        self.members |= other.members;
        self.paths |= other.paths;
        self.plan |= other.plan;
    }
}

/// A part of the controller, for one concern. It owns its state, and sees others through [`Shared`] only.
pub trait Component {
    /// Brings it to the configuration, and to the servers that there are now.
    fn sync(&mut self, shared: &mut Shared);

    /// Takes what has happened.
    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed;

    /// Takes the time, every [`TICK`].
    fn tick(&mut self, shared: &mut Shared) -> Changed;
}
