//! Gateways in the lab: real sockets through XDP, one scenario per test. Needs root.

mod world;
mod modes;
mod control;
mod consistency;
mod failure;
mod cli;
mod signals;
mod quality;
mod tiers;
mod channels;
mod vip;
mod queue;
mod respond;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    [
        modes::trials(),
        control::trials(),
        consistency::trials(),
        failure::trials(),
        cli::trials(),
        signals::trials(),
        quality::trials(),
        tiers::trials(),
        channels::trials(),
        vip::trials(),
        queue::trials(),
        respond::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
