//! Sound frames of every mode, family and kind, to begin with.

use anyhow::{Context, Result};
use loadbalancer_common::net::{protocol, tcp_flag};
use loadbalancer_common::path::encap;
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::{Frame, SERVER_MAC, Transport};
use loadbalancer_tests::frames::world::{NAT_SOURCE4, NAT_SOURCE6, Server, World};

use super::random::Random;

/// A mode, and how it is set up.
struct Setup {
    name: &'static str,
    mode: u8,
    flags: u8,
    encap: u8,
    /// Family of the servers; none: that of the packets.
    outer_v6: Option<bool>,
    any_port: bool,
}

const SETUPS: [Setup; 9] = [
    Setup { name: "nat", mode: mode::NAT, flags: 0, encap: encap::NONE, outer_v6: None, any_port: false },
    Setup {
        name: "nat-client",
        mode: mode::NAT,
        flags: Service::CLIENT_AFFINITY | Service::REFUSE_WITH_RESET,
        encap: encap::NONE,
        outer_v6: None,
        any_port: true,
    },
    Setup {
        name: "dnat",
        mode: mode::DNAT,
        flags: Service::REFUSE_WITH_RESET,
        encap: encap::NONE,
        outer_v6: None,
        any_port: false,
    },
    Setup { name: "l2", mode: mode::DSR, flags: 0, encap: encap::NONE, outer_v6: None, any_port: true },
    Setup {
        name: "ipip4",
        mode: mode::DSR,
        flags: Service::REFUSE_WITH_RESET,
        encap: encap::IPV4,
        outer_v6: Some(false),
        any_port: false,
    },
    Setup {
        name: "ipip6",
        mode: mode::DSR,
        flags: Service::CLIENT_AFFINITY,
        encap: encap::IPV6,
        outer_v6: Some(true),
        any_port: false,
    },
    Setup { name: "gue4", mode: mode::DSR, flags: 0, encap: encap::GUE_IPV4, outer_v6: Some(false), any_port: false },
    Setup { name: "gue6", mode: mode::DSR, flags: 0, encap: encap::GUE_IPV6, outer_v6: Some(true), any_port: false },
    Setup {
        name: "full",
        mode: mode::DSR,
        flags: Service::REFUSE_WITH_RESET,
        encap: encap::IPV4,
        outer_v6: Some(false),
        any_port: false,
    },
];

/// A flow that no frame of the corpus belongs to: its packets, and what they become.
pub struct Victim {
    pub name: String,
    pub packets: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A service of the corpus.
struct Target {
    name: String,
    vip: String,
    v6: bool,
    id: u16,
    backends: Vec<u16>,
}

pub struct Corpus {
    frames: Vec<Vec<u8>>,
    targets: Vec<Target>,
}

fn address(v6: bool, block: u8, number: u8) -> String {
    if v6 { format!("2001:db8:{block}::{number:x}") } else { format!("10.{block}.0.{number}") }
}

impl Corpus {
    /// Sets up a service for each mode and family, and gathers frames for all of them.
    pub fn new(world: &mut World) -> Result<Self> {
        let mut corpus = Self { frames: Vec::new(), targets: Vec::new() };
        for (number, setup) in SETUPS.iter().enumerate() {
            for v6 in [false, true] {
                let number = number as u8 + 1;
                let vip = address(v6, 200, number);
                let server_v6 = setup.outer_v6.unwrap_or(v6);
                let servers: Vec<Server> = (1..=3)
                    .map(|server| {
                        Server::at(&address(server_v6, number, server + if v6 { 100 } else { 0 })).with(|it| {
                            it.encap = setup.encap;
                            // Longer than a page, which the kernel hands over in parts.
                            it.mtu = if setup.name == "l2" { 9_000 } else { 1_500 };
                            it.high_water = if setup.name == "full" { 2 } else { u32::MAX };
                            it.port = if setup.mode == mode::DSR || setup.any_port { 0 } else { 8080 };
                        })
                    })
                    .collect();
                let port = if setup.any_port { 0 } else { 80 };
                let listen = [(vip.as_str(), port, protocol::TCP), (vip.as_str(), port, protocol::UDP)];
                let set_up = world.service(setup.mode, setup.flags, &listen, &servers);
                let (id, backends) = set_up.with_context(|| setup.name.to_owned())?;
                corpus.gather(&vip, v6, &servers);
                corpus.targets.push(Target { name: setup.name.to_owned(), vip, v6, id, backends });
            }
        }
        Ok(corpus)
    }

    pub fn pick(&self, random: &mut Random) -> Vec<u8> {
        self.frames[random.below(self.frames.len())].clone()
    }

