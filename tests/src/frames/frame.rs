//! Frames, built field by field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loadbalancer_common::checksum::{finish, sum_bytes};
use loadbalancer_common::net::{ethertype, protocol, tcp_flag};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x51];

/// What a transport header says.
#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledged: u32,
        options: Vec<u8>,
    },
    /// `checksum`: false leaves it zero.
    Udp {
        checksum: bool,
    },
    Icmp {
        kind: u8,
        code: u8,
        word: u32,
    },
    /// Nothing: a later fragment, or a protocol of no interest.
    Raw(u8),
}

/// A packet in a frame. Start from [`Frame::tcp`] or [`Frame::udp`] and change what matters.
#[derive(Clone, Debug)]
pub struct Frame {
    pub macs: ([u8; 6], [u8; 6]),
    /// VLAN tag control information, outer first.
    pub tags: Vec<u16>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub ttl: u8,
    pub tos: u8,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// IPv4 options, or IPv6 extension headers as (protocol number, bytes after the next-header byte).
    pub options: Vec<u8>,
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Offset in units of 8 bytes, more to come, identification.
    pub fragment: Option<(u16, bool, u32)>,
    pub dont_fragment: bool,
}

impl Frame {
    fn new(src: &str, sport: u16, dst: &str, dport: u16, transport: Transport) -> Self {
        Self {
            macs: (GATEWAY_MAC, CLIENT_MAC),
            tags: Vec::new(),
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            sport,
            dport,
            ttl: 64,
            tos: 0,
            transport,
            payload: b"payload of odd length".to_vec(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            dont_fragment: true,
        }
    }

    pub fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Self {
        let mut frame = Self::new(
            src,
            sport,
            dst,
            dport,
            Transport::Tcp { flags, sequence: 0x0102_0304, acknowledged: 0x0a0b_0c0d, options: Vec::new() },
        );
        if flags & tcp_flag::SYN != 0 {
            frame.payload.clear();
        }
        frame
    }

    pub fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Self {
        Self::new(src, sport, dst, dport, Transport::Udp { checksum: true })
    }

    pub fn icmp(src: &str, dst: &str, kind: u8, code: u8, word: u32) -> Self {
        Self::new(src, 0, dst, 0, Transport::Icmp { kind, code, word })
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    pub fn protocol(&self) -> u8 {
        match (&self.transport, self.is_v6()) {
            (Transport::Tcp { .. }, _) => protocol::TCP,
            (Transport::Udp { .. }, _) => protocol::UDP,
            (Transport::Icmp { .. }, false) => protocol::ICMP,
            (Transport::Icmp { .. }, true) => protocol::ICMPV6,
            (Transport::Raw(number), _) => *number,
        }
    }

    /// Transport header and payload, with the checksum.
    fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ports = |bytes: &mut Vec<u8>| {
            bytes.extend(self.sport.to_be_bytes());
            bytes.extend(self.dport.to_be_bytes());
        };
        let at = match &self.transport {
            Transport::Tcp { flags, sequence, acknowledged, options } => {
                ports(&mut bytes);
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledged.to_be_bytes());
                bytes.extend([((5 + options.len() as u8 / 4) << 4), *flags, 0x10, 0, 0, 0, 0, 0]);
                bytes.extend(options);
                Some(16)
            }
            Transport::Udp { checksum } => {
                ports(&mut bytes);
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                checksum.then_some(6)
            }
            Transport::Icmp { kind, code, word } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(word.to_be_bytes());
                Some(2)
            }
            Transport::Raw(_) => None,
        };
        bytes.extend(&self.payload);
        if let Some(at) = at {
            let pseudo = if self.protocol() == protocol::ICMP {
                0
            } else {
                pseudo(self.src, self.dst, self.protocol(), bytes.len())
            };
            let mut checksum = finish(pseudo + sum_bytes(&bytes));
            if checksum == 0 && matches!(self.transport, Transport::Udp { .. }) {
                checksum = 0xffff;
            }
            bytes[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
        }
        bytes
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let mut segment = self.segment();
        if let Some((_, true, _)) = self.fragment {
            // A first fragment's payload is a multiple of 8 bytes.
            segment.truncate(segment.len() / 8 * 8);
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.packet4(src, dst, &segment),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.packet6(src, dst, &segment),
            _ => panic!("families are mixed in {self:?}"),
        }
    }

