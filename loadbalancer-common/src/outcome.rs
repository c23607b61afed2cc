//! Outcomes: what can become of a frame. Every frame ends in exactly one, and is counted there once.
//!
//! This list is the only one: counter index, label of metrics and meaning stand together.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident = $index:literal, $label:literal, $class:ident;)+) => {
        /// What became of a frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $name = $index,)+
        }

        impl Outcome {
            pub const ALL: &[Outcome] = &[$(Outcome::$name,)+];

            /// Label in metrics and tables.
            pub const fn label(self) -> &'static str {
                match self { $(Outcome::$name => $label,)+ }
            }

            /// One sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Outcome::$name => concat!($($doc),+).trim_ascii(),)+ }
            }

            pub const fn class(self) -> Class {
                match self { $(Outcome::$name => Class::$class,)+ }
            }
        }
    };
}

/// What an outcome means for the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Left to the kernel: not ours.
    Passed,
    /// Sent on by the packet path.
    Forwarded,
    /// Answered by the packet path itself.
    Answered,
    /// Refused as configured: answered with a reset or an ICMP error, or dropped.
    Refused,
    /// Dropped.
    Dropped,
    /// With the controller, for later.
    Queued,
}

/// Counters kept per service; indices of outcomes are below.
pub const SLOTS: usize = 32;

/// Counters of one service, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OutcomeCounters(pub [u64; SLOTS]);

outcomes! {
    /// Not IPv4 or IPv6: left to the kernel.
    NotIp = 0, "not_ip", Passed;
    /// Addressed to no service and from no flow of ours: left to the kernel.
    NotOurs = 1, "not_ours", Passed;
    /// Headers cut short or inconsistent, before the frame was known to be ours: left to the kernel.
    Malformed = 2, "malformed", Passed;
    /// From a client to its server.
    Forwarded = 3, "forwarded", Forwarded;
    /// From a server back to its client, through the gateway.
    ReplyForwarded = 4, "reply_forwarded", Forwarded;
    /// An ICMP error sent to the server (or client) of the flow it is about.
    IcmpForwarded = 5, "icmp_forwarded", Forwarded;
    /// A later fragment that followed its first.
    FragmentForwarded = 6, "fragment_forwarded", Forwarded;
    /// Echo request to a VIP, answered.
    EchoAnswered = 7, "echo_answered", Answered;
    /// Too big for the way to the server: answered with the size that fits (RFC 1191, RFC 8201).
    TooBigAnswered = 8, "too_big_answered", Answered;
    /// Time to live spent: answered (RFC 792, RFC 4443).
    TtlAnswered = 9, "ttl_answered", Answered;
    /// No server may get new flows.
    NoServer = 10, "no_server", Refused;
    /// Every server is at its high-water mark.
    Full = 11, "full", Refused;
    /// A TCP packet in the middle of a flow that is not known.
    UnknownFlow = 12, "unknown_flow", Refused;
    /// The flow's server is down or gone, and live flows are not kept.
    ServerGone = 13, "server_gone", Refused;
    /// The server is chosen, but there is no usable way to it.
    NoPath = 14, "no_path", Dropped;
    /// No source port is free for this server.
    PortsExhausted = 15, "ports_exhausted", Dropped;
    /// A later fragment whose first was not seen.
    FragmentUnknown = 16, "fragment_unknown", Dropped;
    /// An ICMP message to a VIP that is about no flow of ours, or of a kind that is not for us.
    IcmpUnknown = 17, "icmp_unknown", Dropped;
    /// A protocol that the service does not have, or headers cut short, on an address of ours.
    Invalid = 18, "invalid", Dropped;
    /// The reply's client is not known any more.
    NoReturnPath = 19, "no_return_path", Dropped;
    /// A kernel helper failed (no head room, a full table).
    Internal = 20, "internal", Dropped;
    /// Time to live spent, and no answer is due.
    TtlDropped = 21, "ttl_dropped", Dropped;
    /// Too big for the way to the server, and no answer is due.
    TooBigDropped = 22, "too_big_dropped", Dropped;
    /// The first packet of a flow that no server takes, or the same once more: it waits.
    Queued = 23, "queued", Queued;
    /// A client is to show that it is where its packets say before it may wait.
    Challenged = 24, "challenged", Answered;
    /// A reset of a flow that may be waiting: the client has given up, or answers a challenge.
    QueueReset = 25, "queue_reset", Queued;
    /// It is to wait, but the controller has not taken enough of those before.
    QueueBusy = 26, "queue_busy", Dropped;
    /// It has waited for as long as it may, or the queue has no room for it.
    QueueRefused = 27, "queue_refused", Refused;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_fit_and_labels_are_unique() {
        for (position, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, position);
            assert!(position < SLOTS);
            assert!(Outcome::ALL[..position].iter().all(|other| other.label() != outcome.label()));
            assert!(outcome.meaning().ends_with('.'), "{}", outcome.meaning());
        }
    }
}
