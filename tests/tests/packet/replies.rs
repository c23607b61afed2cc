//! Packets from server to client, where they pass.

use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::mode;
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, SERVER_MAC};

use super::case::Case;
use super::expect::{destination, expect, expect_frame, source_port};
use super::family::Family;
use super::mode::MODES;
use super::world::{packet, world};

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in [MODES[0], MODES[1]] {
        for number in [protocol::TCP, protocol::UDP] {
            let proto = if number == protocol::TCP { "tcp" } else { "udp" };
            cases.push(Case::new(
                format!("{}/{proto}/{}/a reply comes from the VIP", family.name, mode.name),
                move || {
                    let (mut world, service, _) = world(&family, &mode, 0)?;
                    let servers = mode.servers(&family);
                    let sent = world.run(&packet(&family, number, 40_000, SYN).bytes())?;
                    let chosen = destination(&sent, &mode, &servers)?;
                    let server = servers[chosen].addr.to_string();
                    let (dst, dport) = if mode.mode == mode::NAT {
                        (family.nat_source, source_port(&sent, &family))
                    } else {
                        (family.client, 40_000)
                    };
                    let reply = if number == protocol::TCP {
                        Frame::tcp(&server, 8080, dst, dport, SYN | ACK)
                    } else {
                        Frame::udp(&server, 8080, dst, dport)
                    };
                    let reply = reply.with(|f| f.macs = (GATEWAY_MAC, SERVER_MAC));
                    let ran = world.run(&reply.bytes())?;
                    // The client is where its packet came from: the interface of the test run.
                    expect(&ran, "TX", service, Outcome::ReplyForwarded)?;
                    let expected = reply.with(|f| {
                        f.macs = (CLIENT_MAC, GATEWAY_MAC);
                        f.src = family.vip.parse().expect("an address");
                        f.sport = 80;
                        f.dst = family.client.parse().expect("an address");
                        f.dport = 40_000;
                        f.ttl -= 1;
                    });
                    expect_frame(&ran, &expected.bytes())
                },
            ));
        }
        cases.push(Case::new(
            format!("{}/tcp/{}/a packet of the server's own is left to the kernel", family.name, mode.name),
            move || {
                let (mut world, _, _) = world(&family, &mode, 0)?;
                let dst = if mode.mode == mode::NAT { family.nat_source } else { family.client };
                let frame = Frame::tcp(family.servers[0], 8080, dst, 45_000, ACK);
                let ran = world.run(&frame.bytes())?;
                expect(&ran, "PASS", 0, Outcome::NotOurs)?;
                expect_frame(&ran, &frame.bytes())
            },
        ));
    }
}
