//! Why a channel has the slots that it has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Death, Slots};
use crate::quality::seconds;
use crate::quality::signal::ChannelKey;

/// The channels of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelsReport {
    /// Some channel is not dead.
    pub reachable: bool,
    pub slots: Slots,
    pub channels: Vec<ChannelReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelReport {
    pub channel: ChannelKey,
    pub capacity: u32,
    pub state: State,
    pub link_up: bool,
    #[serde(rename = "srtt_s", with = "seconds::optional")]
    pub srtt: Option<Duration>,
    #[serde(rename = "rttvar_s", with = "seconds::optional")]
    pub rttvar: Option<Duration>,
    /// Share of probes and traffic in the window that was lost.
    pub loss: f64,
    /// The loss that counts.
    pub sure_loss: f64,
    #[serde(rename = "score_s", with = "seconds::optional")]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// Nothing was measured yet.
    Unknown,
    Good,
    /// Nothing came for a while: slots are frozen.
    Stale,
    Dead {
        cause: Death,
        #[serde(rename = "since_s", with = "seconds")]
        since: Duration,
        /// On end, up to now.
        good_probes: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotChange {
    #[serde(rename = "at_s", with = "seconds")]
    pub at: Duration,
    pub from: usize,
    pub to: usize,
    pub reason: Reason,
}

/// Why a channel's number of slots changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
        #[serde(rename = "score_s", with = "seconds")]
        score: Duration,
    },
    Better {
        #[serde(rename = "score_s", with = "seconds")]
        score: Duration,
    },
}

/// How it was in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    #[serde(rename = "at_s", with = "seconds")]
    pub at: Duration,
    #[serde(rename = "srtt_s", with = "seconds::optional")]
    pub srtt: Option<Duration>,
    pub loss: f64,
    #[serde(rename = "score_s", with = "seconds::optional")]
    pub score: Option<Duration>,
    pub dead: bool,
    pub slots: usize,
}
