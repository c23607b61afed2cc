//! The controller's decisions, as pure functions and state machines: nothing here reads a clock, opens a socket or a file, or
//! starts a process. Times, measurements and configuration come in as values, and what is to be done goes out as values.

#![forbid(unsafe_code)]
#![deny(clippy::missing_errors_doc)]

pub mod ring;
pub mod hot;
pub mod sampling;
pub mod quality;
pub mod channel;
pub mod tiers;
pub mod standby;
pub mod queue;
pub mod plan;
