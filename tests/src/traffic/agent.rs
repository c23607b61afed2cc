//! A server's word about itself: the line of HAProxy's agent check, and JSON.

use serde_json::json;

/// What the agent's line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    Line(String),
    /// The share of idle workers, as `75%`.
    Idle,
}

impl Default for Agent {
    fn default() -> Self {
        Self::Line("up 100%".to_owned())
    }
}

impl Agent {
    /// `busy` is the share of the workers that are at work, if their number is limited.
    pub(super) fn line(&self, busy: Option<f64>) -> String {
        match self {
            Self::Line(line) => format!("{line}\n"),
            Self::Idle => format!("{:.0}%\n", (1.0 - busy.unwrap_or(0.0)) * 100.0),
        }
    }
}

/// The share of busy workers, and the requests in flight.
pub(super) fn json(busy: Option<f64>, in_flight: u64) -> String {
    json!({ "cpu": busy.unwrap_or(0.0), "in_flight": in_flight }).to_string()
}
