//! Frames that the controller gives back: each leaves for the server that its ticket names as if it had come just now, or
//! its place there is given back.

use anyhow::{Context, Result, ensure};
use loadbalancer_common::backend::Backend;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{Held, TICKET, Ticket};
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::frames::frame::{CLIENT_MAC, Frame, GATEWAY_MAC, link};
use loadbalancer_tests::frames::verify::verify;
use loadbalancer_tests::frames::world::{EGRESS, INGRESS, Leases, Ran, Server};

use super::case::Case;
use super::entries;
use super::expect::{expect, expect_frame};
use super::family::Family;
use super::flow::{Flow, same};
use super::mode::{MODES, Mode};
use super::queue::frames::{PROTOCOLS, TAGS};
use super::queue::gateway::{Gateway, later, only_flow};
use super::signals;
use super::world::packet;

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;

/// The interface by which clients' frames came. It need not exist.
const CLIENTS: u32 = 78;

pub fn add(cases: &mut Vec<Case>, family: Family) {
    for mode in MODES {
        let mut case = |what: &str, test: fn(Family, Mode) -> Result<()>| {
            cases.push(Case::new(format!("{}/{}/ticket: {what}", family.name, mode.name), move || test(family, mode)));
        };
        case("the first packet leaves as any other does", as_any_other);
        case("the flow stays on its server, and is counted once", followed);
        case("the flow is watched from its release on", watched);
        case("the client goes along to the server", client_goes_along);
        case("a server that takes no flows any more gives its place back", not_accepted);
        case("a frame that waits again is not challenged", not_challenged);
        case("a service that is gone gives the place back", service_gone);
        case("a flow that found a server meanwhile gives the place back", found_meanwhile);
        case("an entry of an older flow is replaced", older_flow);
        case("a refusal goes back where the client is", refused);
        case("errors about it go back where the client is", errors);
        case("a place that is given back at the mark wakes the controller", room);
        case("nobody else has tickets", others);
        case("what is no whole ticket is the kernel's", truncated);
        case("a ticket without a packet gives the place back", no_packet);
        case("the next frame has no ticket", forgotten);
        if mode.rewrites() {
            case("replies go where the first packet came from", replies);
        }
        if mode.mode == mode::NAT {
            case("without a free port the place is given back", no_port);
        }
    }
}

fn with_ticket(ticket: Ticket, frame: &[u8]) -> Vec<u8> {
    [bytemuck::bytes_of(&ticket), frame].concat()
}

impl Gateway {
    /// Of a server by its position; none: the flow is refused.
    fn ticket(&self, server: Option<usize>) -> Ticket {
        Ticket {
            ethertype: Be16::new(TICKET),
            backend: server.map_or(0, |server| self.backends[server]),
            ifindex: CLIENTS,
            service: self.service,
            ..Ticket::default()
        }
    }

    /// Counts a flow at a server, as the controller does before it gives the frame back.
    fn take_place(&self, server: usize) {
        let id = self.backends[server];
        self.world.set_active(id, self.world.active(id) as u64 + 1);
    }

    /// Runs bytes as they come in by the prober's interface.
    fn by_prober(&mut self, bytes: &[u8]) -> Result<Ran> {
        self.world.change_settings(|settings| settings.prober = INGRESS)?;
        let ran = self.world.run(bytes)?;
        self.world.change_settings(|settings| settings.prober = 0)?;
        Ok(ran)
    }

    /// Gives a frame back for the second server, where it takes a place before.
    fn give_back(&mut self, frame: &Frame) -> Result<Ran> {
        self.take_place(1);
        self.by_prober(&with_ticket(self.ticket(Some(1)), &frame.bytes()))
    }

