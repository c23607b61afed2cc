//! Why a channel has the slots that it has.

use std::fmt;
use std::time::Duration;

use super::slots::Slots;
use crate::quality::signal::ChannelKey;

/// The channels of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelsReport {
    /// Some channel is not dead.
    pub reachable: bool,
    pub slots: Slots,
    pub channels: Vec<ChannelReport>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ChannelReport {
    pub channel: ChannelKey,
    pub capacity: u32,
    pub state: State,
    pub link_up: bool,
    pub srtt: Option<Duration>,
    pub rttvar: Option<Duration>,
    /// Share of probes and traffic in the window that was lost.
    pub loss: f64,
    /// The loss that counts.
    pub sure_loss: f64,
    pub score: Option<Duration>,
    /// Share of the flows that would be right.
    pub share: f64,
    /// Path slots of 8 that it has.
    pub slots: usize,
    /// Deaths that count for the number of good probes that the next one asks for.
    pub deaths: u32,
    pub last_change: Option<SlotChange>,
    /// One moment for each of the last 60 seconds, the newest last.
    pub history: Vec<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing was measured yet.
    Unknown,
    Good,
    /// Nothing came for a while: slots are frozen.
    Stale,
    Dead {
        cause: Death,
        since: Duration,
        /// On end, up to now.
        good_probes: u32,
    },
}

/// Why a channel is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    ProbesMissed,
    LinkDown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProbesMissed => "probes are lost",
            Self::LinkDown => "interface or next hop gone",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotChange {
    pub at: Duration,
    pub from: usize,
    pub to: usize,
    pub reason: Reason,
}

/// Why a channel's number of slots changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Channels or their capacities were changed.
    Configured,
    Died(Death),
    PeerDied,
    /// It loses more than others.
    Loses {
        loss: f64,
    },
    /// Its score is worse than that of others, or theirs got better.
    Worse {
        score: Duration,
    },
    Better {
        score: Duration,
    },
}

/// How it was in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    pub at: Duration,
    pub srtt: Option<Duration>,
    pub loss: f64,
    pub score: Option<Duration>,
    pub dead: bool,
    pub slots: usize,
}
