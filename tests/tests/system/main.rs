//! Gateways in the lab: real sockets through XDP, one scenario per test. Needs root.

mod cli;
mod consistency;
mod control;
mod failure;
mod modes;
mod signals;
mod world;