    /// The same with a frame that must leave for that server.
    fn release(&mut self, first: Frame) -> Result<Flow> {
        let before = self.packets()?;
        let ran = self.give_back(&first)?;
        expect(&ran, "REDIRECT", self.service, Outcome::Forwarded)?;
        let after = self.packets()?;
        ensure!(after == [before[0], before[1] + 1], "packets of servers: {before:?}, then {after:?}");
        let flow = Flow::opened(&ran, self.service, self.family, self.mode, first.clone())?;
        flow.expect_at_server(&ran, first)?;
        Ok(flow)
    }

    /// New flows go to the first server only.
    fn with_room_at_first(family: Family, mode: Mode, flags: u8) -> Result<Self> {
        let mut gateway = Self::new(family, mode, flags)?;
        gateway.world.set_ring(gateway.service, &gateway.backends[..1])?;
        Ok(gateway)
    }

    fn expect_active(&self, expected: [i64; 2]) -> Result<()> {
        ensure!(self.active() == expected, "active flows {:?}, not {expected:?}", self.active());
        Ok(())
    }

    /// No ticket is left for frames that come after, whose interface it would change.
    fn expect_forgotten(&mut self) -> Result<()> {
        self.waiting();
        self.world.records()?;
        let frame = self.packet(protocol::TCP, 50_000, SYN);
        self.expect(&frame, "DROP", Outcome::Queued)?;
        only_flow(&self.world, self.held(&frame), &frame.bytes()).context("the next frame")?;
        Ok(())
    }
}

fn as_any_other(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (tags, tos) in [(TAGS[0], 0), (TAGS[1], 0xb9), (TAGS[2], 0x02)] {
            let first = packet(&family, number, 40_000, SYN).with(|f| {
                (f.tags, f.tos) = (tags.to_vec(), tos);
                f.payload = vec![9; 77];
            });
            let usual = {
                let mut gateway = Gateway::new(family, mode, 0)?;
                gateway.world.set_ring(gateway.service, &gateway.backends[1..])?;
                let ran = gateway.run(&first)?;
                expect(&ran, "REDIRECT", gateway.service, Outcome::Forwarded)?;
                ran
            };
            // Neither marks nor leases matter any more: the controller has looked at them.
            for is_waiting in [false, true] {
                let mut gateway = Gateway::full(family, mode, 0)?;
                if is_waiting {
                    gateway.waiting();
                }
                gateway.release(first.clone())?;
                gateway.expect_no_record()?;
                gateway.expect_forgotten()?;
            }
            let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
            let ran = gateway.give_back(&first)?;
            // `nat` takes the next port; that of the usual one stands in the expected frame, as checked above.
            if mode.mode == mode::NAT {
                ensure!(ran.frame[..14] == usual.frame[..14] && ran.frame.len() == usual.frame.len(), "link header");
            } else {
                expect_frame(&ran, &usual.frame).with_context(|| format!("protocol {number}, tags {tags:?}"))?;
            }
        }
    }
    Ok(())
}

fn followed(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        let flows = gateway.flows()?;
        let first = gateway.packet(number, 40_000, SYN);
        let flow = gateway.release(first)?;
        gateway.expect_active([0, 1])?;
        gateway.waiting();
        let packets = gateway.packets()?;
        for flags in [SYN, ACK, ACK] {
            flow.send(&mut gateway.world, flow.client(flags))?;
        }
        ensure!(gateway.packets()? == [packets[0], packets[1] + 3], "the flow has left its server");
        let counted = gateway.flows()?;
        ensure!(counted == [flows[0], flows[1] + 1], "flows of servers: {flows:?}, then {counted:?}");
        gateway.expect_active([0, 1])?;
        if number == protocol::TCP {
            flow.send(&mut gateway.world, flow.client(RST))?;
            gateway.expect_active([0, 0])?;
        }
        gateway.expect_no_record()?;
    }
    Ok(())
}

