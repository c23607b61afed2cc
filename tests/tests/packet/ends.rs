//! How connections end: FIN and RST of either side, the state that they leave, and the count of active flows.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::affinity::state;
use loadbalancer_common::affinity::state::{
    TCP_CLIENT_FIN as CLIENT_FIN, TCP_CLOSED as CLOSED, TCP_ESTABLISHED as ESTABLISHED, TCP_SERVER_FIN as SERVER_FIN,
    TCP_SYN as OPENING,
};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::mode;

use super::case::Case;
use super::entries;
use super::expect::expect;
use super::family::Family;
use super::flow::Flow;
use super::mode::{MODES, Mode};
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const FIN: u8 = tcp_flag::FIN;
const RST: u8 = tcp_flag::RST;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Client,
    Server,
}
use Side::{Client, Server};

/// Who sends what after the client's first SYN, and the state after it. The flow is active as long as the state is.
type Step = (Side, u8, u8);

/// What every mode sees: the client's packets.
const ONE_WAY: [(&str, &[Step]); 6] = [
    ("client's FIN", &[(Client, ACK, ESTABLISHED), (Client, FIN | ACK, CLIENT_FIN), (Client, ACK, CLIENT_FIN)]),
    (
        "client's FIN, twice, then its RST, twice",
        &[
            (Client, ACK, ESTABLISHED),
            (Client, FIN | ACK, CLIENT_FIN),
            (Client, FIN | ACK, CLIENT_FIN),
            (Client, RST, CLOSED),
            (Client, RST, CLOSED),
        ],
    ),
    (
        "client's RST",
        &[(Client, ACK, ESTABLISHED), (Client, RST, CLOSED), (Client, ACK, CLOSED), (Client, FIN, CLOSED)],
    ),
    ("client's RST in the handshake", &[(Client, RST, CLOSED), (Client, RST | ACK, CLOSED)]),
    ("client's FIN in the handshake", &[(Client, FIN | ACK, CLIENT_FIN), (Client, ACK, CLIENT_FIN)]),
    (
        "a new connection after each end",
        &[
            (Client, ACK, ESTABLISHED),
            (Client, FIN | ACK, CLIENT_FIN),
            (Client, SYN, OPENING),
            (Client, RST, CLOSED),
            (Client, SYN, OPENING),
            (Client, SYN, OPENING),
            (Client, ACK, ESTABLISHED),
            (Client, SYN, ESTABLISHED),
            (Client, RST, CLOSED),
        ],
    ),
];

/// What modes see in which replies pass through the gateway.
const BOTH_WAYS: [(&str, &[Step]); 9] = [
    (
        "client's FIN, then server's",
        &[
            (Server, SYN | ACK, OPENING),
            (Client, ACK, ESTABLISHED),
            (Server, ACK, ESTABLISHED),
            (Client, FIN | ACK, CLIENT_FIN),
            (Server, ACK, CLIENT_FIN),
            (Server, FIN | ACK, CLOSED),
            (Client, ACK, CLOSED),
            (Server, FIN | ACK, CLOSED),
            (Client, FIN | ACK, CLOSED),
        ],
    ),
    (
        "server's FIN, then client's",
        &[
            (Server, SYN | ACK, OPENING),
            (Client, ACK, ESTABLISHED),
            (Server, FIN | ACK, SERVER_FIN),
            (Client, ACK, SERVER_FIN),
            (Server, FIN | ACK, SERVER_FIN),
            (Client, FIN | ACK, CLOSED),
            (Server, ACK, CLOSED),
        ],
    ),
    (
        "server's RST",
        &[(Client, ACK, ESTABLISHED), (Server, RST, CLOSED), (Server, RST, CLOSED), (Client, RST, CLOSED)],
    ),
    ("server's refusal", &[(Server, RST | ACK, CLOSED), (Client, ACK, CLOSED)]),
    ("client's RST, then server's", &[(Client, ACK, ESTABLISHED), (Client, RST, CLOSED), (Server, RST | ACK, CLOSED)]),
    (
        "server's RST after client's FIN",
        &[(Client, FIN | ACK, CLIENT_FIN), (Server, RST, CLOSED), (Server, ACK, CLOSED)],
    ),
    (
        "client's RST after server's FIN",
        &[(Client, ACK, ESTABLISHED), (Server, FIN, SERVER_FIN), (Client, RST, CLOSED)],
    ),
    ("server's FIN in the handshake", &[(Server, FIN | ACK, SERVER_FIN), (Client, ACK, SERVER_FIN)]),
    (
        "a new connection after each end of the server's",
        &[
            (Server, RST | ACK, CLOSED),
            (Client, SYN, OPENING),
            (Server, SYN | ACK, OPENING),
            (Client, ACK, ESTABLISHED),
            (Server, FIN | ACK, SERVER_FIN),
            (Client, SYN, OPENING),
            (Server, RST | ACK, CLOSED),
        ],
    ),
];

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        cases
            .push(Case::new(format!("{}/tcp/{}/the end of an unknown flow counts nothing", family.name, mode.name), {
                move || stray(family, mode)
            }));
        let both_ways = if mode.rewrites() { &BOTH_WAYS[..] } else { &[] };
        for (what, steps) in ONE_WAY.iter().chain(both_ways) {
            cases.push(Case::new(format!("{}/tcp/{}/{what}: counted off once", family.name, mode.name), move || {
                run(family, mode, steps)
            }));
        }
    }
}

