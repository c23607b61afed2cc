//! The controller of the load balancer, as a library for its command line and its tests.

pub mod admin;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod doctor;
pub mod health;
pub mod metrics;
pub mod network;
pub mod quality;
pub mod queue;
pub mod ring;