fn watched(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
    signals::forget(&gateway.world)?;
    let first = gateway.packet(protocol::TCP, 40_000, SYN);
    let flow = gateway.release(first)?;
    if mode.rewrites() {
        gateway.expect(&flow.answer(SYN | ACK), "REDIRECT", Outcome::ReplyForwarded)?;
    }
    flow.send(&mut gateway.world, flow.client(ACK))?;
    for (server, wanted) in [(0, 0), (1, 1)] {
        let handshakes: u32 =
            signals::signals(&gateway.world, gateway.backends[server], 0).handshakes.buckets.iter().sum();
        ensure!(handshakes == wanted, "{handshakes} handshakes at server {server}, not {wanted}");
    }
    Ok(())
}

fn replies(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for tags in TAGS {
            for (ifindex, action) in [(CLIENTS, "REDIRECT"), (INGRESS, "TX")] {
                let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
                let first = packet(&family, number, 40_000, SYN).with(|f| f.tags = tags.to_vec());
                gateway.take_place(1);
                let ticket = Ticket { ifindex, ..gateway.ticket(Some(1)) };
                let ran = gateway.by_prober(&with_ticket(ticket, &first.bytes()))?;
                expect(&ran, "REDIRECT", gateway.service, Outcome::Forwarded)?;
                let flow = Flow::opened(&ran, gateway.service, family, mode, first)?;
                let mut hop = None;
                entries::change_last_hop(&gateway.world, &flow, |last_hop| hop = Some(*last_hop))?;
                let hop = hop.context("a last hop")?;
                ensure!(hop.ifindex == ifindex && hop.mtu == 0, "{hop:?}");
                for flags in [SYN | ACK, ACK] {
                    let answer = flow.answer(flags);
                    let ran = gateway.world.run(&answer.bytes())?;
                    expect(&ran, action, gateway.service, Outcome::ReplyForwarded)?;
                    same(&ran.frame, &flow.at_client(answer).bytes()).with_context(|| format!("tags {tags:?}"))?;
                }
                if number == protocol::TCP {
                    gateway.world.run(&flow.answer(RST).bytes())?;
                    gateway.expect_active([0, 0])?;
                }
            }
        }
    }
    Ok(())
}

fn client_goes_along(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for (flags, next_server) in [(Service::CLIENT_AFFINITY, 1), (0, 0)] {
            for had_another in [false, true] {
                let mut gateway = Gateway::with_room_at_first(family, mode, flags)?;
                let service = gateway.service;
                if had_another {
                    let first = gateway.packet(number, 39_999, SYN);
                    Flow::open(&mut gateway.world, service, family, mode, first)?;
                }
                let first = gateway.packet(number, 40_000, SYN);
                gateway.release(first)?;
                let before = gateway.active();
                let next = gateway.packet(number, 40_001, SYN);
                Flow::open(&mut gateway.world, service, family, mode, next)?;
                let mut expected = before;
                expected[next_server] += 1;
                gateway
                    .expect_active(expected)
                    .with_context(|| format!("protocol {number}, flags {flags}, another before: {had_another}"))?;
            }
        }
    }
    Ok(())
}

fn not_accepted(family: Family, mode: Mode) -> Result<()> {
    const STATES: [u16; 5] = [
        Backend::PRESENT,
        Backend::PRESENT | Backend::DRAINED,
        Backend::PRESENT | Backend::DOWN,
        Backend::PRESENT | Backend::DOWN | Backend::ACCEPTS,
        0,
    ];
    for number in PROTOCOLS {
        for tags in TAGS {
            for flags in STATES {
                let mut gateway = Gateway::with_room_at_first(family, mode, Service::REFUSE_WITH_RESET)?;
                gateway.world.change_backend(gateway.backends[1], |b| b.flags = flags | b.flags & Backend::IPV6)?;
                gateway.waiting();
                let flows = gateway.flows()?;
                let frame = gateway.packet(number, 40_000, SYN).with(|f| f.tags = tags.to_vec());
                let ran = gateway.give_back(&frame)?;
                expect(&ran, "DROP", gateway.service, Outcome::Queued).with_context(|| format!("flags {flags:#x}"))?;
                let held = Held { ifindex: CLIENTS, ..gateway.held(&frame) };
                only_flow(&gateway.world, held, &frame.bytes())?;
                gateway.expect_active([0, 0])?;
                gateway.expect_no_entry()?;
                ensure!(gateway.flows()? == flows, "a waiting flow is counted");
                gateway.expect_forgotten()?;
            }
        }
    }
    Ok(())
}

