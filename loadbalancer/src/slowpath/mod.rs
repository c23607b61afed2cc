//! What the packet path hands up, and what it gets back: packets that wait for a server, and answers to those that have waited
//! for too long.

pub mod worker;
pub mod responder;
