//! What is not ours is passed on untouched, and tags of VLANs are kept apart from what is.

use anyhow::{Context, ensure};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_tests::frames::frame::{Frame, GATEWAY_MAC, SERVER_MAC, Transport};
use loadbalancer_tests::frames::verify::verify;
use loadbalancer_tests::frames::world::World;

use super::case::Case;
use super::expect::{expect, expect_frame};
use super::family::Family;
use super::mode::MODES;
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    let frames: Vec<(&str, Frame)> = vec![
        ("another address", Frame::tcp(family.client, 40_000, family.other, 80, SYN)),
        ("another port", Frame::tcp(family.client, 40_000, family.vip, 81, SYN)),
        ("another address by UDP", Frame::udp(family.client, 40_000, family.other, 80)),
        (
            "a protocol without ports",
            Frame::udp(family.client, 0, family.vip, 0).with(|f| f.transport = Transport::Raw(47)),
        ),
        (
            "echo to another address",
            Frame::icmp(family.client, family.other, if family.name == "v6" { 128 } else { 8 }, 0, 1),
        ),
    ];
    for (what, frame) in frames {
        cases.push(Case::new(format!("{}/{what} is left to the kernel", family.name), move || {
            let (mut world, _, _) = world(&family, &MODES[0], 0)?;
            let ran = world.run(&frame.bytes())?;
            expect(&ran, "PASS", 0, Outcome::NotOurs)?;
            expect_frame(&ran, &frame.bytes())
        }));
    }
    cases.push(Case::new(format!("{}/truncated at every byte up to the payload", family.name), move || {
        for number in [protocol::TCP, protocol::UDP] {
            let (mut world, service, _) = world(&family, &MODES[2], 0)?;
            let whole = packet(&family, number, 40_000, SYN).bytes();
            for length in 14..whole.len() {
                let ran = world.run(&whole[..length])?;
                // The IP header says how long the packet is; anything shorter is not for us to judge.
                expect(&ran, "PASS", 0, Outcome::Malformed).with_context(|| format!("{length} bytes"))?;
                expect_frame(&ran, &whole[..length])?;
            }
            let ran = world.run(&whole)?;
            expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        }
        Ok(())
    }));
    cases.push(Case::new(format!("{}/VLAN and QinQ tags are taken off and put on", family.name), move || {
        for mode in MODES {
            for arrives in [vec![], vec![100u16], vec![200, 100]] {
                for leaves in [vec![], vec![300u16], vec![400, 300]] {
                    let mut world = World::new()?;
                    let servers = mode.servers(&family).map(|s| s.with(|s| s.tags.clone_from(&leaves)));
                    let (service, _) = world.service(mode.mode, 0, &[(family.vip, 80, protocol::TCP)], &servers)?;
                    let frame = packet(&family, protocol::TCP, 40_000, SYN).with(|f| f.tags.clone_from(&arrives));
                    let ran = world.run(&frame.bytes())?;
                    let what = || format!("{} {arrives:?} {leaves:?}", mode.name);
                    expect(&ran, "REDIRECT", service, Outcome::Forwarded).with_context(what)?;
                    let tags = leaves.len() * 4;
                    verify(&ran.frame[14 + tags..]).map_err(|e| anyhow::anyhow!(e)).with_context(what)?;
                    let v6 = mode.tunnel.map_or(family.name == "v6", |(_, v6)| v6);
                    let link = loadbalancer_tests::frames::frame::link(
                        (SERVER_MAC, GATEWAY_MAC),
                        &leaves,
                        if v6 { 0x86dd } else { 0x0800 },
                    );
                    ensure!(ran.frame[..14 + tags] == link, "{}: link {:02x?}", what(), &ran.frame[..14 + tags]);
                }
            }
        }
        Ok(())
    }));
}
