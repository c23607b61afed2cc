//! Watched flows: how long servers take to answer, and what they lose or refuse.
//!
//! A sample is taken only where it is clear what an answer answers; what had to be sent again gives none, as its answer may
//! be to either (Karn's algorithm, RFC 6298, section 3). What was lost on the client's side of the gateway does not count.
//!
//! All here runs for sampled flows only. The two ways in are exported functions: the verifier checks each once by itself.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::hash::nat_flow;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::signal::{self, Observed, Pending, Place, Signals, Who, ahead, pending, place, server};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::frame;
use crate::maps;
use crate::parse::{Packet, Part};
use crate::probe;
use crate::queue;

/// Bytes that a client may send at once (RFC 6928): a request of up to so many is timed from its first segment, as what
/// follows within may be another request; one of more from its last, as until then it waits for the client.
const INITIAL_WINDOW: i32 = 14_600;

/// A datagram without an answer for so long is lost, if another one follows: the first time-out of TCP (RFC 6298, section 2).
const UNANSWERED_NS: u64 = 1_000_000_000;

/// By what a watched flow is known.
#[derive(Clone, Copy)]
pub enum Key {
    /// Of the client's tuple: see [`Key::of`].
    Hash(u64),
    /// Backend and source port there of a `nat` flow. Hashed only here: few flows are watched.
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
/// packet a sixth more, also of flows that are not watched: all that is needed after it is kept on the stack across it.
#[inline(always)]
pub fn client<A>(ctx: &XdpContext, packet: &Packet<A>, key: Key, backend: u16, path_id: u32, replies: Replies) {
    if packet.part == Part::Whole
        && let Some(path) = maps::path(path_id)
    {
        let target = backend as u64 | (path.channel as u64) << 16 | (replies as u64) << 24;
        let (key, kind) = key.words();
        observe_client(ctx.ctx, key, transport(packet) | kind, target);
    }
}

/// A packet of a server that is about to be sent to its client.
#[inline(always)]
pub fn server<A>(ctx: &XdpContext, packet: &Packet<A>, key: Key) {
    if packet.part == Part::Whole {
        let (key, kind) = key.words();
        observe_server(ctx.ctx, key, transport(packet) | kind);
    }
}

/// The server, or a router on the way to it, says that what the client sent cannot be delivered (RFC 1122, section 4.2.3.9;
/// RFC 8085, section 5.2).
#[inline(always)]
pub fn unreachable(key: Key, number: u8) {
    let (key, kind) = key.words();
    observe_unreachable(key, kind | ((number == protocol::TCP) as u64) << IS_TCP_SHIFT);
}

/// Says that a word is not a hash but what [`nat_flow`] takes.
const IS_NAT: u64 = 1 << 33;
const IS_TCP_SHIFT: u32 = 32;

impl Key {
    /// The key of a flow with this hash, watched by this mask.
    #[inline(always)]
    pub fn of(hash: u64, mask: u16) -> Self {
        Self::Hash(signal::watched_key(hash, mask))
    }

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        match self {
            Key::Hash(hash) => (hash, 0),
            Key::Nat(backend, port) => ((backend as u64) << 16 | port.0 as u64, IS_NAT),
        }
    }
}

/// Offset of the transport header, bytes from there on, and whether it is TCP, in one word.
#[inline(always)]
fn transport<A>(packet: &Packet<A>) -> u64 {
    let bytes = packet.l3.wrapping_add(packet.length).wrapping_sub(packet.l4);
    packet.l4 as u64 | (bytes as u64) << 16 | (packet.is_tcp() as u64) << IS_TCP_SHIFT
}

#[inline(always)]
fn is_tcp(transport: u64) -> bool {
    (transport >> IS_TCP_SHIFT) & 1 != 0
}

/// See [`client`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_client(ctx: *mut xdp_md, key: u64, transport: u64, target: u64) -> u32 {
    let replies = match (target >> 24) as u8 {
        0 => Replies::All,
        1 => Replies::None,
        _ => Replies::Told,
    };
    let who = |flow: &Flow| Who::new(flow.hash, target as u16, (target >> 16) as u8);
    if is_tcp(transport) {
        // Most segments of clients only acknowledge; they need no look at the flow's entry.
        if let Some(segment) = Segment::read(ctx, transport)
            && (segment.length > 0 || segment.has(tcp_flag::SYN | tcp_flag::RST) || replies == Replies::Told)
            && !is_probe(ctx)
            && let Some(flow) = Flow::of(key, transport)
        {
            flow.client_segment(who(&flow), replies, &segment);
        }
    } else if replies == Replies::All
        && (transport >> 16) as u16 as usize > UdpHdr::LEN
        && !is_probe(ctx)
        && let Some(flow) = Flow::of(key, transport)
    {
        flow.client_datagram(who(&flow));
    }
    0
}

/// Our own probes are no traffic: what they find is told by who sent them. First packets that have waited come by the same
/// interface.
#[inline(always)]
fn is_probe(ctx: *mut xdp_md) -> bool {
    maps::settings().is_some_and(|settings| probe::is_one(&XdpContext::new(ctx), settings)) && !queue::is_released()
}

