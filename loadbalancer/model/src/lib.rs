//! Values that every part of the controller shares: who a server is, where it is, how packets reach it. No decisions, no
//! input or output.

#![forbid(unsafe_code)]
#![deny(clippy::missing_errors_doc)]

pub mod ids;
pub mod address;
pub mod mode;
pub mod weight;
pub mod health;
pub mod route;
pub mod time;
