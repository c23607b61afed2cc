//! Where the fields of a frame are, and its lengths and checksums made right.

use libtest_mimic::Trial;
use loadbalancer_common::checksum::{finish, sum_bytes};
use loadbalancer_common::net::{ethertype, protocol, tcp_flag};
use loadbalancer_tests::frames::frame::Frame;
use loadbalancer_tests::frames::verify::verify;

/// IP headers inside each other that are looked into: a packet, and the one that an ICMP error quotes.
const DEPTH: u32 = 2;
const EXTENSIONS: usize = 8;

/// A field of one or two bytes, and values that decide something there.
#[derive(Debug)]
pub struct Field {
    at: usize,
    length: usize,
    pub likely: &'static [u16],
}

impl Field {
    pub fn read(&self, frame: &[u8]) -> u16 {
        frame[self.at..self.at + self.length].iter().fold(0, |value, byte| value << 8 | u16::from(*byte))
    }

    pub fn write(&self, frame: &mut [u8], value: u16) {
        frame[self.at..self.at + self.length].copy_from_slice(&value.to_be_bytes()[2 - self.length..]);
    }
}

const LENGTHS: &[u16] = &[0, 1, 7, 8, 19, 20, 28, 40, 60, 1_480, 1_500, 1_501, 9_000, 0xffff];
const NUMBERS: &[u16] = &[0, 1, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 255];
/// Offsets and flags: none, more to come, last, past the end, don't fragment, the reserved bit.
const FRAGMENTS4: &[u16] = &[0, 0x2000, 1, 0x2001, 26, 0x201a, 0x1fff, 0x4000, 0x6000, 0x8000];
const FRAGMENTS6: &[u16] = &[0, 1, 8, 9, 208, 209, 6, 0xfff8, 0xfff9];
const PORTS: &[u16] = &[0, 1, 53, 80, 443, 1_234, 8_080, 19_999, 20_000, 29_999, 40_000, 0xffff];
const HOPS: &[u16] = &[0, 1, 2, 64, 255];
const BYTES: &[u16] = &[0, 1, 2, 3, 4, 5, 8, 128, 255];

/// The Ethernet type, and where what it names begins.
fn link(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        match kind {
            ethertype::VLAN | ethertype::QINQ => at += 4,
            _ => return Some((kind, at + 2)),
        }
    }
}

/// An IP header as far as it can be followed.
struct Walk {
    number: u8,
    transport: usize,
    is_fragment: bool,
    /// Next-header, length and fragment fields of the IPv6 chain.
    chain: Vec<Field>,
}

fn walk(frame: &[u8], at: usize) -> Option<Walk> {
    let byte = |at: usize| frame.get(at).copied();
    let word = |at: usize| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
    if byte(at)? >> 4 == 4 {
        let length = usize::from(byte(at)? & 15) * 4;
        let is_fragment = word(at + 6)? & 0x3fff != 0;
        return (length >= 20).then_some(Walk {
            number: byte(at + 9)?,
            transport: at + length,
            is_fragment,
            chain: Vec::new(),
        });
    }
    let mut found = Walk { number: byte(at + 6)?, transport: at + 40, is_fragment: false, chain: Vec::new() };
    for _ in 0..EXTENSIONS {
        let at = found.transport;
        let length = match found.number {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (usize::from(byte(at + 1)?) + 1) * 8
            }
            protocol::AUTHENTICATION => (usize::from(byte(at + 1)?) + 2) * 4,
            protocol::FRAGMENT => {
                let offset = word(at + 2)?;
                found.is_fragment |= offset & 0xfff9 != 0;
                found.chain.push(Field { at: at + 2, length: 2, likely: FRAGMENTS6 });
                8
            }
            _ => break,
        };
        found.chain.push(Field { at, length: 1, likely: NUMBERS });
        found.chain.push(Field { at: at + 1, length: 1, likely: BYTES });
        found.number = byte(at)?;
        found.transport += length;
    }
    Some(found)
}

/// All fields that are there.
pub fn find(frame: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    if let Some((_, at)) = link(frame) {
        const TYPES: &[u16] = &[ethertype::IPV4, ethertype::IPV6, ethertype::VLAN, ethertype::QINQ, 0x0806];
        fields.push(Field { at: at - 2, length: 2, likely: TYPES });
        packet(frame, at, DEPTH, &mut fields);
    }
    fields.retain(|field| field.at + field.length <= frame.len());
    fields
}

