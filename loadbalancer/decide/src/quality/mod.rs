//! From measured quality to weights: the loop that monitors close and the packet path follows. Pure.
//!
//! Nothing here reads a clock, opens a socket or starts a process: times come in as durations since the controller's
//! start, measurements as values, and what is to be done goes out as values. `signal` is what comes in, `group` is the
//! loop of one service, `law` its heart; `channel`, `standby` and `tiers` are loops of their own.
//!
//! # How weights are found
//!
//! Every 250 ms each server of a service is compared with its peers. Its *slowness* is its mean latency over that of the
//! peer in the middle; loss and errors make it larger (`law`). A server's *burden* is its weight times its slowness: by
//! Little's law that is the number of requests it holds. Weights are moved until all burdens are equal, so
//!
//! - a server that is twice as slow gets half the share: servers of different speed end at shares in proportion to their
//!   capacity without any weight configured, and one that is far away loses a share in proportion, not everything;
//! - where latency is the same whatever the load, and when all become slow together, nothing moves;
//! - a server more than four times as slow as the one in the middle loses more than in proportion, because the tail of
//!   the service's latency is made of its requests.
//!
//! Large and certain differences are corrected at once when they take load away, small ones slowly, and what noise
//! explains not at all (`measure`). What a few weak signals cannot tell is left as it is.

pub mod signal;
pub mod window;
pub mod measure;
pub mod law;
pub mod eject;
pub mod start;
pub mod marks;
pub mod group;
pub mod adopt;
pub mod explain;

/// All constants of the loop of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether weights follow what is measured; else nobody is ejected either, and all is measured only to be shown.
    pub measured: bool,
    pub measure: measure::Settings,
    pub law: law::Settings,
    pub eject: eject::Settings,
    pub start: start::Settings,
    /// High-water marks that follow from latency; None: only as configured and as agents say.
    pub marks: Option<marks::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            measured: true,
            measure: Default::default(),
            law: Default::default(),
            eject: Default::default(),
            start: Default::default(),
            marks: None,
        }
    }
}
