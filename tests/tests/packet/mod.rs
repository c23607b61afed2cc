//! Packet tests: tables of input frame, outcome, expected frame and counters, run in the kernel.

mod case;
mod cases;
mod family;
mod mode;
mod world;
mod expect;
mod forwarding;
mod lifecycle;
mod replies;
mod answers;
mod foreign;
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

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    cases::all().into_iter().map(Trial::from).collect()
}
