//! The controller: keeps the packet path at what the configuration, the network and the checks say.
//!
//! One task owns all state and does one thing at a time; checks, the resolver of next hops and the servers of the admin
//! socket and of metrics are tasks of their own that talk to it through channels.

pub mod channels;
pub mod controller;
pub mod desire;
pub mod hot;
pub mod probes;
pub mod quality;
pub mod queue;
pub mod resolver;
pub mod responder;
pub mod snapshot;
pub mod standby;
pub(crate) mod start;
pub mod watching;

pub use start::run;
