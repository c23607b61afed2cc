//! The ways to each server, how good they are, and how many flows take them.

use std::time::Duration;

use decide::channel::explain::{self, ChannelReport, Death, Reason, State};
use serde::{Deserialize, Serialize};

use super::seconds;
use crate::controller::status::{ChannelsStatus, Named, ServerChannelsStatus};

/// All channels of all servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelsReport {
    /// When it was made, in milliseconds since 1970.
    pub taken_ms: u64,
    /// Seconds on the clock in which other times are told.
    pub uptime_s: f64,
    pub servers: Vec<ServerChannels>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerChannels {
    pub service: String,
    pub server: String,
    /// Some channel is not dead.
    pub reachable: bool,
    /// Name of the channel of each path slot.
    pub slots: Vec<Option<String>>,
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    pub name: String,
    /// Its number in this controller.
    pub channel: u16,
    pub capacity: u32,
    #[serde(with = "StateShape")]
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

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotChange {
    #[serde(rename = "at_s", with = "seconds")]
    pub at: Duration,
    pub from: usize,
    pub to: usize,
    #[serde(with = "ReasonShape")]
    pub reason: Reason,
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

#[derive(Serialize, Deserialize)]
#[serde(remote = "State", tag = "is", rename_all = "kebab-case")]
enum StateShape {
    Unknown,
    Good,
    Stale,
    Dead {
        #[serde(with = "DeathShape")]
        cause: Death,
        #[serde(rename = "since_s", with = "seconds")]
        since: Duration,
        good_probes: u32,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Reason", rename_all = "kebab-case")]
enum ReasonShape {
    Configured,
    Died(#[serde(with = "DeathShape")] Death),
    PeerDied,
    Loses {
        loss: f64,
    },
    Worse {
        #[serde(rename = "score_s", with = "seconds")]
        score: Duration,
    },
    Better {
        #[serde(rename = "score_s", with = "seconds")]
        score: Duration,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Death", rename_all = "kebab-case")]
enum DeathShape {
    ProbesMissed,
    LinkDown,
}

impl From<ChannelsStatus> for ChannelsReport {
    fn from(it: ChannelsStatus) -> Self {
        Self {
            taken_ms: it.taken_ms,
            uptime_s: it.uptime.as_secs_f64(),
            servers: it.servers.into_iter().map(ServerChannels::from).collect(),
        }
    }
}

impl From<ServerChannelsStatus> for ServerChannels {
    fn from(it: ServerChannelsStatus) -> Self {
        Self {
            service: it.service,
            server: it.server,
            reachable: it.reachable,
            slots: it.slots,
            channels: it.channels.into_iter().map(Channel::from).collect(),
        }
    }
}

impl From<Named<ChannelReport>> for Channel {
    fn from(Named { name, report: it }: Named<ChannelReport>) -> Self {
        Self {
            name,
            channel: it.channel.0,
            capacity: it.capacity,
            state: it.state,
            link_up: it.link_up,
            srtt: it.srtt,
            rttvar: it.rttvar,
            loss: it.loss,
            sure_loss: it.sure_loss,
            score: it.score,
            share: it.share,
            slots: it.slots,
            deaths: it.deaths,
            last_change: it.last_change.map(|it| SlotChange { at: it.at, from: it.from, to: it.to, reason: it.reason }),
            history: it.history.into_iter().map(Moment::from).collect(),
        }
    }
}

impl From<explain::Moment> for Moment {
    fn from(it: explain::Moment) -> Self {
        Self { at: it.at, srtt: it.srtt, loss: it.loss, score: it.score, dead: it.dead, slots: it.slots }
    }
}
