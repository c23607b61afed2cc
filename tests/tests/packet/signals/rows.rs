//! What series of packets tell.

use loadbalancer_common::net::tcp_flag;

const SYN: u8 = tcp_flag::SYN;
const ACK: u8 = tcp_flag::ACK;
const RST: u8 = tcp_flag::RST;
const FIN: u8 = tcp_flag::FIN;

/// A second, in the unit of a latency.
pub(super) const SECOND: u64 = 1_000_000_000;

/// A packet of the client or of the server. Numbers are of bytes behind the SYN, which is number 0; the server's packets do not
/// pass in `dsr-*` modes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Flags, first byte, next byte expected from the other side, bytes.
    Client(u8, u32, u32, u32),
    Server(u8, u32, u32, u32),
    /// Somebody took the flow's place in the table of watched flows.
    Taken,
    /// So much time passes, in ns.
    Later(u64),
}
use Step::{Client, Later, Server, Taken};

pub(super) const OPEN: [Step; 3] = [Client(SYN, 0, 0, 0), Server(SYN | ACK, 0, 1, 0), Client(ACK, 1, 1, 0)];

/// Counts of all signals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) handshakes: u32,
    pub(super) lost_syns: u32,
    pub(super) refused_syns: u32,
    pub(super) responses: u32,
    pub(super) segments: u32,
    pub(super) lost_segments: u32,
    pub(super) refused_requests: u32,
    pub(super) unanswered: u32,
}

pub(super) const NONE: Seen = Seen {
    handshakes: 0,
    lost_syns: 0,
    refused_syns: 0,
    responses: 0,
    segments: 0,
    lost_segments: 0,
    refused_requests: 0,
    unanswered: 0,
};
pub(super) const OPENED: Seen = Seen { handshakes: 1, ..NONE };

/// What a series of packets tells where replies pass, and where they do not.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) steps: &'static [Step],
    pub(super) both_ways: Seen,
    pub(super) one_way: Seen,
}

/// Connections from their first segment on.
pub(super) const FROM_SYN: [Row; 6] = [
    Row { name: "a handshake", steps: &OPEN, both_ways: OPENED, one_way: OPENED },
    Row {
        name: "a SYN sent again is lost, and its answer tells no time",
        steps: &[Client(SYN, 0, 0, 0), Client(SYN, 0, 0, 0), Server(SYN | ACK, 0, 1, 0), Client(ACK, 1, 1, 0)],
        both_ways: Seen { lost_syns: 1, ..NONE },
        one_way: Seen { lost_syns: 1, ..NONE },
    },
    Row {
        name: "a SYN sent again after its answer was lost on the client's side",
        steps: &[Client(SYN, 0, 0, 0), Server(SYN | ACK, 0, 1, 0), Client(SYN, 0, 0, 0), Client(ACK, 1, 1, 0)],
        both_ways: OPENED,
        one_way: Seen { lost_syns: 1, ..NONE },
    },
    Row {
        name: "an answer sent again is no second handshake",
        steps: &[
            Client(SYN, 0, 0, 0),
            Server(SYN | ACK, 0, 1, 0),
            Server(SYN | ACK, 0, 1, 0),
            Client(ACK, 1, 1, 0),
            Client(ACK, 1, 1, 0),
        ],
        both_ways: OPENED,
        one_way: OPENED,
    },
    Row {
        name: "a reset in answer to a SYN is a refusal, each time",
        steps: &[Client(SYN, 0, 0, 0), Server(RST | ACK, 0, 1, 0), Client(SYN, 0, 0, 0), Server(RST | ACK, 0, 1, 0)],
        both_ways: Seen { refused_syns: 2, ..NONE },
        one_way: Seen { lost_syns: 1, ..NONE },
    },
    Row {
        name: "a client that gives up tells nothing",
        steps: &[Client(SYN, 0, 0, 0), Client(RST, 1, 0, 0), Server(SYN | ACK, 0, 1, 0), Server(RST, 1, 1, 0)],
        both_ways: NONE,
        one_way: NONE,
    },
];

