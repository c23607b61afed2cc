//! How new connections of a service wait while no server may take them.

use std::time::Duration;

use super::classes::Classes;
use super::order;
use crate::quality::marks::Settings as AdaptiveMarks;

/// How new connections of a service wait while no server may take them.
///
/// What decides the class of a connection is the client's address (of all prefixes that hold it the longest), else its
/// DSCP, else its destination port. A connection of no class has the priority and the deadline of the service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceQueue {
    pub order: order::Settings,
    /// Of connections of no class: 0 to 4, for priorities 1 (most urgent) to 5.
    pub ring: u8,
    /// How long connections of no class wait at most.
    pub deadline: Duration,
    pub at_deadline: AtDeadline,
    /// Lengths of the IPv4 and of the IPv6 prefix that count as one source.
    pub source_prefix: (u8, u8),
    pub verify: Verify,
    /// Most bytes of waiting datagrams; zero: datagrams do not wait.
    pub udp_memory: u64,
    pub marks: Marks,
    /// There with [`AtDeadline::Respond`] only.
    pub responder: Option<Responder>,
    pub classes: Classes,
}

impl Default for ServiceQueue {
    fn default() -> Self {
        Self {
            order: order::Settings::default(),
            ring: 2,
            deadline: Duration::from_secs(10),
            at_deadline: AtDeadline::default(),
            source_prefix: (24, 56),
            verify: Verify::default(),
            udp_memory: 0,
            marks: Marks::default(),
            responder: None,
            classes: Classes::default(),
        }
    }
}

impl ServiceQueue {
    /// Class, ring and deadline of a connection with this DSCP and destination port. `by_prefix` is the position in
    /// `classes` of the one that the client's address leads to.
    ///
    /// Zero is no class, and a larger number stands for the class at the position below it.
    pub fn class_of(&self, by_prefix: Option<u16>, dscp: u8, port: u16) -> (u16, u8, Duration) {
        match self.classes.find(by_prefix, dscp, port) {
            Some((number, class)) => (number, class.ring, class.deadline),
            None => (0, self.ring, self.deadline),
        }
    }
}

/// How a client learns that it has waited for too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtDeadline {
    #[default]
    Reset,
    Drop,
    /// With an HTTP response, see [`Responder`].
    Respond,
}

/// Whether clients must show that they are at their address before they are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    #[default]
    Auto,
    Always,
    Never,
}

/// Where the most active flows of a server come from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Marks {
    /// From `high_water` and from agents.
    #[default]
    Static,
    Adaptive(AdaptiveMarks),
}

impl Marks {
    /// None: they do not follow latency.
    pub const fn adaptive(&self) -> Option<AdaptiveMarks> {
        match self {
            Self::Static => None,
            Self::Adaptive(settings) => Some(*settings),
        }
    }
}

/// What clients get for an answer at the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responder {
    /// When they are told to try again.
    pub retry_after: Duration,
    /// Body of the response; none: a plain one.
    pub page: Option<Vec<u8>>,
}
