//! What an operator asks for, and the answers.

use serde::{Deserialize, Serialize};

use crate::controller;

/// A change to a server that the operator asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// No new flows; live ones go on.
    Drain,
    /// New flows again, and the weight of the configuration.
    Enable,
    Weight(u16),
}

impl From<Change> for controller::Change {
    fn from(change: Change) -> Self {
        match change {
            Change::Drain => Self::Drain,
            Change::Enable => Self::Enable,
            Change::Weight(weight) => Self::Weight(weight),
        }
    }
}

/// Body of the answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Its full name: `service/server`.
    pub server: String,
}

/// Body of an answer that is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}