fn packet(frame: &[u8], at: usize, depth: u32, fields: &mut Vec<Field>) {
    let mut add = |at: usize, length: usize, likely: &'static [u16]| fields.push(Field { at, length, likely });
    const FIRST: &[u16] = &[0x45, 0x46, 0x4f, 0x44, 0x40, 0x55, 0x60, 0x65];
    add(at, 1, FIRST);
    let is_v4 = frame.get(at).is_some_and(|byte| byte >> 4 == 4);
    if is_v4 {
        add(at + 2, 2, LENGTHS);
        add(at + 4, 2, PORTS);
        add(at + 6, 2, FRAGMENTS4);
        add(at + 8, 1, HOPS);
        add(at + 9, 1, NUMBERS);
        add(at + 15, 1, BYTES);
        add(at + 19, 1, BYTES);
    } else {
        add(at + 4, 2, LENGTHS);
        add(at + 6, 1, NUMBERS);
        add(at + 7, 1, HOPS);
        add(at + 23, 1, BYTES);
        add(at + 39, 1, BYTES);
    }
    let Some(walk) = walk(frame, at) else {
        return;
    };
    let at = walk.transport;
    match walk.number {
        protocol::TCP => {
            // Header length; flags: none, FIN, SYN, RST, SYN-FIN, ACK and what goes with it, all.
            add(at + 12, 1, &[0, 0x10, 0x40, 0x50, 0x60, 0xf0]);
            add(at + 13, 1, &[0, 1, 2, 4, 3, 6, 0x10, 0x11, 0x12, 0x14, 0x18, 0x29, 0xff]);
            add(at, 2, PORTS);
            add(at + 2, 2, PORTS);
        }
        protocol::UDP => {
            add(at, 2, PORTS);
            add(at + 2, 2, PORTS);
            add(at + 4, 2, LENGTHS);
            add(at + 6, 2, &[0, 1, 0xffff]);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            add(at, 1, &[0, 1, 2, 3, 4, 5, 8, 11, 12, 128, 129, 133, 135, 136]);
            add(at + 1, 1, BYTES);
            // The MTU of an error.
            add(at + 6, 2, LENGTHS);
            if depth > 1 {
                packet(frame, at + 8, depth - 1, fields);
            }
        }
        _ => {}
    }
    fields.extend(walk.chain);
}

/// Makes lengths and checksums right, as far as the headers can be followed.
pub fn repair(frame: &mut [u8]) {
    if let Some((ethertype::IPV4 | ethertype::IPV6, at)) = link(frame)
        && let Some(walk) = walk(frame, at)
    {
        let is_v4 = frame[at] >> 4 == 4;
        if walk.transport > frame.len() || (!is_v4 && frame.len() < at + 40) {
            return;
        }
        let length = (frame.len() - at).min(0xffff) as u16;
        if is_v4 {
            frame[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
            frame[at + 10..at + 12].fill(0);
            let sum = finish(sum_bytes(&frame[at..walk.transport]));
            frame[at + 10..at + 12].copy_from_slice(&sum.to_ne_bytes());
        } else {
            frame[at + 4..at + 6].copy_from_slice(&(length - 40).to_be_bytes());
        }
        if !walk.is_fragment {
            let addresses = if is_v4 { at + 12..at + 20 } else { at + 8..at + 40 };
            let addresses = sum_bytes(&frame[addresses]);
            transport(&mut frame[walk.transport..], walk.number, addresses);
        }
    }
}

fn transport(segment: &mut [u8], number: u8, addresses: u64) {
    let at = match number {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return,
    };
    if segment.len() < at + 2 {
        return;
    }
    let length = segment.len() as u32;
    if number == protocol::UDP {
        segment[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        // None stays none.
        if segment[6..8] == [0, 0] {
            return;
        }
    }
    let pseudo = if number == protocol::ICMP {
        0
    } else {
        addresses + sum_bytes(&length.to_be_bytes()) + sum_bytes(&[0, number])
    };
    segment[at..at + 2].fill(0);
    let sum = match finish(pseudo + sum_bytes(segment)) {
        0 if number == protocol::UDP => 0xffff,
        sum => sum,
    };
    segment[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

pub fn trials() -> Vec<Trial> {
    trials![repaired_frames_are_sound_whatever_field_was_broken]
}

fn repaired_frames_are_sound_whatever_field_was_broken() {
    let (v4, v6) = (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"));
    for (src, dst) in [v4, v6] {
        let kind = if src == v6.0 { 128 } else { 8 };
        for frame in [
            Frame::tcp(src, 1, dst, 80, tcp_flag::ACK),
            Frame::udp(src, 1, dst, 53),
            Frame::icmp(src, dst, kind, 0, 7),
            Frame::udp(src, 1, dst, 53).with(|frame| frame.tags = vec![5, 6]),
        ] {
            let l3 = 14 + 4 * frame.tags.len();
            let sound = frame.bytes();
            let mut broken = sound.clone();
            // Length, and a byte of the payload.
            broken[l3 + 5 - 2 * usize::from(src == v4.0)] ^= 0xff;
            *broken.last_mut().expect("a payload") ^= 0xff;
            assert!(verify(&broken[l3..]).is_err(), "{frame:?}");
            repair(&mut broken);
            assert_eq!(verify(&broken[l3..]), Ok(()), "{frame:?}");
            assert!(find(&sound).len() >= 8, "{frame:?}");
        }
    }
}
