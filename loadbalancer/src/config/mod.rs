//! The configuration: what the operator wants.

mod model;

pub use model::*;
