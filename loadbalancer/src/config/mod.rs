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
mod channel;
mod check;
mod validate;
mod walk;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, ConfigErrors};
pub use model::*;
