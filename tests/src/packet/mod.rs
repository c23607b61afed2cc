//! Packet tests: tables of input frame, outcome, expected frame and counters, run in the kernel.

pub mod frame;
pub mod world;
mod cases;
mod corners;
mod timestamps;
pub mod runner;

pub use runner::main;
