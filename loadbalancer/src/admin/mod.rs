//! The admin interface: HTTP and JSON over a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/snapshot` | [`crate::control::snapshot::Snapshot`] |
//! | `POST /v1/servers/{service}/{server}` or `/v1/servers/{server}`, body [`crate::control::snapshot::Change`] | the server's full name |
//! | `POST /v1/reload` | nothing |
//!
//! An error is answered with status 4xx or 5xx and `{"error": "..."}`.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

/// Body of an answer that is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

/// Body of the answer to a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    pub server: String,
}
