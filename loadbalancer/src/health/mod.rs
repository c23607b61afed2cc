//! Health checks: whether each server works, found out by asking it.
//!
//! [`Checker`] asks every server once an interval ([`probe()`]) and sends a [`Report`] per answer; whoever owns a
//! [`ServerHealth`] per server feeds it with them and acts on the [`Transition`]s it returns. Reports that waited in the
//! channel while their check was removed or replaced are told by [`Checker::is_current`].
//!
//! A server without checks is simply not given to the checker; its health stays [`Health::Unknown`].

pub mod spec;
pub mod runner;
pub mod schedule;
pub mod probe;
mod http;
pub mod error;
pub mod state;

#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod runner_tests;

pub use error::{Phase, ProbeError};
pub use probe::probe;
pub use runner::{Checker, Report};
pub use spec::{CheckKind, CheckSpec, HttpCheck, SpecError, StatusRanges, Thresholds};
pub use state::{Failure, Health, ServerHealth, Transition};
