//! The configuration: what the operator wants.
//!
//! It is read as a whole and validated as a whole, so that a wrong one changes nothing; everything that is wrong is told
//! at once, with place and mend.

mod error;
mod model;
mod parse;
mod quality;
mod standby;
mod tiers;
mod queue;
mod classes;
mod channel;
mod check;
mod validate;
mod walk;
mod files;
#[cfg(test)]
mod tests;

pub use classes::{Classes, QueueClass};
pub use error::{ConfigError, ConfigErrors};
pub use model::*;
pub use queue::{AdaptiveMarks, AtDeadline, Marks, QueueLimits, Responder, ServiceQueue, Verify};
