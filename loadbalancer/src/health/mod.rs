//! What is known of each server by asking it.
//!
//! [`Checker`] asks every server once an interval ([`probe()`]) and sends a [`ProbeReport`] per answer, which says which
//! probe of which server it is of. A server may have a check, which decides whether it is up: whoever owns a
//! [`ServerHealth`] per server feeds it with the results and acts on the [`Transition`]s it returns. It may have monitors,
//! whose results tell its quality, and an agent, whose reports an [`AgentStatus`] keeps. Reports that waited in the channel
//! while their probe was removed or replaced are told by [`Checker::is_current`].
//!
//! A server without checks is simply not given to the checker; its health stays [`model::health::Health::Unknown`].

pub mod runner;
pub mod schedule;
pub mod probe;
pub mod kind;
pub mod target;
pub mod ports;
pub mod socket;
mod limit;
pub mod agent_report;
pub mod agent_status;
pub mod state;
pub mod error;

#[cfg(test)]
mod loopback;

pub use agent_report::{AgentAdmin, AgentReport, AgentState};
pub use agent_status::AgentStatus;
pub use error::{Phase, ProbeError, SpecError};
pub use kind::agent::AgentCheck;
pub use kind::body::BodyMatch;
pub use kind::command::CommandCheck;
pub use kind::dns::DnsCheck;
pub use kind::http::{HttpCheck, StatusRanges};
pub use kind::tls::{TlsCheck, Verify};
pub use kind::udp::{UdpCheck, UdpExpect, from_hex};
pub use kind::{Asks, CheckKind};
pub use ports::SourcePorts;
pub use probe::{Answer, CheckSpec, probe};
pub use runner::{Checker, Part, ProbeKey, ProbeReport};
pub use socket::Sockets;
pub use state::{Failure, ServerHealth, Thresholds, Transition};
pub use target::{Forwarder, Target, Via};
