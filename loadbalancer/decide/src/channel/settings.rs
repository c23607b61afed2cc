//! What holds for the channels of a server.

use std::time::Duration;

/// Constants of the loop of channels. Where no source is named, they were tried with the tests here.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time between probes of a channel.
    pub probe_every: Duration,
    /// Time between comparisons.
    pub interval: Duration,
    /// Which channels live flows leave.
    pub leave: Leave,
    /// Weight of a measurement in the smoothed time (RFC 6298: 1/8).
    pub srtt_gain: f64,
    /// Weight of a measurement in its variation (RFC 6298: 1/4).
    pub rttvar_gain: f64,
    /// Variations that are added to the smoothed time (RFC 6298: 4).
    pub deviations: f64,
    /// Intervals of a probe over which losses of probes and of traffic are counted.
    pub loss_window: usize,
    /// What a loss costs: the first retransmission of TCP comes after a second (RFC 6298).
    pub loss_penalty: Duration,
    /// Standard deviations of the number of losses that are taken off before they count.
    pub sure: f64,
    /// Intervals over which losses are averaged at least.
    pub least_intervals: usize,
    /// Scores below this one are alike: on a busy machine, probes themselves differ by some milliseconds.
    pub score_floor: Duration,
    /// With 1, shares are in proportion to capacity/score: 20 ms beside 70 ms keeps 22 % of the flows on the worse channel.
    /// With 2 it keeps 8 %.
    pub preference: f64,
    /// Slots move when they are off by half of one and this part of one. With 0.4 and two equal channels one has to be
    /// better by a quarter.
    pub margin: f64,
    /// Comparisons on end that have to agree: a second.
    pub better_for: u32,
    /// Time after which a channel that lost slots may get some back; twice as long after each time that is not forgotten.
    pub hold: Duration,
    /// No longer than this.
    pub hold_most: Duration,
    /// Missed probes on end that mean that a channel is dead.
    pub dead_after: u32,
    /// Good probes on end until it is back, times the number of its deaths that are not forgotten.
    pub back_after: u32,
    /// No more than as many.
    pub back_most: u32,
    /// Time after which one death, and one time of slots lost, is forgotten.
    pub forget_after: Duration,
    /// Silence of probes and traffic after which nothing is moved any more.
    pub stale_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_every: Duration::from_millis(100),
            interval: Duration::from_millis(250),
            leave: Leave::Worse,
            srtt_gain: 0.125,
            rttvar_gain: 0.25,
            deviations: 4.0,
            loss_window: 100,
            loss_penalty: Duration::from_secs(1),
            sure: 1.0,
            least_intervals: 20,
            score_floor: Duration::from_millis(5),
            preference: 2.0,
            margin: 0.4,
            better_for: 4,
            hold: Duration::from_secs(5),
            hold_most: Duration::from_secs(60),
            dead_after: 3,
            back_after: 20,
            back_most: 300,
            forget_after: Duration::from_secs(60),
            stale_after: Duration::from_secs(3),
        }
    }
}

/// Which channels live flows leave; as flows are bound to slots by their hashes, new flows follow the same slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// Those that are worse than others as well.
    #[default]
    Worse,
    /// Only dead ones. Other slots move while the server has no active flow, so until then a channel that is back gets none.
    Dead,
}
