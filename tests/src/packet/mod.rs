//! Packet tests: tables of input frame, outcome, expected frame and counters, run in the kernel.

pub mod frame;
pub mod world;
mod cases;
mod corners;
mod timestamps;
mod flow;
mod entries;
mod jumbo;
mod lifetime;
mod fragments;
mod last_hop;
mod hot;
mod repair;
mod ends;
mod signals;
mod probes;
mod queue;
mod ticket;
pub mod runner;

pub use runner::main;
