//! What runs in the lab's namespaces: servers, clients, loads, held flows and forged packets.

pub mod server;
mod socket;
mod connection;
pub mod state;
pub mod behaviour;
pub mod work;
pub mod agent;
mod agent_check;
pub mod http;
pub mod pattern;
pub mod echo;
pub mod client;
pub mod load;
pub mod span;
pub mod timer;
mod random;
pub mod hold;
pub mod forge;
pub mod wrk;
