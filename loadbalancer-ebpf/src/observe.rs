//! Sampled flows: how long servers take to answer, and what they lose or refuse.
//!
//! A sample is taken only where it is clear what an answer answers; what had to be sent again gives none, as its answer may
//! be to either (Karn's algorithm, RFC 6298, section 3). What was lost on the client's side of the gateway does not count.
//!
//! All here runs for sampled flows only. The two ways in are exported functions: the verifier checks each once by itself.

use aya_ebpf::bindings::xdp_md;
use loadbalancer_common::hash::nat_flow;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::signal::{
    self, Latencies, Observed, Pending, Place, Signals, Who, ahead, pending, place, server,
};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::clock::precise_ns;
use crate::maps::{self, Live, Shared};
use crate::packed::Pair;
use crate::packet::cursor::Frame;
use crate::packet::ingress::{from_prober, is_released};
use crate::packet::parse::{Packet, Part};

/// Bytes that a client may send at once (RFC 6928): a request of up to so many is timed from its first segment, as what
/// follows within may be another request; one of more from its last, as until then it waits for the client.
const INITIAL_WINDOW: i32 = 14_600;

/// A datagram without an answer for so long is lost, if another one follows: the first time-out of TCP (RFC 6298, section 2).
const UNANSWERED_NS: u64 = 1_000_000_000;

/// By what a sampled flow is known.
#[derive(Clone, Copy)]
pub enum Key {
    /// Of the client's tuple: see [`Key::of`].
    Hash(u64),
    /// Backend and source port there of a `nat` flow. Hashed only here: few flows are sampled.
    Nat(u16, Be16),
}

/// What the gateway gets to see of a flow's replies.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Replies {
    All = 0,
    /// They do not pass.
    None = 1,
    /// They do not pass, and this packet, the client's first after its SYN, says that there was one.
    Told = 2,
}

/// A packet of a client that is about to be sent to its server.
///
/// Here and in [`server`] the packet has been rewritten already, and has no outer headers yet. Asked earlier, the call costs every
/// packet a sixth more, also of flows that are not sampled: all that is needed after it is kept on the stack across it.
#[inline(always)]
pub fn client<A>(frame: &Frame, packet: &Packet<A>, key: Key, backend: u16, path_id: u32, replies: Replies) {
    if packet.part == Part::Whole
        && let Some(path) = maps::path(path_id)
    {
        let target = Target { backend, channel: path.channel, replies };
        observe_client(frame.context(), key.word(), Transport::of(packet, key).to_bits(), target.to_bits());
    }
}

/// A packet of a server that is about to be sent to its client.
#[inline(always)]
pub fn server<A>(frame: &Frame, packet: &Packet<A>, key: Key) {
    if packet.part == Part::Whole {
        observe_server(frame.context(), key.word(), Transport::of(packet, key).to_bits());
    }
}

/// The server, or a router on the way to it, says that what the client sent cannot be delivered (RFC 1122, section 4.2.3.9;
/// RFC 8085, section 5.2).
#[inline(always)]
pub fn unreachable(key: Key, number: u8) {
    let is_nat = matches!(key, Key::Nat(..));
    let transport = Transport { l4: 0, bytes: 0, is_tcp: number == protocol::TCP, is_nat };
    observe_unreachable(key.word(), transport.to_bits());
}

impl Key {
    /// The key of a flow with this hash, sampled by this mask.
    #[inline(always)]
    pub fn of(hash: u64, mask: u16) -> Self {
        Self::Hash(signal::sampled_key(hash, mask))
    }

    /// The key's own word. Which kind it is [`Transport`] says.
    #[inline(always)]
    fn word(self) -> u64 {
        match self {
            Key::Hash(hash) => hash,
            Key::Nat(backend, port) => Pair(backend, port.0).to_bits() as u64,
        }
    }
}

/// What the exported functions need to know of a packet, in one word.
#[derive(Clone, Copy)]
struct Transport {
    /// Offset of the transport header, and bytes from there on.
    l4: u16,
    bytes: u16,
    is_tcp: bool,
    /// The key is [`Key::Nat`].
    is_nat: bool,
}

impl Transport {
    #[inline(always)]
    fn of<A>(packet: &Packet<A>, key: Key) -> Self {
        let bytes = packet.l3.wrapping_add(packet.length).wrapping_sub(packet.l4);
        Self { l4: packet.l4, bytes, is_tcp: packet.is_tcp(), is_nat: matches!(key, Key::Nat(..)) }
    }

    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.l4 as u64 | (self.bytes as u64) << 16 | (self.is_tcp as u64) << 32 | (self.is_nat as u64) << 33
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self {
            l4: bits as u16,
            bytes: (bits >> 16) as u16,
            is_tcp: (bits >> 32) & 1 != 0,
            is_nat: (bits >> 33) & 1 != 0,
        }
    }
}

