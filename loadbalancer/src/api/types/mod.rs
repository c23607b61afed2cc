//! Every document that clients read or write, as JSON: over the admin socket and from the commands' `--json`.
//!
//! Only this module knows how the controller and its decisions are spelled. A document is a struct of its own, made of what
//! the controller tells (`From<controller::status::...>`). Enums are those of the controller and of its decisions, so that
//! documents, metrics and tables share them; the `...Shape` beside a document spells one, and the compiler holds the two
//! together.
//!
//! A field may be added within a version; what is renamed, removed or means something else raises [`API_VERSION`].
//! `api/golden/` holds a text of each document.

pub mod snapshot;
pub mod quality;
pub mod channels;
pub mod standby;
pub mod queue;
pub mod change;
pub mod flows;
pub mod doctor;
pub mod config;
mod seconds;

pub use change::{Change, Changed, Failure};
pub use channels::ChannelsReport;
pub use quality::QualityReport;
pub use queue::QueueReport;
pub use snapshot::Snapshot;
pub use standby::StandbyReport;

/// Version of all documents; it is part of the admin interface's addresses.
pub const API_VERSION: u32 = 1;