    fn gather(&mut self, vip: &str, v6: bool, servers: &[Server]) {
        let source = if v6 { NAT_SOURCE6 } else { NAT_SOURCE4 };
        let (syn, ack, fin, rst) = (tcp_flag::SYN, tcp_flag::ACK, tcp_flag::FIN, tcp_flag::RST);
        let mut add = |frame: Frame| self.frames.push(frame.bytes());
        for client in 1..=4 {
            let client = address(v6, 100, client);
            for port in 40_000..40_004 {
                for flags in [syn, ack, ack | fin, rst, rst | ack] {
                    add(Frame::tcp(&client, port, vip, 80, flags));
                }
                add(Frame::udp(&client, port, vip, 80));
                add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.tags = vec![5]));
                add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.tags = vec![5, 6]));
                add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.payload = vec![3; 1_470]));
                if port == 40_000 {
                    add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.payload = vec![4; 6_000]));
                }
                add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.ttl = 1));
                add(Frame::udp(&client, port, vip, 80).with(|f| f.transport = Transport::Udp { checksum: false }));
                let id = u32::from(port);
                add(Frame::udp(&client, port, vip, 80).with(|f| {
                    f.fragment = Some((0, true, id));
                    f.payload = vec![1; 200];
                }));
                add(Frame::udp(&client, 0, vip, 0).with(|f| {
                    f.fragment = Some((26, false, id));
                    f.transport = Transport::Raw(protocol::UDP);
                }));
                for extension in [protocol::HOP_BY_HOP, protocol::DESTINATION_OPTIONS, protocol::ROUTING] {
                    if v6 {
                        let f = Frame::tcp(&client, port, vip, 80, ack);
                        add(f.with(|f| f.extensions = vec![(extension, vec![0, 1, 4, 0, 0, 0, 0])]));
                    }
                }
                if !v6 {
                    add(Frame::tcp(&client, port, vip, 80, ack).with(|f| f.options = vec![1; 12]));
                }
                // Replies: to the source of `nat`, and to the client.
                for server in servers {
                    let server = server.addr.to_string();
                    if server.contains(':') == v6 {
                        add(Frame::tcp(&server, 8080, source, port - 20_000, ack));
                        add(Frame::tcp(&server, 8080, &client, port, syn | ack));
                        add(Frame::udp(&server, 8080, &client, port));
                    }
                }
            }
            let (echo, unreachable, too_big) = if v6 { (128, 1, 2) } else { (8, 3, 3) };
            add(Frame::icmp(&client, vip, echo, 0, 7));
            // Errors about packets that servers have sent.
            for kind in [unreachable, too_big] {
                let quoted = Frame::tcp(vip, 80, &client, 40_000, ack).bytes()[14..].to_vec();
                let code = if kind == 3 { 4 } else { 0 };
                add(Frame::icmp(&client, vip, kind, code, 1_280).with(|f| f.payload = quoted));
                let quoted = Frame::tcp(source, 20_000, &servers[0].addr.to_string(), 8080, ack);
                if servers[0].addr.is_ipv6() == v6 {
                    let f = Frame::icmp(&servers[0].addr.to_string(), source, kind, code, 1_280);
                    add(f.with(|f| f.payload = quoted.bytes()[14..].to_vec()));
                }
            }
        }
    }

    /// Opens a flow of another client to each service, and notes what its packets become.
    ///
    /// Then takes the flow's server out of the service's ring: from there on only the flow's own entry leads to it.
    pub fn victims(&self, world: &mut World) -> Result<Vec<Victim>> {
        let mut victims = Vec::new();
        for Target { name, vip, v6, id, backends } in &self.targets {
            let client = if *v6 { "2001:db8:ffff::77".to_owned() } else { "203.0.113.77".to_owned() };
            let counted = backends.iter().map(|backend| world.packets(*backend)).collect::<Result<Vec<_>>>()?;
            world.run(&Frame::tcp(&client, 1_234, vip, 80, tcp_flag::SYN).bytes())?;
            let packet = Frame::tcp(&client, 1_234, vip, 80, tcp_flag::ACK).bytes();
            // Twice: the first makes the flow established.
            world.run(&packet)?;
            let ran = world.run(&packet)?;
            anyhow::ensure!(ran.action == "REDIRECT", "{name}: {ran:?}");
            let mut packets = vec![(packet, ran.frame.clone())];
            if name.starts_with("nat") {
                // What answers the translated packet.
                let reply = swapped(&ran.frame, *v6);
                let ran = world.run(&reply)?;
                anyhow::ensure!(ran.action == "TX", "{name}: {ran:?}");
                packets.push((reply, ran.frame));
            }
            victims.push(Victim { name: format!("{name} {vip}"), packets });
            let mut others = Vec::new();
            for (backend, before) in backends.iter().zip(counted) {
                if world.packets(*backend)? == before {
                    others.push(*backend);
                }
            }
            anyhow::ensure!(others.len() + 1 == backends.len(), "{name}: the flow did not stay on one server");
            world.set_ring(*id, &others)?;
        }
        Ok(victims)
    }
}

/// A TCP packet from where this one goes to. Sums stay as they are when sides are swapped.
fn swapped(frame: &[u8], v6: bool) -> Vec<u8> {
    let mut reply = frame.to_vec();
    let (address, length, ports) = if v6 { (22, 16, 54) } else { (26, 4, 34) };
    reply[address..address + length].copy_from_slice(&frame[address + length..address + 2 * length]);
    reply[address + length..address + 2 * length].copy_from_slice(&frame[address..address + length]);
    reply[ports..ports + 2].copy_from_slice(&frame[ports + 2..ports + 4]);
    reply[ports + 2..ports + 4].copy_from_slice(&frame[ports..ports + 2]);
    reply[6..12].copy_from_slice(&SERVER_MAC);
    reply
}
