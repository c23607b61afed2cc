//! The controller: keeps the packet path at what the configuration, the network and the checks say.
//!
//! One task owns all state and takes one `Event` at a time. What an event is for is done by components, one for each concern and
//! all of one shape (`component`); what they have changed for each other is then settled in one place
//! (`dispatch`). Nothing here waits: probes, next hops, hooks, the queue, what is to be done about the network
//! (`chores`), and the servers of the admin socket and of metrics are tasks or threads of their own.
//!
//! ```text
//! event -> components, in turn -> what has changed -> members? every component is brought to them
//!                                                     paths?   probes and the queue follow
//!                                                     plan?    weights -> plan -> maps -> the queue
//! ```

mod run;
mod start;
mod dispatch;
mod desired;
mod event;
mod component;
mod registry;
mod plane;
mod routes;
mod paths;
mod checks;
mod queue;
mod interfaces;
mod weights;
mod leases;
mod counts;
mod targets;
mod through_vips;
mod chores;
mod operator;
mod report;
pub mod status;
pub mod channels;
pub mod quality;
pub mod standby;

pub use event::{Change, Request};
pub use run::run;
pub use start::{OWN_PINS, has_own_pins};
