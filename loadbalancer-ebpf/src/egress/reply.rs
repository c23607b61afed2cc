//! What we answer ourselves: ICMP errors, echo replies, resets and challenges. The frame becomes its answer.

use loadbalancer_common::checksum::{finish, replace16, update};
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::cookie;
use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::tcp::TcpHdr;

use crate::clock;
use crate::packet::cursor::{Frame, LONG_QUOTE};
use crate::packet::family::Family;
use crate::packet::parse::Packet;
use crate::verdict::Verdict;

/// Message types (IANA), ICMP first, ICMPv6 second.
pub const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// An error that we answer with.
#[derive(Clone, Copy)]
pub enum Answer {
    TimeExceeded,
    /// Largest packet that fits.
    TooBig(u16),
}

impl Answer {
    /// Type and code.
    #[inline(always)]
    fn kind<F: Family>(self) -> [u8; 2] {
        match (self, F::V6) {
            (Answer::TimeExceeded, false) => [11, 0],
            (Answer::TooBig(_), false) => [3, 4],
            (Answer::TimeExceeded, true) => [3, 0],
            (Answer::TooBig(_), true) => [2, 0],
        }
    }
}

/// Answers a packet with an ICMP error.
#[inline(always)]
pub fn icmp_error<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, service: u16, answer: Answer) -> Verdict {
    let outcome = match answer {
        Answer::TimeExceeded => Outcome::TtlAnswered,
        Answer::TooBig(_) => Outcome::TooBigAnswered,
    };
    let kind = u16::from_ne_bytes(answer.kind::<F>());
    let word = match answer {
        // In ICMPv6 the MTU takes the whole word, in ICMP its lower half (RFC 1191).
        Answer::TooBig(mtu) => mtu,
        Answer::TimeExceeded => 0,
    };
    if write_icmp_error::<F>(frame, packet, kind, word) {
        Verdict::answer(service, outcome)
    } else {
        Verdict::drop(service, Outcome::Internal)
    }
}

/// Turns the frame into an ICMP error that quotes it.
#[inline(never)]
pub fn write_icmp_error<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, kind: u16, mtu: u16) -> bool {
    let l3 = packet.l3 as usize & 31;
    let header = F::HEADER + Icmpv4Hdr::LEN;
    let quote = if packet.length as usize >= LONG_QUOTE && frame.is_linear(l3 + LONG_QUOTE) {
        LONG_QUOTE
    } else if F::V6 {
        F::HEADER + 8
    } else {
        ((packet.l4 - packet.l3) as usize & 63) + 8
    };
    if !frame.cut_to(l3 + quote) || !frame.grow_head(header as i32) {
        return false;
    }
    if !swap_macs(frame, header) || !move_link_rest(frame, header, l3) {
        return false;
    }
    let word = [Be16(0), Be16::new(mtu)];
    let quoted = if quote == LONG_QUOTE {
        frame.sum_long_quote(l3 + header)
    } else {
        sum_short_quote(frame, l3 + header, quote)
    };
    let Some(quoted) = quoted else {
        return false;
    };
    let message = quoted + kind as u64 + word[1].0 as u64;
    let length = header + quote;
    F::write_header(frame, packet, length, F::ICMP)
        && frame.store(
            l3 + F::HEADER,
            [kind, finish(message + pseudo::<F>(packet, length - F::HEADER)), word[0].0, word[1].0],
        )
}

/// Moves what follows the Ethernet addresses to the new start of the frame.
#[inline(always)]
fn move_link_rest(frame: &mut Frame, by: usize, l3: usize) -> bool {
    let mut at = EthHdr::LEN - 2;
    while at < 22 {
        if at >= l3 {
            break;
        }
        match frame.load::<u16>(at + by) {
            Some(pair) => {
                if !frame.store(at, pair) {
                    return false;
                }
            }
            None => return false,
        }
        at += 2;
    }
    true
}

/// Sum of a quote that holds a header with options and eight bytes, at most.
#[inline(always)]
fn sum_short_quote(frame: &Frame, from: usize, length: usize) -> Option<u64> {
    let mut sum = 0u64;
    let mut at = 0;
    while at < 68 {
        if at >= length {
            break;
        }
        sum += frame.load::<u16>(from + at)? as u64;
        at += 2;
    }
    Some(sum)
}

/// ICMPv6 covers a pseudo header (RFC 8200, section 8.1), ICMP does not.
#[inline(always)]
fn pseudo<F: Family>(packet: &Packet<F::Addr>, length: usize) -> u64 {
    if F::V6 { address_sum::<F>(packet) + Be16::new(length as u16).0 as u64 + protocol_word(F::ICMP) } else { 0 }
}

