//! Whose a packet is, and which server gets a new flow.

pub mod classify;
pub mod choice;
pub mod lease;
pub mod admit;
pub mod probe;
