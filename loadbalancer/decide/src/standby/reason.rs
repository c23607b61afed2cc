//! Why a service has a server, why it loses it, and what goes wrong with one.

use std::fmt;

use super::need::Breach;

/// Why a service has a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    Need(Breach),
    /// It always has so many.
    Minimum,
    /// An earlier controller leased it.
    Adopted,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Need(breach) => breach.fmt(f),
            Self::Minimum => f.write_str("the service always has one"),
            Self::Adopted => f.write_str("an earlier controller allocated it"),
        }
    }
}

/// Why a server is taken from a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The service does not need it any more.
    Recovered,
    /// It has recovered a little, and another service is in need.
    NeededElsewhere,
    /// More than the service may have; or service or server are not configured any more.
    Configured,
    /// It is down.
    Down,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovered => "the service has recovered",
            Self::NeededElsewhere => "another service needs it more",
            Self::Configured => "so says the configuration",
            Self::Down => "it is down",
        })
    }
}

/// What went wrong with a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    StartHook(String),
    StopHook(String),
    /// Checks did not pass in time.
    Checks,
    /// It served, and went down.
    Down,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartHook(message) => write!(f, "start hook: {message}"),
            Self::StopHook(message) => write!(f, "stop hook: {message}"),
            Self::Checks => f.write_str("its checks did not pass in time"),
            Self::Down => f.write_str("it served and went down"),
        }
    }
}
