//! The controller of the load balancer, as a library for its command line and its tests.
//!
//! Imports go one way: `model <- decide <- edges <- controller <- faces`. Edges are `config`, `dataplane`, `network`, `health`
//! and `slowpath`; faces are `api`, `doctor` and the command line.

#![deny(unsafe_code)]
#![deny(clippy::missing_errors_doc)]

pub mod config;
pub mod dataplane;
pub mod network;
pub mod health;
pub mod slowpath;
pub mod controller;
pub mod api;
pub mod doctor;