/// Its client would not know why, and would lose its place.
fn not_challenged(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
    gateway.world.change_backend(gateway.backends[1], |b| b.flags &= !Backend::ACCEPTS)?;
    gateway.lease(Leases { queue: later(), waiting: later(), challenge: true });
    let frame = gateway.packet(protocol::TCP, 40_000, SYN);
    let ran = gateway.give_back(&frame)?;
    expect(&ran, "DROP", gateway.service, Outcome::Queued)?;
    only_flow(&gateway.world, Held { ifindex: CLIENTS, ..gateway.held(&frame) }, &frame.bytes())?;
    gateway.expect_active([0, 0])
}

fn service_gone(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let mut gateway = Gateway::with_room_at_first(family, mode, Service::REFUSE_WITH_RESET)?;
        let listen = [(family.other, 80, number)];
        let (other, _) = gateway.world.service(mode.mode, 0, &listen, &[Server::at(family.servers[0])])?;
        let own = gateway.service;
        let nowhere = if family.name == "v6" { "2001:db8::98" } else { "192.0.2.98" };
        // An address of no service, and each service's with the other's ticket.
        for (service, vip) in [(own, nowhere), (own, family.other), (other, family.vip)] {
            gateway.take_place(1);
            let frame = gateway.packet(number, 40_000, SYN).with(|f| f.dst = vip.parse().expect("an address"));
            let ticket = Ticket { service, ..gateway.ticket(Some(1)) };
            let ran = gateway.by_prober(&with_ticket(ticket, &frame.bytes()))?;
            expect(&ran, "DROP", service, Outcome::NoServer).with_context(|| format!("{vip}, service {service}"))?;
            gateway.expect_active([0, 0])?;
            // Nor is it refused there, as nobody knows how.
            let ticket = Ticket { service, ..gateway.ticket(None) };
            let ran = gateway.by_prober(&with_ticket(ticket, &frame.bytes()))?;
            expect(&ran, "DROP", service, Outcome::NoServer)?;
            gateway.expect_active([0, 0])?;
        }
        gateway.expect_no_entry()?;
        gateway.expect_no_record()?;
        gateway.expect_forgotten()?;
    }
    Ok(())
}

fn found_meanwhile(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        let (service, first) = (gateway.service, gateway.packet(number, 40_000, SYN));
        let flow = Flow::open(&mut gateway.world, service, family, mode, first.clone())?;
        let (flows, packets) = (gateway.flows()?, gateway.packets()?);
        let ran = gateway.give_back(&first)?;
        expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
        flow.expect_at_server(&ran, first)?;
        ensure!(gateway.packets()? == [packets[0] + 1, packets[1]], "it went to the other server");
        ensure!(gateway.flows()? == flows, "the flow is counted twice");
        gateway.expect_active([1, 0])?;
        flow.send(&mut gateway.world, flow.client(ACK))?;
        gateway.expect_active([1, 0])?;
        gateway.expect_forgotten()?;
    }
    Ok(())
}