/// A protocol number as it lies in a pseudo header.
#[inline(always)]
fn protocol_word(protocol: u8) -> u64 {
    u16::from_ne_bytes([0, protocol]) as u64
}

/// Sum of a packet's addresses.
#[inline(always)]
fn address_sum<F: Family>(packet: &Packet<F::Addr>) -> u64 {
    F::sum(packet.src) + F::sum(packet.dst)
}

/// Answers an echo request: type, addresses and checksums are changed in place (RFC 792, RFC 4443).
#[inline(never)]
pub fn echo<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, service: u16) -> Verdict {
    let (l3, l4) = (packet.l3 as usize, packet.l4 as usize);
    let request = u16::from_ne_bytes([ECHO_REQUEST[F::V6 as usize], 0]);
    let reply = u16::from_ne_bytes([ECHO_REPLY[F::V6 as usize], 0]);
    let Some(checksum) = frame.load::<u16>(l4 + 2) else {
        return Verdict::drop(service, Outcome::Internal);
    };
    // The pseudo header's sum does not change when source and destination change places. Zero is no checksum of zeros,
    // and an update never gives the other form, which is right for all else as well (RFC 1624, section 3).
    let checksum = match update(checksum, replace16(request, reply)) {
        0 => !0,
        checksum => checksum,
    };
    let done = frame.store(l4, [reply, checksum])
        && swap_macs(frame, 0)
        && F::readdress(frame, l3, packet.dst, packet.src)
        && F::renew_ttl(frame, l3);
    if done { Verdict::answer(service, Outcome::EchoAnswered) } else { Verdict::drop(service, Outcome::Internal) }
}

/// Swaps the Ethernet addresses at the start, taking them from an offset.
#[inline(always)]
#[must_use]
fn swap_macs(frame: &mut Frame, from: usize) -> bool {
    match frame.load::<[u16; 6]>(from) {
        Some(m) => frame.store(0, [m[3], m[4], m[5], m[0], m[1], m[2]]),
        None => false,
    }
}

/// Turns the frame into the reset that answers it (RFC 9293, section 3.5.2).
#[inline(always)]
pub fn reset<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>) -> bool {
    if packet.tcp_flags & tcp_flag::RST != 0 {
        return false;
    }
    let l4 = packet.l4 as usize;
    let Some([_, sequence, acknowledged, offset_flags, _]) = frame.load::<[u32; 5]>(l4) else {
        return false;
    };
    let header = (u32::from_be(offset_flags) >> 28) * 4;
    let data = (packet.l3 as u32 + packet.length as u32).wrapping_sub(packet.l4 as u32 + header);
    let (new_sequence, new_acknowledged, flags) = if packet.tcp_flags & tcp_flag::ACK != 0 {
        (acknowledged, 0, tcp_flag::RST)
    } else {
        let used =
            data + (packet.tcp_flags & tcp_flag::SYN != 0) as u32 + (packet.tcp_flags & tcp_flag::FIN != 0) as u32;
        (0, u32::from_be(sequence).wrapping_add(used).to_be(), tcp_flag::RST | tcp_flag::ACK)
    };
    segment::<F>(frame, packet, new_sequence, new_acknowledged, flags)
}

/// Turns the frame into a segment without data that goes back to who sent it. Numbers are in network order.
#[inline(always)]
fn segment<F: Family>(
    frame: &mut Frame,
    packet: &Packet<F::Addr>,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
) -> bool {
    let l3 = packet.l3 as usize & 31;
    let length = F::HEADER + TcpHdr::LEN;
    if !frame.cut_to(l3 + length) || !swap_macs(frame, 0) {
        return false;
    }
    let offset_flags = ((5u32 << 28) | ((flags as u32) << 16)).to_be();
    let sum = address_sum::<F>(packet)
        + Be16::new(TcpHdr::LEN as u16).0 as u64
        + protocol_word(protocol::TCP)
        + packet.sport.0 as u64
        + packet.dport.0 as u64
        + sequence as u64
        + acknowledged as u64
        + offset_flags as u64;
    F::write_header(frame, packet, length, protocol::TCP)
        && frame.store(l3 + F::HEADER, [packet.dport, packet.sport])
        && frame.store(l3 + F::HEADER + 4, [sequence, acknowledged, offset_flags])
        && frame.store(l3 + F::HEADER + 16, [finish(sum), 0])
}

/// Turns the frame into the challenge that answers it.
#[inline(always)]
pub fn challenge<F: Family>(frame: &mut Frame, packet: &Packet<F::Addr>, service: u16, hash: u64) -> Verdict {
    if segment::<F>(frame, packet, 0, cookie(hash, clock::now()).to_be(), tcp_flag::ACK) {
        Verdict::answer(service, Outcome::Challenged)
    } else {
        Verdict::drop(service, Outcome::Internal)
    }
}