/// Where a client's packet goes, in one word.
#[derive(Clone, Copy)]
struct Target {
    backend: u16,
    channel: u8,
    replies: Replies,
}

impl Target {
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.backend as u64 | (self.channel as u64) << 16 | (self.replies as u64) << 24
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        let replies = match (bits >> 24) as u8 {
            0 => Replies::All,
            1 => Replies::None,
            _ => Replies::Told,
        };
        Self { backend: bits as u16, channel: (bits >> 16) as u8, replies }
    }
}

/// See [`client`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_client(ctx: &xdp_md, key: u64, transport: u64, target: u64) -> u32 {
    let (frame, transport, target) = (Frame::of(ctx), Transport::from_bits(transport), Target::from_bits(target));
    let who = |flow: &Flow| Who::new(flow.hash, target.backend, target.channel);
    if transport.is_tcp {
        // Most segments of clients only acknowledge; they need no look at the flow's entry.
        if let Some(segment) = Segment::read(frame, transport)
            && (segment.length > 0 || segment.has(tcp_flag::SYN | tcp_flag::RST) || target.replies == Replies::Told)
            && !is_probe(frame)
            && let Some(flow) = Flow::of(key, transport)
        {
            flow.client_segment(who(&flow), target.replies, &segment);
        }
    } else if target.replies == Replies::All
        && transport.bytes as usize > UdpHdr::LEN
        && !is_probe(frame)
        && let Some(flow) = Flow::of(key, transport)
    {
        flow.client_datagram(who(&flow));
    }
    0
}

/// Our own probes are no traffic: what they find is told by who sent them. First packets that have waited come by the same
/// interface.
#[inline(always)]
fn is_probe(frame: &Frame) -> bool {
    maps::settings().is_some_and(|settings| from_prober(frame, settings)) && !is_released()
}

/// See [`server`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_server(ctx: &xdp_md, key: u64, transport: u64) -> u32 {
    let transport = Transport::from_bits(transport);
    let Some(flow) = Flow::of(key, transport) else {
        return 0;
    };
    let who = flow.who();
    if !who.is_of(flow.hash) {
        return 0;
    }
    if !transport.is_tcp {
        flow.server_datagram(who);
    } else if let Some(segment) = Segment::read(Frame::of(ctx), transport) {
        flow.server_segment(who, &segment);
    }
    0
}

/// See [`unreachable`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_unreachable(key: u64, transport: u64) -> u32 {
    if let Some(flow) = Flow::of(key, Transport::from_bits(transport)) {
        let who = flow.who();
        if who.is_of(flow.hash) {
            flow.refused(who);
        }
    }
    0
}

struct Segment {
    start: u32,
    end: u32,
    acknowledged: u32,
    length: u32,
    flags: u8,
}

impl Segment {
    #[inline(always)]
    fn read(frame: &Frame, transport: Transport) -> Option<Self> {
        let bytes = transport.bytes as u32;
        let [_, sequence, acknowledged, offset_flags] = frame.load::<[u32; 4]>(transport.l4 as usize)?;
        let offset_flags = u32::from_be(offset_flags);
        let header = (offset_flags >> 28) * 4;
        if header < TcpHdr::LEN as u32 || header > bytes {
            return None;
        }
        let (start, length) = (u32::from_be(sequence), bytes - header);
        Some(Self {
            start,
            end: start.wrapping_add(length),
            acknowledged: u32::from_be(acknowledged),
            length,
            flags: (offset_flags >> 16) as u8,
        })
    }

    #[inline(always)]
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A flow and its place in the table, which may be another flow's.
struct Flow {
    hash: u64,
    entry: Live<Observed>,
}

impl Flow {
    #[inline(always)]
    fn of(key: u64, transport: Transport) -> Option<Self> {
        let settings = maps::settings()?;
        let hash = if !transport.is_nat {
            key
        } else {
            let number = if transport.is_tcp { protocol::TCP } else { protocol::UDP };
            let Pair(backend, port) = Pair::from_bits(key as u32);
            nat_flow(settings.seed, backend, Be16(port), number)
        };
        let entry = maps::observed((hash >> 32) as u32 & settings.observed_mask)?;
        Some(Self { hash, entry })
    }

    #[inline(always)]
    fn who(&self) -> Who {
        self.entry.who().load()
    }