/// Connections that were opened.
pub(super) const AFTER: [Row; 22] = [
    Row {
        name: "an answered request",
        steps: &[Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 200), Client(ACK, 101, 201, 0)],
        both_ways: Seen { responses: 1, segments: 2, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "only the first part of a response counts",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 0),
            Server(ACK, 1, 101, 200),
            Server(ACK, 201, 101, 200),
            Client(ACK, 101, 401, 100),
            Server(ACK, 401, 201, 200),
        ],
        both_ways: Seen { responses: 2, segments: 5, ..OPENED },
        one_way: Seen { segments: 2, ..OPENED },
    },
    Row {
        name: "a server that speaks first answers nothing",
        steps: &[Server(ACK, 1, 1, 80), Client(ACK, 1, 81, 0)],
        both_ways: Seen { segments: 1, ..OPENED },
        one_way: OPENED,
    },
    Row {
        name: "two requests at a time are answered once",
        steps: &[
            Client(ACK, 1, 1, 100),
            Client(ACK, 101, 1, 100),
            Server(ACK, 1, 201, 200),
            Server(ACK, 201, 201, 200),
        ],
        both_ways: Seen { responses: 1, segments: 4, ..OPENED },
        one_way: Seen { segments: 2, ..OPENED },
    },
    Row {
        name: "what the client sends while the server is sending is not timed",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 200),
            Server(ACK, 201, 101, 200),
            Client(ACK, 101, 201, 100),
            Server(ACK, 401, 101, 200),
        ],
        both_ways: Seen { responses: 1, segments: 5, ..OPENED },
        one_way: Seen { segments: 2, ..OPENED },
    },
    Row {
        name: "a reset with a request outstanding is a refusal",
        steps: &[Client(ACK, 1, 1, 100), Server(RST | ACK, 1, 101, 0), Server(RST | ACK, 1, 101, 0)],
        both_ways: Seen { segments: 1, refused_requests: 1, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "a reset after the response is none",
        steps: &[Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 200), Server(RST | ACK, 201, 101, 0)],
        both_ways: Seen { responses: 1, segments: 2, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "a reset of the client is none",
        steps: &[Client(ACK, 1, 1, 100), Client(RST, 101, 1, 0), Server(RST, 1, 101, 0)],
        both_ways: Seen { segments: 1, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "ends of both sides are nothing",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 200),
            Server(FIN | ACK, 201, 101, 0),
            Client(FIN | ACK, 101, 202, 0),
            Server(ACK, 202, 102, 0),
            Client(FIN | ACK, 101, 202, 0),
        ],
        both_ways: Seen { responses: 1, segments: 2, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "a segment sent again was lost, and its response tells no time",
        steps: &[Client(ACK, 1, 1, 100), Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 200)],
        both_ways: Seen { segments: 3, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 2, lost_segments: 1, ..OPENED },
    },
    Row {
        name: "the request after one that was lost is timed again",
        steps: &[
            Client(ACK, 1, 1, 100),
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 200),
            Client(ACK, 101, 201, 100),
            Server(ACK, 201, 201, 200),
        ],
        both_ways: Seen { responses: 1, segments: 5, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 3, lost_segments: 1, ..OPENED },
    },
    Row {
        name: "sent again after the server had acknowledged it, it was not lost before the server",
        steps: &[Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 0), Client(ACK, 1, 1, 100), Server(ACK, 1, 101, 200)],
        both_ways: Seen { responses: 1, segments: 3, ..OPENED },
        one_way: Seen { segments: 2, lost_segments: 1, ..OPENED },
    },
    Row {
        name: "keep-alives are no losses",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 200),
            Client(ACK, 100, 201, 0),
            Client(ACK, 100, 201, 1),
            Server(ACK, 200, 101, 0),
            Server(ACK, 200, 101, 1),
        ],
        both_ways: Seen { responses: 1, segments: 3, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "probes of a closed window are no losses",
        steps: &[Client(ACK, 1, 1, 100), Client(ACK, 101, 1, 1), Client(ACK, 101, 1, 1), Client(ACK, 101, 1, 1)],
        both_ways: Seen { segments: 2, ..OPENED },
        one_way: Seen { segments: 2, ..OPENED },
    },
    Row {
        name: "what did not get here was not lost behind",
        steps: &[
            Client(ACK, 1, 1, 100),
            Client(ACK, 201, 1, 100),
            Client(ACK, 401, 1, 100),
            Client(ACK, 101, 1, 100),
            Client(ACK, 301, 1, 100),
            Server(ACK, 1, 501, 200),
        ],
        both_ways: Seen { responses: 1, segments: 6, ..OPENED },
        one_way: Seen { segments: 5, ..OPENED },
    },
    Row {
        name: "what came late and then again was lost",
        steps: &[Client(ACK, 1, 1, 100), Client(ACK, 201, 1, 100), Client(ACK, 101, 1, 100), Client(ACK, 101, 1, 100)],
        both_ways: Seen { segments: 4, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 4, lost_segments: 1, ..OPENED },
    },
    Row {
        name: "a hole in what the server sends is one loss",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 100),
            Server(ACK, 201, 101, 100),
            Server(ACK, 301, 101, 100),
            Server(ACK, 101, 101, 100),
        ],
        both_ways: Seen { responses: 1, segments: 5, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "a response whose beginning was lost tells no time",
        steps: &[Client(ACK, 1, 1, 100), Server(ACK, 101, 101, 100), Server(ACK, 1, 101, 100)],
        both_ways: Seen { segments: 3, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "what the server sends again answers nothing",
        steps: &[
            Client(ACK, 1, 1, 100),
            Server(ACK, 1, 101, 200),
            Client(ACK, 101, 201, 100),
            Server(ACK, 1, 101, 200),
            Server(RST | ACK, 201, 201, 0),
        ],
        both_ways: Seen { responses: 1, segments: 4, refused_requests: 1, ..OPENED },
        one_way: Seen { segments: 2, ..OPENED },
    },
    Row {
        name: "a flow whose place was taken is picked up in its middle",
        steps: &[
            Taken,
            Server(ACK, 1, 1, 100),
            Client(ACK, 1, 101, 100),
            Client(ACK, 1, 101, 100),
            Server(ACK, 101, 101, 100),
            Client(ACK, 101, 201, 100),
            Server(ACK, 201, 201, 100),
        ],
        both_ways: Seen { responses: 1, segments: 4, lost_segments: 1, ..OPENED },
        one_way: Seen { segments: 2, lost_segments: 1, ..OPENED },
    },
    Row {
        name: "numbers far from those before begin anew",
        steps: &[
            Client(ACK, 1, 1, 100),
            Client(ACK, 1 << 30, 1, 100),
            Client(ACK, 101, 1, 100),
            Server(ACK, 1 << 30, 101, 100),
            Server(ACK, 1, 101, 100),
        ],
        both_ways: Seen { segments: 3, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
    Row {
        name: "a response may take its time",
        steps: &[Client(ACK, 1, 1, 100), Later(100 * SECOND), Server(ACK, 1, 101, 200)],
        both_ways: Seen { responses: 1, segments: 2, ..OPENED },
        one_way: Seen { segments: 1, ..OPENED },
    },
];

/// Datagrams; sequence numbers mean nothing. Where replies do not pass they tell nothing.
pub(super) const DATAGRAMS: [Row; 8] = [
    Row {
        name: "an answered datagram",
        steps: &[Client(0, 0, 0, 30), Server(0, 0, 0, 60), Client(0, 0, 0, 30), Server(0, 0, 0, 60)],
        both_ways: Seen { responses: 2, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "no answer for a second when the next one comes is a loss",
        steps: &[Client(0, 0, 0, 30), Later(SECOND), Client(0, 0, 0, 30), Server(0, 0, 0, 60)],
        both_ways: Seen { unanswered: 1, responses: 1, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "one of two datagrams is answered: it is not known which",
        steps: &[
            Client(0, 0, 0, 30),
            Later(SECOND / 2),
            Client(0, 0, 0, 30),
            Server(0, 0, 0, 60),
            Client(0, 0, 0, 30),
            Server(0, 0, 0, 60),
        ],
        both_ways: Seen { responses: 1, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "a silent server loses one a second, however many come",
        steps: &[
            Client(0, 0, 0, 30),
            Client(0, 0, 0, 30),
            Later(SECOND),
            Client(0, 0, 0, 30),
            Client(0, 0, 0, 30),
            Later(SECOND),
            Client(0, 0, 0, 30),
        ],
        both_ways: Seen { unanswered: 2, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "who sends unasked answers nothing",
        steps: &[
            Client(0, 0, 0, 30),
            Server(0, 0, 0, 60),
            Server(0, 0, 0, 60),
            Client(0, 0, 0, 30),
            Server(0, 0, 0, 60),
            Client(0, 0, 0, 30),
            Later(SECOND),
            Client(0, 0, 0, 30),
        ],
        both_ways: Seen { responses: 1, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "empty datagrams keep a way open, no more",
        steps: &[Client(0, 0, 0, 0), Later(SECOND), Client(0, 0, 0, 0), Server(0, 0, 0, 60)],
        both_ways: NONE,
        one_way: NONE,
    },
    Row {
        name: "a datagram whose place was taken tells nothing",
        steps: &[Client(0, 0, 0, 30), Taken, Server(0, 0, 0, 60), Client(0, 0, 0, 30), Server(0, 0, 0, 60)],
        both_ways: Seen { responses: 1, ..NONE },
        one_way: NONE,
    },
    Row {
        name: "a late answer is timed to the end",
        steps: &[Client(0, 0, 0, 30), Later(5 * SECOND), Server(0, 0, 0, 60)],
        both_ways: Seen { responses: 1, ..NONE },
        one_way: NONE,
    },
];
