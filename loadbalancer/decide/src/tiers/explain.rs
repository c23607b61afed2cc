//! Which tier helps, how much, and why.

use crate::standby::need::Breach;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierReport {
    pub role: Role,
    /// Part of its weight with which it is in the first tier's ring.
    pub of_weight: f64,
    /// Part of the service's new flows that are to go to it while the first tier's ring has room.
    pub share: f64,
    /// The first tier with a server in order; None: there is none.
    pub first: Option<u8>,
    /// What becomes of the help.
    pub course: Course,
    /// The quantity of the first tier that is nearest to its level, or farthest beyond it; None: nothing is known.
    pub nearest: Option<Breach>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is preferred.
    First,
    /// It gets new flows beside the first.
    Helps,
    /// It gets what the tiers above refuse.
    Waits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// The first tier is within its levels and needs no help.
    Alone,
    /// It is beyond one, but not for long enough.
    Holds,
    /// It is beyond one, and gets more help.
    Rises,
    /// It is beyond one, and all tiers help with all of their weight.
    Spent,
    /// It is within its levels with the help that it has.
    Steady,
    /// It is so much better that it gets less help.
    Falls,
    /// Too little is known: all stays as it is.
    Unknown,
}