    #[inline(always)]
    fn owed(&self) -> Pending {
        self.entry.pending().load()
    }

    #[inline(always)]
    fn owe(&self, kind: u8) {
        self.entry.pending().store(Pending::since(self.hash, kind, precise_ns()));
    }

    /// Begins anew, with nothing known of the server's direction. Its owner is told last.
    #[inline(always)]
    fn begin(&self, who: Who, client_next: u32, owed: Pending) {
        self.entry.pending().store(owed);
        self.entry.client_next().store(client_next);
        self.entry.gap_start().store(client_next);
        self.entry.gap_end().store(client_next);
        self.entry.server().store(server::UNKNOWN);
        self.entry.who().store(who);
    }

    /// Takes what is owed. False if somebody else has just done so, or has taken the place.
    #[inline(always)]
    fn settle(&self, owed: Pending) -> bool {
        self.entry.pending().compare_exchange(owed, Pending::nothing(self.hash))
    }

    #[inline(always)]
    fn client_segment(&self, who: Who, replies: Replies, segment: &Segment) {
        if segment.has(tcp_flag::RST) {
            // The client gives up: what it did not wait for tells nothing.
            if self.who().is_of(self.hash) {
                self.entry.who().store(Who(0));
            }
            return;
        }
        if segment.has(tcp_flag::SYN) {
            if !segment.has(tcp_flag::ACK | tcp_flag::FIN) {
                self.syn(who, segment);
            }
            return;
        }
        let mut is_known = self.who() == who;
        if is_known && replies == Replies::Told {
            let owed = self.owed();
            // The third segment of a handshake (RFC 9293, section 3.5).
            if owed.kind(self.hash) == pending::HANDSHAKE && self.settle(owed) {
                handshake(who, owed);
            }
        }
        if segment.length == 0 {
            return;
        }
        let mut at = Place::Far;
        if is_known {
            at = place(
                self.entry.client_next().load(),
                self.entry.gap_start().load(),
                self.entry.gap_end().load(),
                segment.start,
                segment.end,
            );
            is_known = at != Place::Far;
        }
        if !is_known {
            // Picked up in its middle.
            return self.begin(who, segment.end, Pending::nothing(self.hash));
        }
        match at {
            Place::Again => return self.again(who, segment),
            Place::InGap => {
                if segment.start == self.entry.gap_start().load() {
                    self.entry.gap_start().store(segment.end);
                }
            }
            Place::BehindGap => {
                let next = self.entry.client_next().load();
                if self.entry.gap_start().load() == self.entry.gap_end().load() {
                    self.entry.gap_start().store(next);
                }
                self.entry.gap_end().store(segment.start);
                self.entry.client_next().store(segment.end);
            }
            _ => self.entry.client_next().store(segment.end),
        }
        count(who, |signals| signals.segments());
        if replies == Replies::All {
            self.request(segment, at == Place::InGap);
        }
    }

    /// The first segment of a connection, or the same once more.
    #[inline(always)]
    fn syn(&self, who: Who, segment: &Segment) {
        let (known, owed) = (self.who(), self.owed());
        let next = segment.start.wrapping_add(1);
        if known.is_of(self.hash) && self.entry.client_next().load() == next {
            if owed.kind(self.hash) == pending::HANDSHAKE {
                count(known, |signals| signals.lost_syns());
                if known == who {
                    self.entry.pending().store(owed.untimed());
                    return;
                }
                // Another server gets it now.
            } else if known == who {
                // Its answer has come by here, and was lost behind.
                return;
            }
        }
        self.begin(who, next, Pending::since(self.hash, pending::HANDSHAKE, precise_ns()));
    }

    /// Bytes that have come by before.
    #[inline(always)]
    fn again(&self, who: Who, segment: &Segment) {
        // Keep-alives may bring a byte of garbage (RFC 1122, section 4.2.3.6), probes of a closed window the same byte again
        // and again (RFC 9293, section 3.8.6.1).
        if segment.length <= 1 {
            return;
        }
        count(who, |signals| signals.segments());
        // The server has them: its word was lost on the client's side.
        if self.entry.server().load() == server::KNOWN && ahead(segment.end, self.entry.acknowledged().load()) >= 0 {
            return;
        }
        count(who, |signals| signals.lost_segments());
        let owed = self.owed();
        if owed.kind(self.hash) == pending::RESPONSE {
            self.entry.pending().store(owed.untimed());
        }
    }

