//! All cases, in the order in which they are listed.

use loadbalancer_common::net::protocol;

use super::case::Case;
use super::family::FAMILIES;
use super::mode::MODES;
use super::{
    answers, corners, ends, foreign, forwarding, fragments, hot, jumbo, last_hop, lifecycle, lifetime, probes, queue,
    repair, replies, signals, ticket, timestamps,
};

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        for mode in MODES {
            for number in [protocol::TCP, protocol::UDP] {
                forwarding::add(&mut cases, family, mode, number);
            }
        }
        for mode in MODES {
            lifecycle::add(&mut cases, family, mode);
        }
        replies::add(&mut cases, family);
        answers::add(&mut cases, family);
        foreign::add(&mut cases, family);
        corners::add(&mut cases, family);
        timestamps::add(&mut cases, family);
        jumbo::add(&mut cases, family);
        lifetime::add(&mut cases, family);
        fragments::add(&mut cases, family);
        last_hop::add(&mut cases, family);
        hot::add(&mut cases, family);
        repair::add(&mut cases, family);
        ends::add(&mut cases, family);
        signals::add(&mut cases, family);
        probes::add(&mut cases, family);
        queue::add(&mut cases, family);
        ticket::add(&mut cases, family);
    }
    cases
}
