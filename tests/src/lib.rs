//! What the lab command, the system tests and the benches have in common.

pub mod bench;
pub mod demo;
pub mod fuzz;
pub mod kernels;
pub mod packet;
pub mod support;