    /// New bytes of the client, which the server is to answer.
    #[inline(always)]
    fn request(&self, segment: &Segment, was_missing: bool) {
        let owed = self.owed();
        if owed.kind(self.hash) == pending::RESPONSE {
            // The server could not answer before it had all.
            let is_late = was_missing || ahead(self.entry.request_start().load(), segment.end) > INITIAL_WINDOW;
            if owed.is_timed() && is_late {
                self.owe(pending::RESPONSE);
            }
            return;
        }
        self.entry.request_start().store(segment.start);
        // What the client sends while it has not seen all that the server sent may be anything; only after that it is
        // something that the server answers next.
        if self.entry.server().load() == server::KNOWN && self.entry.server_next().load() == segment.acknowledged {
            self.owe(pending::RESPONSE);
        } else {
            self.entry.pending().store(Pending::since(self.hash, pending::RESPONSE, 0).untimed());
        }
    }

    #[inline(always)]
    fn server_segment(&self, who: Who, segment: &Segment) {
        if segment.has(tcp_flag::RST) {
            return self.refused(who);
        }
        let owed = self.owed();
        if segment.has(tcp_flag::SYN) {
            if owed.kind(self.hash) == pending::HANDSHAKE && self.settle(owed) {
                handshake(who, owed);
            }
            self.entry.acknowledged().store(segment.acknowledged);
            self.entry.server_next().store(segment.start.wrapping_add(1));
            self.entry.server().store(server::KNOWN);
            return;
        }
        let is_known = self.entry.server().load() == server::KNOWN;
        if !is_known || ahead(self.entry.acknowledged().load(), segment.acknowledged) > 0 {
            self.entry.acknowledged().store(segment.acknowledged);
        }
        if segment.length == 0 {
            return;
        }
        count(who, |signals| signals.segments());
        let mut at = Place::Far;
        if is_known {
            let next = self.entry.server_next().load();
            at = place(next, next, next, segment.start, segment.end);
        }
        if at == Place::Again {
            // Lost on the client's side.
            return;
        }
        self.entry.server_next().store(segment.end);
        self.entry.server().store(server::KNOWN);
        if at == Place::BehindGap {
            count(who, |signals| signals.lost_segments());
        }
        if owed.kind(self.hash) == pending::RESPONSE && self.settle(owed) && at == Place::Next {
            response(who, owed);
        }
    }

    #[inline(always)]
    fn client_datagram(&self, who: Who) {
        if self.who() != who {
            return self.begin(who, 0, Pending::since(self.hash, pending::RESPONSE, precise_ns()));
        }
        if self.entry.server().load() == server::TALKS {
            return;
        }
        let (owed, now) = (self.owed(), precise_ns());
        let mut next = Pending::since(self.hash, pending::RESPONSE, now);
        if owed.kind(self.hash) == pending::RESPONSE {
            if owed.age(now) < UNANSWERED_NS {
                // The answer may be to either.
                next = next.untimed();
            } else {
                count(who, |signals| signals.unanswered());
            }
        }
        self.entry.pending().store(next);
    }

    #[inline(always)]
    fn server_datagram(&self, who: Who) {
        let owed = self.owed();
        if owed.kind(self.hash) != pending::RESPONSE {
            self.entry.server().store(server::TALKS);
        } else if self.settle(owed) {
            response(who, owed);
        }
    }

    /// A reset, or an ICMP error. It counts if something is owed: a reset at the end of a connection is a way to close it.
    #[inline(always)]
    fn refused(&self, who: Who) {
        let owed = self.owed();
        let kind = owed.kind(self.hash);
        if kind == pending::NOTHING || !self.settle(owed) {
            return;
        }
        // Some clients send a refused SYN again, and that is another try.
        self.entry.who().store(Who(0));
        if kind == pending::HANDSHAKE {
            count(who, |signals| signals.refused_syns());
        } else {
            count(who, |signals| signals.refused_requests());
        }
    }
}

#[inline(always)]
fn handshake(who: Who, owed: Pending) {
    if owed.is_timed() {
        let ns = owed.age(precise_ns());
        if let Some(signals) = maps::signals(who) {
            signals.handshakes()[Latencies::bucket(ns)].add(1);
            signals.handshake_ns().add(ns);
        }
    }
}

#[inline(always)]
fn response(who: Who, owed: Pending) {
    if owed.is_timed() {
        let ns = owed.age(precise_ns());
        if let Some(signals) = maps::signals(who) {
            signals.responses()[Latencies::bucket(ns)].add(1);
            signals.response_ns().add(ns);
        }
    }
}

/// Adds one to a counter.
#[inline(always)]
fn count(who: Who, counter: impl FnOnce(Live<Signals>) -> &'static Shared<u32>) {
    if let Some(signals) = maps::signals(who) {
        counter(signals).add(1);
    }
}
