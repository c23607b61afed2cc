//! The ways out: to the server or the client, or back as an answer.

pub mod reply;
pub mod refuse;
pub mod forward;
