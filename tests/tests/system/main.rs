//! Gateways in the lab: real sockets through XDP, one scenario per test. Needs root.

mod channels;
mod cli;
mod consistency;
mod control;
mod failure;
mod modes;
mod quality;
mod queue;
mod respond;
mod signals;
mod tiers;
mod vip;
mod world;
