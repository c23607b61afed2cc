//! What `loadbalancer doctor --json` finds.

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `interface eth0`, `server web/web1`, ...
    pub subject: String,
    pub grade: Grade,
    pub finding: String,
    /// What to do about it; empty where there is nothing to do.
    pub mend: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    Good,
    /// Worth knowing.
    Note,
    /// It works, but not as well as it could, or not in all cases.
    Warning,
    /// It will not work.
    Problem,
}
