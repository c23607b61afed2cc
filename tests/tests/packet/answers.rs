//! What the packet path answers by itself.

use anyhow::ensure;
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::path::encap;
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC};
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::expect::{expect, expect_frame, expect_sound};
use super::family::Family;
use super::mode::MODES;
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    let v6 = family.name == "v6";
    cases.push(Case::new(format!("{}/icmp/echo to a VIP is answered", family.name), move || {
        let (mut world, service, _) = world(&family, &MODES[2], 0)?;
        let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
        let frame = Frame::icmp(family.client, family.vip, request, 0, 0x0102_0003).with(|f| f.ttl = 7);
        let ran = world.run(&frame.bytes())?;
        expect(&ran, "TX", service, Outcome::EchoAnswered)?;
        let expected = Frame::icmp(family.vip, family.client, reply, 0, 0x0102_0003).with(|f| {
            f.macs = (CLIENT_MAC, GATEWAY_MAC);
        });
        expect_frame(&ran, &expected.bytes())
    }));
    cases.push(Case::new(
        format!("{}/icmp/an echo of nothing but zeros has a right checksum", family.name),
        move || {
            let (mut world, service, _) = world(&family, &MODES[2], 0)?;
            let request = if v6 { 128 } else { 8 };
            let frame = Frame::icmp(family.client, family.vip, request, 0, 0).with(|f| f.payload = vec![0; 32]);
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "TX", service, Outcome::EchoAnswered)?;
            expect_sound(&ran)
        },
    ));
    for mode in MODES {
        cases.push(Case::new(format!("{}/tcp/{}/hop limit spent is answered", family.name, mode.name), move || {
            let (mut world, service, _) = world(&family, &mode, 0)?;
            let frame = packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.ttl = 1);
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "TX", service, Outcome::TtlAnswered)?;
            expect_sound(&ran)?;
            let at = if v6 { 54 } else { 34 };
            ensure!(ran.frame[at] == if v6 { 3 } else { 11 }, "type {}", ran.frame[at]);
            Ok(())
        }));
        cases.push(Case::new(
            format!("{}/tcp/{}/too big is answered with the size that fits", family.name, mode.name),
            move || {
                let mut world = World::new()?;
                let servers = mode.servers(&family).map(|s| s.with(|s| s.mtu = 1400));
                let (service, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
                world.run(&packet(&family, protocol::TCP, 40_000, SYN).bytes())?;
                let fits = 1400 - mode.tunnel.map_or(0, |(encap, _)| encap::overhead(encap) as usize);
                let header = if v6 { 60 } else { 40 };
                let frame = packet(&family, protocol::TCP, 40_000, ACK).with(|f| f.payload = vec![7; fits - header]);
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
                let frame = frame.with(|f| f.payload.push(7));
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "TX", service, Outcome::TooBigAnswered)?;
                expect_sound(&ran)?;
                let at = if v6 { 54 } else { 34 };
                let told = u16::from_be_bytes([ran.frame[at + 6], ran.frame[at + 7]]) as usize;
                ensure!(told == fits, "told {told}, {fits} fit");
                ensure!(ran.frame[at..at + 2] == if v6 { [2, 0] } else { [3, 4] }, "kind {:?}", &ran.frame[at..at + 2]);
                ensure!(ran.frame[at + 8..] == frame.packet()[..512], "does not quote the packet");
                Ok(())
            },
        ));
    }
}