    fn packet4(&self, src: Ipv4Addr, dst: Ipv4Addr, segment: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let (offset, more, id) = self.fragment.unwrap_or((0, false, 0x1234));
        let flags = offset | (more as u16) << 13 | ((self.dont_fragment && self.fragment.is_none()) as u16) << 14;
        let mut bytes = vec![0x40 | (header / 4) as u8, self.tos];
        bytes.extend(((header + segment.len()) as u16).to_be_bytes());
        bytes.extend((id as u16).to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([self.ttl, self.protocol(), 0, 0]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(&self.options);
        let checksum = finish(sum_bytes(&bytes));
        bytes[10..12].copy_from_slice(&checksum.to_ne_bytes());
        bytes.extend(segment);
        bytes
    }

    fn packet6(&self, src: Ipv6Addr, dst: Ipv6Addr, segment: &[u8]) -> Vec<u8> {
        let mut chain: Vec<(u8, Vec<u8>)> = self.extensions.clone();
        if let Some((offset, more, id)) = self.fragment {
            let mut body = vec![0];
            body.extend((offset << 3 | more as u16).to_be_bytes());
            body.extend(id.to_be_bytes());
            chain.push((protocol::FRAGMENT, body));
        }
        let mut rest = Vec::new();
        for (position, (_, body)) in chain.iter().enumerate() {
            let next = chain.get(position + 1).map_or(self.protocol(), |(number, _)| *number);
            rest.push(next);
            rest.extend(body);
        }
        rest.extend(segment);
        let first = chain.first().map_or(self.protocol(), |(number, _)| *number);
        let mut bytes = ((6u32 << 28) | (self.tos as u32) << 20).to_be_bytes().to_vec();
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend([first, self.ttl]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(rest);
        bytes
    }

    /// The packet in fragments, cut behind these numbers of bytes of its payload, each a multiple of 8.
    pub fn fragments(&self, id: u32, cuts: &[usize]) -> Vec<Frame> {
        let segment = self.segment();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([segment.len()]);
        starts
            .zip(ends)
            .map(|(start, end)| {
                self.clone().with(|f| {
                    f.transport = Transport::Raw(self.protocol());
                    f.payload = segment[start..end].to_vec();
                    f.fragment = Some(((start / 8) as u16, end < segment.len(), id));
                })
            })
            .collect()
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let ethertype = if self.is_v6() { ethertype::IPV6 } else { ethertype::IPV4 };
        let mut bytes = link(self.macs, &self.tags, ethertype);
        bytes.extend(self.packet());
        bytes
    }
}

/// An Ethernet header with VLAN tags.
pub fn link(macs: ([u8; 6], [u8; 6]), tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut bytes = [macs.0, macs.1].concat();
    for (position, tag) in tags.iter().enumerate() {
        let outer = if tags.len() == 2 && position == 0 { ethertype::QINQ } else { ethertype::VLAN };
        bytes.extend(outer.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

/// The sum of the pseudo header.
pub(super) fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> u64 {
    let octets = |addr| match addr {
        IpAddr::V4(addr) => Ipv4Addr::octets(&addr).to_vec(),
        IpAddr::V6(addr) => Ipv6Addr::octets(&addr).to_vec(),
    };
    sum_bytes(&octets(src))
        + sum_bytes(&octets(dst))
        + sum_bytes(&(length as u32).to_be_bytes())
        + sum_bytes(&[0, protocol])
}