fn older_flow(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for is_down in [true, false] {
            let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
            let (service, first) = (gateway.service, gateway.packet(number, 40_000, SYN));
            let flow = Flow::open(&mut gateway.world, service, family, mode, first.clone())?;
            if is_down {
                gateway.world.change_backend(gateway.backends[0], |b| b.flags |= Backend::DOWN)?;
            } else if number == protocol::TCP {
                flow.send(&mut gateway.world, flow.client(RST))?;
            } else {
                continue;
            }
            let flows = gateway.flows()?;
            let flow = gateway.release(first)?;
            gateway.expect_active([0, 1])?;
            ensure!(gateway.flows()? == [flows[0], flows[1] + 1], "flows {:?}", gateway.flows()?);
            let packets = gateway.packets()?;
            flow.send(&mut gateway.world, flow.client(ACK))?;
            ensure!(gateway.packets()? == [packets[0], packets[1] + 1], "the flow has left its server");
        }
    }
    Ok(())
}

fn refused(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        for tags in TAGS {
            for (flags, usual_action, action) in [(0, "DROP", "DROP"), (Service::REFUSE_WITH_RESET, "TX", "REDIRECT")] {
                let frame = packet(&family, number, 40_000, SYN).with(|f| f.tags = tags.to_vec());
                let mut gateway = Gateway::with_room_at_first(family, mode, flags)?;
                let ticket = gateway.ticket(None);
                let ran = gateway.by_prober(&with_ticket(ticket, &frame.bytes()))?;
                expect(&ran, action, gateway.service, Outcome::QueueRefused)?;
                gateway.expect_active([0, 0])?;
                gateway.expect_no_entry()?;
                gateway.world.set_ring(gateway.service, &[])?;
                let usual = gateway.run(&frame)?;
                expect(&usual, usual_action, gateway.service, Outcome::NoServer)?;
                if action == "REDIRECT" {
                    expect_frame(&ran, &usual.frame).with_context(|| format!("protocol {number}, tags {tags:?}"))?;
                }
                gateway.expect_forgotten()?;
            }
        }
    }
    Ok(())
}

/// Time to live spent, and too big for the way to the server.
fn errors(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        let old = packet(&family, number, 40_000, SYN).with(|f| f.ttl = 1);
        let big = packet(&family, number, 40_001, SYN).with(|f| f.payload = vec![7; 1_400]);
        let path =
            gateway.world.kernel().maps.backends.get(&gateway.backends[1].into())?.context("it is there")?.paths[0];
        let mut narrow = gateway.world.kernel().maps.paths.get(&path)?.context("it is there")?;
        narrow.mtu = 1_300;
        gateway.world.kernel().maps.paths.set(&path, &narrow)?;
        for (frame, outcome) in [(old, Outcome::TtlAnswered), (big, Outcome::TooBigAnswered)] {
            let ran = gateway.give_back(&frame)?;
            expect(&ran, "REDIRECT", gateway.service, outcome)?;
            let ethertype = u16::from_be_bytes([ran.frame[12], ran.frame[13]]);
            same(&ran.frame[..14], &link((CLIENT_MAC, GATEWAY_MAC), &[], ethertype))?;
            verify(&ran.frame[14..]).map_err(anyhow::Error::msg)?;
        }
        gateway.expect_forgotten()?;
    }
    Ok(())
}

fn room(family: Family, mode: Mode) -> Result<()> {
    for (is_waiting, records) in [(true, 1), (false, 0)] {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        gateway.world.change_backend(gateway.backends[1], |b| b.high_water = 1)?;
        if is_waiting {
            gateway.waiting();
        }
        let frame = gateway.packet(protocol::TCP, 40_000, SYN);
        gateway.take_place(1);
        let ticket = Ticket { service: gateway.service + 1, ..gateway.ticket(Some(1)) };
        gateway.by_prober(&with_ticket(ticket, &frame.bytes()))?;
        gateway.expect_active([0, 0])?;
        let lengths: Vec<usize> = gateway.world.records()?.iter().map(Vec::len).collect();
        ensure!(lengths == vec![8; records], "records of {lengths:?} bytes");
    }
    Ok(())
}

