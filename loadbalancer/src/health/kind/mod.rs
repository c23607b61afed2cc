//! One file per kind of check: its settings, and how it asks.

pub mod tcp;
pub mod http;
pub mod body;
pub mod tls;
pub mod udp;
pub mod icmp;
pub mod dns;
pub mod command;
pub mod agent;

use agent::AgentCheck;
use command::CommandCheck;
use dns::DnsCheck;
use http::HttpCheck;
use tls::TlsCheck;
use udp::UdpCheck;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The server accepts a connection.
    Tcp,
    /// The server answers a request as expected.
    Http(HttpCheck),
    /// The same within TLS.
    Https(HttpCheck, TlsCheck),
    /// The server answers a datagram.
    Udp(UdpCheck),
    /// The server answers an ICMP or ICMPv6 echo request.
    Icmp,
    /// The server answers a DNS query over UDP.
    Dns(DnsCheck),
    /// A program of the gateway's ends with exit code 0.
    Command(CommandCheck),
    /// The server's agent says how it is.
    Agent(AgentCheck),
}

/// What port a kind of check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    Tcp,
    Udp,
    /// The host as such, or whatever a command does with the port.
    Any,
}

impl CheckKind {
    pub const fn asks(&self) -> Asks {
        match self {
            Self::Tcp | Self::Http(_) | Self::Https(..) | Self::Agent(_) => Asks::Tcp,
            Self::Udp(_) | Self::Dns(_) => Asks::Udp,
            Self::Icmp | Self::Command(_) => Asks::Any,
        }
    }
}
