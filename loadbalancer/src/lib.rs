//! The controller of the load balancer, as a library for its command line and its tests.

pub mod config;
pub mod dataplane;
pub mod health;
pub mod network;