fn others(family: Family, mode: Mode) -> Result<()> {
    for prober in [0, EGRESS] {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        gateway.world.change_settings(|settings| settings.prober = prober)?;
        gateway.take_place(1);
        for number in PROTOCOLS {
            for server in [Some(1), None] {
                let bytes = with_ticket(gateway.ticket(server), &gateway.packet(number, 40_000, SYN).bytes());
                let ran = gateway.world.run(&bytes)?;
                expect(&ran, "PASS", 0, Outcome::NotIp)?;
                expect_frame(&ran, &bytes)?;
            }
        }
        gateway.expect_active([0, 1])?;
        gateway.expect_no_entry()?;
        gateway.expect_forgotten()?;
    }
    Ok(())
}

fn truncated(family: Family, mode: Mode) -> Result<()> {
    let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
    gateway.take_place(1);
    let ticket = with_ticket(gateway.ticket(Some(1)), &[]);
    for length in 14..ticket.len() {
        let ran = gateway.by_prober(&ticket[..length])?;
        expect(&ran, "PASS", 0, Outcome::NotIp)?;
        expect_frame(&ran, &ticket[..length])?;
    }
    gateway.expect_active([0, 1])?;
    gateway.expect_forgotten()
}

fn no_packet(family: Family, mode: Mode) -> Result<()> {
    let frame = packet(&family, protocol::TCP, 40_000, SYN).bytes();
    let mut arp = frame.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    let cuts = [0, 1, 13, 14, 15, 33, frame.len() - 1];
    for bytes in cuts.iter().map(|length| &frame[..*length]).chain([&arp[..]]) {
        for server in [Some(1), None] {
            let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
            if server.is_some() {
                gateway.take_place(1);
            }
            let ran = gateway.by_prober(&with_ticket(gateway.ticket(server), bytes))?;
            expect(&ran, "DROP", gateway.service, Outcome::Internal)
                .with_context(|| format!("{} bytes", bytes.len()))?;
            gateway.expect_active([0, 0])?;
            gateway.expect_no_entry()?;
            gateway.expect_forgotten().with_context(|| format!("{} bytes", bytes.len()))?;
        }
    }
    Ok(())
}

/// Probes come by the same interface.
fn forgotten(family: Family, mode: Mode) -> Result<()> {
    let (mut world, service, backends) = super::probes::probed(&family, &mode, protocol::TCP, 0, INGRESS)?;
    let first = packet(&family, protocol::TCP, 40_000, SYN);
    world.set_active(backends[0], 1);
    let ticket =
        Ticket { ethertype: Be16::new(TICKET), backend: backends[0], ifindex: CLIENTS, service, ..Ticket::default() };
    let ran = world.run(&with_ticket(ticket, &first.bytes()))?;
    expect(&ran, "REDIRECT", service, Outcome::Forwarded)?;
    let flows = world.flows(backends[1])?;
    let probe = packet(&family, protocol::TCP, super::probes::PORTS[1], SYN);
    super::probes::reaches(&mut world, &mode, &family, service, &probe, 1)?;
    ensure!(world.active(backends[1]) == 0 && world.flows(backends[1])? == flows, "a probe is taken for a flow");
    Ok(())
}

fn no_port(family: Family, mode: Mode) -> Result<()> {
    for number in PROTOCOLS {
        let mut gateway = Gateway::with_room_at_first(family, mode, 0)?;
        gateway.world.change_service(gateway.service, |s| (s.nat_port_first, s.nat_port_last) = (20_000, 20_000))?;
        let first = gateway.packet(number, 40_000, SYN);
        let flow = gateway.release(first)?;
        let flows = gateway.flows()?;
        let second = gateway.packet(number, 40_001, SYN);
        let ran = gateway.give_back(&second)?;
        expect(&ran, "DROP", gateway.service, Outcome::PortsExhausted)?;
        gateway.expect_active([0, 1])?;
        ensure!(gateway.flows()? == flows, "a flow without a port is counted");
        flow.send(&mut gateway.world, flow.client(ACK))?;
        gateway.expect_forgotten()?;
    }
    Ok(())
}
