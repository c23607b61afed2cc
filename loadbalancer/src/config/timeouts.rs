//! `[timeouts]`: how long flows that are idle are remembered.

use std::time::Duration;

use loadbalancer_common::clock::{MAX_TICKS, seconds_of_ticks};
use model::time::Timeouts;

use super::schema::table::{Keys, Table};

pub(super) fn table() -> Table<Timeouts> {
    let longest = Duration::from_secs(seconds_of_ticks(u64::from(MAX_TICKS)));
    let range = || (Duration::from_secs(1)..=longest, "an affinity entry has 13 bits for its age");
    Keys::new("[timeouts]", "After which idle flows are forgotten.", Timeouts::default())
        .time_because("tcp_syn", |it| &mut it.tcp_syn, range(), "TCP, before the handshake is over.")
        .time_because("tcp_established", |it| &mut it.tcp_established, range(), "TCP, after the handshake.")
        .time_because("tcp_fin", |it| &mut it.tcp_fin, range(), "TCP, after one side's FIN.")
        .time_because("tcp_closed", |it| &mut it.tcp_closed, range(), "TCP, after both FINs, or a reset.")
        .time_because("udp", |it| &mut it.udp, range(), "UDP.")
        .time_because(
            "client",
            |it| &mut it.client,
            range(),
            "Which server a client has, for services with affinity = \"client\".",
        )
        .plain()
}
