//! The queue of connections that no server may take.

pub mod order;
pub mod engine;
pub mod report;
pub mod wait;
