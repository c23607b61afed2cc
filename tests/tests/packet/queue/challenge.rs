//! Clients that must show where they are before they may wait.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{cookie, kind};
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, Transport};
use loadbalancer_tests::frames::verify::verify;
use loadbalancer_tests::frames::world::{Leases, Ran};

use super::super::entries::{self, in_one_tick};
use super::super::expect::{expect, expect_frame};
use super::super::family::Family;
use super::super::mode::Mode;
use super::frames::{TAGS, numbered};
use super::gateway::{Gateway, later};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;

/// Ticks for which a client need not show again where it is.
const VERIFIED_TICKS: u32 = 14;

/// A gateway that challenges clients before they may wait.
fn challenging(family: Family, mode: Mode) -> Result<Gateway> {
    let gateway = Gateway::full(family, mode, 0)?;
    gateway.lease(Leases { queue: later(), waiting: 0, challenge: true });
    Ok(gateway)
}

pub(super) fn challenged(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        let mut gateway = challenging(family, mode)?;
        for tags in TAGS {
            for (payload, options) in [(0, 0), (0, 40), (200, 0), (1_400, 12)] {
                let syn = gateway.packet(protocol::TCP, 40_000, SYN).with(|f| {
                    (f.tags, f.tos, f.payload) = (tags.to_vec(), 0x48, vec![7; payload]);
                    f.transport = Transport::Tcp {
                        flags: SYN,
                        sequence: 0x7fff_fff0,
                        acknowledged: 0,
                        options: vec![1; options],
                    };
                });
                let ran = gateway.run(&syn)?;
                expect(&ran, "TX", gateway.service, Outcome::Challenged)?;
                expect_challenge(&gateway, &ran, &syn)
                    .with_context(|| format!("tags {tags:?}, {payload} bytes of data, {options} of options"))?;
            }
        }
        gateway.expect_no_record()?;
        gateway.expect_no_entry()?;
        // UDP has nothing to answer with.
        let datagram = gateway.packet(protocol::UDP, 40_000, 0);
        gateway.expect_held(&datagram, |_| {})?;
        // Where there is room nobody is challenged.
        gateway.world.change_backend(gateway.backends[0], |b| b.high_water += 1)?;
        gateway.world.raise_room_epoch(gateway.service);
        let syn = gateway.packet(protocol::TCP, 40_000, SYN);
        gateway.expect(&syn, "REDIRECT", Outcome::Forwarded)
    })
}

/// To the byte: an acknowledgement of what the client never sent, with no window and no identification.
fn expect_challenge(gateway: &Gateway, ran: &Ran, syn: &Frame) -> Result<()> {
    let hash = gateway.held(syn).hash;
    let expected = Frame::tcp(gateway.family.vip, 80, gateway.family.client, syn.sport, ACK).with(|f| {
        f.macs = (CLIENT_MAC, GATEWAY_MAC);
        f.tags.clone_from(&syn.tags);
        f.payload.clear();
        let acknowledged = cookie(hash, entries::now());
        f.transport = Transport::Tcp { flags: ACK, sequence: 0, acknowledged, options: Vec::new() };
    });
    let l3 = 14 + 4 * syn.tags.len();
    verify(&ran.frame[l3..]).map_err(anyhow::Error::msg)?;
    let mut expected = expected.bytes();
    let (l4, own) = if syn.is_v6() { (l3 + 40, vec![]) } else { (l3 + 20, vec![l3 + 10, l3 + 11]) };
    if !syn.is_v6() {
        expected[l3 + 4..l3 + 6].fill(0);
    }
    expected[l4 + 14..l4 + 16].fill(0);
    // Checksums have been looked at, and follow from the rest.
    for at in own.into_iter().chain([l4 + 16, l4 + 17]) {
        expected[at] = ran.frame[at];
    }
    expect_frame(ran, &expected)
}

/// The reset with which a client answers a challenge of so many ticks ago.
fn answer(gateway: &Gateway, port: u16, ago: u32) -> Frame {
    let reset = gateway.packet(protocol::TCP, port, RST);
    let number = cookie(gateway.held(&reset).hash, entries::now().wrapping_sub(ago));
    numbered(reset, number)
}

pub(super) fn verified(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        // Whether something waits already makes no difference.
        for waiting in [0, later()] {
            let mut gateway = challenging(family, mode)?;
            gateway.lease(Leases { queue: later(), waiting, challenge: true });
            let syn = gateway.packet(protocol::TCP, 40_000, SYN);
            gateway.expect(&syn, "TX", Outcome::Challenged)?;
            let reset = answer(&gateway, 40_000, 0);
            gateway.expect_reset(&reset, kind::VERIFIED).with_context(|| format!("waiting until {waiting}"))?;
            ensure!(gateway.is_verified()?, "the client is not verified");
            gateway.expect_held(&syn, |held| held.verified = 1)?;
            let other = gateway.packet(protocol::TCP, 40_001, SYN);
            gateway.expect_held(&other, |held| held.verified = 1).context("another flow of the client")?;
            gateway.lease(Leases { queue: later(), waiting, challenge: false });
            gateway.expect_held(&syn, |held| held.verified = 1).context("nobody is challenged any more")?;
            gateway.expect_no_entry()?;
        }
        Ok(())
    })
}

pub(super) fn old_cookie(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        for (ago, is_good) in [(0, true), (1, true), (2, false), (u32::MAX, false)] {
            let mut gateway = challenging(family, mode)?;
            gateway.lease(Leases { queue: later(), waiting: later(), challenge: true });
            let reset = answer(&gateway, 40_000, ago);
            gateway.expect_reset(&reset, if is_good { kind::VERIFIED } else { kind::RESET })?;
            ensure!(gateway.is_verified()? == is_good, "a challenge of {ago} ticks ago");
        }
        // The right number, but another flow's.
        let mut gateway = challenging(family, mode)?;
        gateway.lease(Leases { queue: later(), waiting: later(), challenge: true });
        let other = answer(&gateway, 40_000, 0).with(|f| f.sport = 40_001);
        gateway.expect_reset(&other, kind::RESET)?;
        let syn = gateway.packet(protocol::TCP, 40_001, SYN);
        gateway.expect(&syn, "TX", Outcome::Challenged)
    })
}

pub(super) fn verified_for_a_minute(family: Family, mode: Mode) -> Result<()> {
    in_one_tick(|| {
        let mut gateway = challenging(family, mode)?;
        let syn = gateway.packet(protocol::TCP, 40_000, SYN);
        gateway.set_verified(VERIFIED_TICKS)?;
        gateway.expect_held(&syn, |held| held.verified = 1)?;
        gateway.set_verified(VERIFIED_TICKS + 1)?;
        gateway.expect(&syn, "TX", Outcome::Challenged)?;
        let datagram = gateway.packet(protocol::UDP, 40_000, 0);
        gateway.expect_held(&datagram, |_| {})
    })
}
