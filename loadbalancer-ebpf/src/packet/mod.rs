//! What is in a frame, and what changes in it. Nothing here knows of flows or servers.

pub mod cursor;
pub mod parse;
pub mod family;
pub mod ipv4;
pub mod ipv6;
pub mod tcp_timestamp;
pub mod ingress;
pub mod last_hop;
