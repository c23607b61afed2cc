//! How flows are counted from their beginning to their end, and what becomes of them when their server fails.

use anyhow::{Context, ensure};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::expect::{destination, expect, expect_sound};
use super::family::Family;
use super::mode::Mode;
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const FIN: u8 = tcp_flag::FIN;
const RST: u8 = tcp_flag::RST;

pub fn add(cases: &mut Vec<Case>, family: Family, mode: Mode) {
    for (what, end) in [("FIN", FIN | ACK), ("RST", RST)] {
        cases.push(Case::new(
            format!("{}/tcp/{}/a client's {what} ends the flow's count once", family.name, mode.name),
            move || {
                let (mut world, service, backends) = world(&family, &mode, 0)?;
                let total = |world: &World| backends.iter().map(|id| world.active(*id)).sum::<i64>();
                for (flags, expected) in [(SYN, 1), (SYN, 1), (ACK, 1), (end, 0), (end, 0), (ACK, 0)] {
                    let ran = world.run(&packet(&family, protocol::TCP, 40_000, flags).bytes())?;
                    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                    ensure!(
                        total(&world) == expected,
                        "{} active after {flags:#x}, expected {expected}",
                        total(&world)
                    );
                }
                let ran = world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                ensure!(total(&world) == 1, "a new connection on the same ports must count");
                Ok(())
            },
        ));
    }
    cases.push(Case::new(
        format!("{}/tcp/{}/a packet in the middle of an unknown flow", family.name, mode.name),
        move || {
            let (mut world, service, _) = world(&family, &mode, 0)?;
            let ran = world.run(&packet(&family, protocol::TCP, 40_000, ACK).bytes())?;
            if mode.mode == mode::NAT {
                expect(&ran, "DROP", service, Outcome::UnknownFlow)
            } else {
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)
            }
        },
    ));
    cases.push(Case::new(
        format!("{}/tcp/{}/flows of a failed server are reset if so configured", family.name, mode.name),
        move || {
            let (mut world, service, backends) =
                world(&family, &mode, Service::RESET_ON_DOWN | Service::REFUSE_WITH_RESET)?;
            world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
            for id in &backends {
                world.change_backend(*id, |b| b.flags |= Backend::DOWN)?;
            }
            let ran = world.run(&packet(&family, protocol::TCP, 40_000, ACK).bytes())?;
            expect(&ran, "TX", service, Outcome::ServerGone)?;
            expect_sound(&ran)
        },
    ));
    cases.push(Case::new(format!("{}/udp/{}/datagrams leave a failed server", family.name, mode.name), move || {
        let (mut world, service, backends) = world(&family, &mode, 0)?;
        let servers = mode.servers(&family);
        let was = destination(&world.run(&packet(&family, protocol::UDP, 40_000, 0).bytes())?, &mode, &servers)?;
        let failed = backends.iter().position(|id| world.active(*id) == 1).context("one has the flow")?;
        world.change_backend(backends[failed], |b| b.flags |= Backend::DOWN)?;
        let ran = world.run(&packet(&family, protocol::UDP, 40_000, 0).bytes())?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        if mode.rewrites() || mode.tunnel.is_some() {
            ensure!(destination(&ran, &mode, &servers)? != was, "the flow stayed on the failed server");
        }
        let active = [world.active(backends[failed]), world.active(backends[1 - failed])];
        ensure!(active == [0, 1], "active flows {active:?}");
        Ok(())
    }));
}