/// See [`server`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_server(ctx: *mut xdp_md, key: u64, transport: u64) -> u32 {
    let Some(flow) = Flow::of(key, transport) else {
        return 0;
    };
    let who = flow.who();
    if !who.is_of(flow.hash) {
        return 0;
    }
    if !is_tcp(transport) {
        flow.server_datagram(who);
    } else if let Some(segment) = Segment::read(ctx, transport) {
        flow.server_segment(who, &segment);
    }
    0
}

/// See [`unreachable`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn observe_unreachable(key: u64, transport: u64) -> u32 {
    if let Some(flow) = Flow::of(key, transport) {
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
    fn read(ctx: *mut xdp_md, transport: u64) -> Option<Self> {
        let (l4, bytes) = (transport as u16 as usize, (transport >> 16) as u16 as u32);
        let [_, sequence, acknowledged, offset_flags] = frame::load::<[u32; 4]>(&XdpContext::new(ctx), l4)?;
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
    entry: *mut Observed,
}

/// Reads and writes a field of the entry once, as a whole.
macro_rules! get {
    ($flow:ident.$field:ident) => {
        // SAFETY: the pointer is to a map value; plain loads of aligned words.
        unsafe { (&raw const (*$flow.entry).$field).read_volatile() }
    };
}
macro_rules! set {
    ($flow:ident.$field:ident, $value:expr) => {
        // SAFETY: the pointer is to a map value; plain stores of aligned words.
        unsafe { (&raw mut (*$flow.entry).$field).write_volatile($value) }
    };
}

impl Flow {
    #[inline(always)]
    fn of(key: u64, transport: u64) -> Option<Self> {
        let settings = maps::settings()?;
        let hash = if transport & IS_NAT == 0 {
            key
        } else {
            let number = if is_tcp(transport) { protocol::TCP } else { protocol::UDP };
            nat_flow(settings.seed, (key >> 16) as u16, Be16(key as u16), number)
        };
        let entry = maps::observed((hash >> 32) as u32 & settings.observed_mask)?;
        Some(Self { hash, entry })
    }

    #[inline(always)]
    fn who(&self) -> Who {
        get!(self.who)
    }

    #[inline(always)]
    fn owed(&self) -> Pending {
        get!(self.pending)
    }

    #[inline(always)]
    fn owe(&self, kind: u8) {
        set!(self.pending, Pending::since(self.hash, kind, now()));
    }

    /// Begins anew, with nothing known of the server's direction. Its owner is told last.
    #[inline(always)]
    fn begin(&self, who: Who, client_next: u32, owed: Pending) {
        set!(self.pending, owed);
        set!(self.client_next, client_next);
        set!(self.gap_start, client_next);
        set!(self.gap_end, client_next);
        set!(self.server, server::UNKNOWN);
        set!(self.who, who);
    }

    /// Takes what is owed. False if somebody else has just done so, or has taken the place.
    #[inline(always)]
    fn settle(&self, owed: Pending) -> bool {
        // SAFETY: the pointer is to a map value.
        let word = unsafe { (&raw mut (*self.entry).pending).cast::<u64>() };
        maps::compare_exchange(word, owed.0, Pending::nothing(self.hash).0)
    }

    #[inline(always)]
    fn client_segment(&self, who: Who, replies: Replies, segment: &Segment) {
        if segment.has(tcp_flag::RST) {
            // The client gives up: what it did not wait for tells nothing.
            if self.who().is_of(self.hash) {
                set!(self.who, Who(0));
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
            at = place(get!(self.client_next), get!(self.gap_start), get!(self.gap_end), segment.start, segment.end);
            is_known = at != Place::Far;
        }
        if !is_known {
            // Picked up in its middle.
            return self.begin(who, segment.end, Pending::nothing(self.hash));
        }
        match at {
            Place::Again => return self.again(who, segment),
            Place::InGap => {
                if segment.start == get!(self.gap_start) {
                    set!(self.gap_start, segment.end);
                }
            }
            Place::BehindGap => {
                let next = get!(self.client_next);
                if get!(self.gap_start) == get!(self.gap_end) {
                    set!(self.gap_start, next);
                }
                set!(self.gap_end, segment.start);
                set!(self.client_next, segment.end);
            }
            _ => set!(self.client_next, segment.end),
        }
        count(who, offset_of!(Signals, segments));
        if replies == Replies::All {
            self.request(segment, at == Place::InGap);
        }
    }

    /// The first segment of a connection, or the same once more.
    #[inline(always)]
    fn syn(&self, who: Who, segment: &Segment) {
        let (known, owed) = (self.who(), self.owed());
        let next = segment.start.wrapping_add(1);
        if known.is_of(self.hash) && get!(self.client_next) == next {
            if owed.kind(self.hash) == pending::HANDSHAKE {
                count(known, offset_of!(Signals, lost_syns));
                if known == who {
                    set!(self.pending, owed.untimed());
                    return;
                }
                // Another server gets it now.
            } else if known == who {
                // Its answer has come by here, and was lost behind.
                return;
            }
        }
        self.begin(who, next, Pending::since(self.hash, pending::HANDSHAKE, now()));
    }

    /// Bytes that have come by before.
    #[inline(always)]
    fn again(&self, who: Who, segment: &Segment) {
        // Keep-alives may bring a byte of garbage (RFC 1122, section 4.2.3.6), probes of a closed window the same byte again
        // and again (RFC 9293, section 3.8.6.1).
        if segment.length <= 1 {
            return;
        }
        count(who, offset_of!(Signals, segments));
        // The server has them: its word was lost on the client's side.
        if get!(self.server) == server::KNOWN && ahead(segment.end, get!(self.acknowledged)) >= 0 {
            return;
        }
        count(who, offset_of!(Signals, lost_segments));
        let owed = self.owed();
        if owed.kind(self.hash) == pending::RESPONSE {
            set!(self.pending, owed.untimed());
        }
    }

    /// New bytes of the client, which the server is to answer.
    #[inline(always)]
    fn request(&self, segment: &Segment, was_missing: bool) {
        let owed = self.owed();
        if owed.kind(self.hash) == pending::RESPONSE {
            // The server could not answer before it had all.
            let is_late = was_missing || ahead(get!(self.request_start), segment.end) > INITIAL_WINDOW;
            if owed.is_timed() && is_late {
                self.owe(pending::RESPONSE);
            }
            return;
        }
        set!(self.request_start, segment.start);
        // What the client sends while it has not seen all that the server sent may be anything; only after that it is
        // something that the server answers next.
        if get!(self.server) == server::KNOWN && get!(self.server_next) == segment.acknowledged {
            self.owe(pending::RESPONSE);
        } else {
            set!(self.pending, Pending::since(self.hash, pending::RESPONSE, 0).untimed());
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
            set!(self.acknowledged, segment.acknowledged);
            set!(self.server_next, segment.start.wrapping_add(1));
            set!(self.server, server::KNOWN);
            return;
        }
        let is_known = get!(self.server) == server::KNOWN;
        if !is_known || ahead(get!(self.acknowledged), segment.acknowledged) > 0 {
            set!(self.acknowledged, segment.acknowledged);
        }
        if segment.length == 0 {
            return;
        }
        count(who, offset_of!(Signals, segments));
        let mut at = Place::Far;
        if is_known {
            let next = get!(self.server_next);
            at = place(next, next, next, segment.start, segment.end);
        }
        if at == Place::Again {
            // Lost on the client's side.
            return;
        }
        set!(self.server_next, segment.end);
        set!(self.server, server::KNOWN);
        if at == Place::BehindGap {
            count(who, offset_of!(Signals, lost_segments));
        }
        if owed.kind(self.hash) == pending::RESPONSE && self.settle(owed) && at == Place::Next {
            response(who, owed);
        }
    }

    #[inline(always)]
    fn client_datagram(&self, who: Who) {
        if self.who() != who {
            return self.begin(who, 0, Pending::since(self.hash, pending::RESPONSE, now()));
        }
        if get!(self.server) == server::TALKS {
            return;
        }
        let (owed, now) = (self.owed(), now());
        let mut next = Pending::since(self.hash, pending::RESPONSE, now);
        if owed.kind(self.hash) == pending::RESPONSE {
            if owed.age(now) < UNANSWERED_NS {
                // The answer may be to either.
                next = next.untimed();
            } else {
                count(who, offset_of!(Signals, unanswered));
            }
        }
        set!(self.pending, next);
    }

    #[inline(always)]
    fn server_datagram(&self, who: Who) {
        let owed = self.owed();
        if owed.kind(self.hash) != pending::RESPONSE {
            set!(self.server, server::TALKS);
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
        set!(self.who, Who(0));
        if kind == pending::HANDSHAKE {
            count(who, offset_of!(Signals, refused_syns));
        } else {
            count(who, offset_of!(Signals, refused_requests));
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn handshake(who: Who, owed: Pending) {
    if owed.is_timed() {
        sample(who, offset_of!(Signals, handshakes), offset_of!(Signals, handshake_ns), owed.age(now()));
    }
}

#[inline(always)]
fn response(who: Who, owed: Pending) {
    if owed.is_timed() {
        sample(who, offset_of!(Signals, responses), offset_of!(Signals, response_ns), owed.age(now()));
    }
}

/// Adds a latency to the histogram and to the sum at two offsets.
#[inline(always)]
fn sample(who: Who, histogram: usize, sum: usize, ns: u64) {
    if let Some(signals) = maps::signals(who) {
        let signals = signals.cast::<u8>();
        // SAFETY: the fields of a value of the map.
        let (bucket, sum) =
            unsafe { (signals.add(histogram).cast::<u32>().add(signal::bucket(ns)), signals.add(sum).cast::<u64>()) };
        maps::add32(bucket, 1);
        maps::add64(sum, ns);
    }
}

/// Adds one to the counter at an offset.
#[inline(always)]
fn count(who: Who, counter: usize) {
    if let Some(signals) = maps::signals(who) {
        // SAFETY: a field of a value of the map.
        maps::add32(unsafe { signals.cast::<u8>().add(counter).cast::<u32>() }, 1);
    }
}
