//! What came out of a run, and whether it is what must come out.

use anyhow::{Context, Result, bail, ensure};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_common::service::mode;
use loadbalancer_tests::frames::frame::{GATEWAY_MAC, SERVER_MAC};
use loadbalancer_tests::frames::verify::verify;
use loadbalancer_tests::frames::world::{Ran, Server};

use super::family::Family;
use super::mode::Mode;

pub(super) fn expect(ran: &Ran, action: &str, service: u16, outcome: Outcome) -> Result<()> {
    let names: Vec<String> = ran
        .counted
        .iter()
        .map(|(service, index, by)| format!("{}/{} +{by}", service, Outcome::ALL[*index].label()))
        .collect();
    ensure!(
        ran.action == action && ran.counted == [(service, outcome as usize, 1)],
        "expected {action} and {service}/{} +1, got {} and {names:?}",
        outcome.label(),
        ran.action
    );
    Ok(())
}

/// The output must be this frame, to the byte.
pub(super) fn expect_frame(ran: &Ran, expected: &[u8]) -> Result<()> {
    if ran.frame != expected {
        let at =
            ran.frame.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(ran.frame.len().min(expected.len()));
        bail!(
            "frames differ from byte {at} on ({} and {} bytes)\n  expected {:02x?}\n  got      {:02x?}",
            expected.len(),
            ran.frame.len(),
            expected,
            ran.frame
        );
    }
    Ok(())
}

pub(super) fn expect_sound(ran: &Ran) -> Result<()> {
    verify(&ran.frame[14..]).map_err(|what| anyhow::anyhow!("wrong in the output: {what}\n  {:02x?}", ran.frame))
}

/// Which server the output goes to: one of the two addresses, as text.
pub(super) fn destination(ran: &Ran, mode: &Mode, servers: &[Server]) -> Result<usize> {
    let frame = &ran.frame;
    ensure!(frame[..6] == SERVER_MAC && frame[6..12] == GATEWAY_MAC, "link header {:02x?}", &frame[..14]);
    if mode.mode == mode::DSR && mode.tunnel.is_none() {
        return Ok(0);
    }
    let addr: std::net::IpAddr = match frame[14] >> 4 {
        4 => <[u8; 4]>::try_from(&frame[30..34])?.into(),
        _ => <[u8; 16]>::try_from(&frame[38..54])?.into(),
    };
    servers.iter().position(|server| server.addr == addr).with_context(|| format!("{addr} is no server"))
}

/// The packet as the server gets it, without the outer header.
pub(super) fn inner<'a>(ran: &'a Ran, mode: &Mode) -> &'a [u8] {
    let skip = match mode.tunnel {
        Some((encap, _)) => encap::overhead(encap) as usize,
        None => 0,
    };
    &ran.frame[14 + skip..]
}

/// The source port that `nat` gave.
pub(super) fn source_port(ran: &Ran, family: &Family) -> u16 {
    let l4 = if family.name == "v6" { 54 } else { 34 };
    u16::from_be_bytes([ran.frame[l4], ran.frame[l4 + 1]])
}
