//! What is known of each server by asking it.
//!
//! [`Checker`] asks every server once an interval ([`probe()`]) and sends a [`Report`] per answer, which says which probe
//! of which server it is of. A server may have a check, which decides whether it is up: whoever owns a [`ServerHealth`]
//! per server feeds it with the results and acts on the [`Transition`]s it returns. It may have monitors, whose results
//! tell its quality, and an agent, whose words a [`LastWord`] keeps. Reports that waited in the channel while their
//! probe was removed or replaced are told by [`Checker::is_current`].
//!
//! A server without checks is simply not given to the checker; its health stays [`Health::Unknown`].

pub mod spec;
pub mod runner;
pub mod schedule;
pub mod probe;
mod socket;
mod http;
mod body;
mod tls;
mod udp;
mod icmp;
mod dns;
mod command;
mod agent;
pub mod word;
pub mod last_word;
pub mod ports;
pub mod error;
pub mod state;

#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod runner_tests;

pub use agent::AgentCheck;
pub use body::BodyMatch;
pub use command::CommandCheck;
pub use dns::DnsCheck;
pub use error::{Phase, ProbeError};
pub use last_word::LastWord;
pub use ports::SourcePorts;
pub use probe::{Answer, probe};
pub use runner::{Checker, Part, ProbeKey, Report};
pub use spec::{Asks, CheckKind, CheckSpec, HttpCheck, SpecError, StatusRanges, Thresholds, Via};
pub use state::{Failure, Health, ServerHealth, Transition};
pub use tls::{TlsCheck, Verify};
pub use udp::{UdpCheck, UdpExpect, from_hex};
pub use word::{AgentAdmin, AgentState, Word};