/// A connection that the gateway knows only by its end is none that is open.
fn stray(family: Family, mode: Mode) -> Result<()> {
    for flags in [FIN | ACK, RST, RST | ACK] {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        for flags in [flags, ACK, flags] {
            let ran = world.run(&packet(&family, protocol::TCP, 40_000, flags).bytes())?;
            if mode.mode == mode::NAT {
                expect(&ran, "DROP", service, Outcome::UnknownFlow)?;
            } else {
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
            }
            let active = [world.active(backends[0]), world.active(backends[1])];
            ensure!(active == [0, 0], "active flows {active:?} after flags {flags:#x}");
        }
        let flow = Flow::tcp(&mut world, service, family, mode, 40_000).context("the next connection")?;
        let now = entries::newest(&world, &flow)?;
        ensure!(now.is_some_and(|(flow_state, _)| flow_state == OPENING), "state and age are {now:?}");
        ensure!(world.active(backends[0]) + world.active(backends[1]) == 1, "the next connection must count");
    }
    Ok(())
}

fn run(family: Family, mode: Mode, steps: &[Step]) -> Result<()> {
    let (mut world, service, backends) = world(&family, &mode, 0)?;
    world.set_ring(service, &backends[..1])?;
    // Another flow, so that a count too low is not cut off at zero.
    world.run(&packet(&family, protocol::TCP, 39_999, SYN).bytes())?;
    let mut flow = Flow::tcp(&mut world, service, family, mode, 40_000)?;
    for (number, (side, flags, expected)) in steps.iter().enumerate() {
        let what = || format!("step {number}, {side:?} with flags {flags:#x}");
        if *side == Server {
            flow.reply(&mut world, flow.answer(*flags)).with_context(what)?;
        } else if *flags == SYN {
            // It may come to another port than the one before.
            flow = Flow::tcp(&mut world, service, family, mode, 40_000).with_context(what)?;
        } else {
            let ran = world.run(&flow.client(*flags).bytes())?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded).with_context(what)?;
            flow.expect_at_server(&ran, flow.client(*flags)).with_context(what)?;
        }
        let now = entries::newest(&world, &flow)?.map(|(flow_state, _)| flow_state);
        ensure!(now == Some(*expected), "{}: state {now:?}, not {expected}", what());
        let active = world.active(backends[0]);
        let wanted = 1 + i64::from(state::is_active(*expected));
        ensure!(active == wanted, "{}: {active} active flows, not {wanted}", what());
    }
    Ok(())
}
