//! The namespace lab: hosts, links, servers and clients on one machine, each in a network namespace of its own.
//!
//! All traffic stays inside namespaces that the lab makes and removes. Needs root, and `ip` (Debian: iproute2).

pub mod lab;
pub mod plan;
pub mod channel;
pub mod relay;
pub mod impair;
pub mod host;
pub mod events;
pub mod run;
pub mod netns;
pub mod runtime;
pub mod offload;
pub mod xdp;
pub mod server;
pub mod work;
pub mod agent;
pub mod http;
pub mod pattern;
pub mod echo;
pub mod client;
pub mod load;
pub mod span;
pub mod timer;
pub mod hold;
pub mod gateway;
