//! Refusals: what cannot be served is told so, or dropped, as the service is configured.

use aya_ebpf::programs::XdpContext;
use loadbalancer_common::checksum::finish;
use loadbalancer_common::net::{Be16, protocol, tcp_flag};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::service::Service;
use loadbalancer_common::settings::program;
use network_types::tcp::TcpHdr;

use crate::family::Family;
use crate::frame;
use crate::icmp;
use crate::maps;
use crate::parse::Packet;
use crate::queue;
use crate::verdict::Verdict;

/// Refuses a packet for a reason, unless its flow may wait.
#[inline(always)]
pub fn packet<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    outcome: Outcome,
) -> Verdict {
    if queue::takes(packet, service_id, service, outcome) {
        maps::tail_call(ctx, if F::V6 { program::HOLD6 } else { program::HOLD4 });
    }
    now::<F>(ctx, packet, service_id, service, outcome)
}

/// The same for what is not to wait.
#[inline(always)]
pub fn now<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    service_id: u16,
    service: &Service,
    outcome: Outcome,
) -> Verdict {
    let may_answer = matches!(
        outcome,
        Outcome::NoServer | Outcome::Full | Outcome::UnknownFlow | Outcome::ServerGone | Outcome::QueueRefused
    ) && service.has(Service::REFUSE_WITH_RESET);
    if may_answer && answer::<F>(ctx, packet) {
        Verdict::answer(service_id, outcome)
    } else {
        Verdict::drop(service_id, outcome)
    }
}

/// Tells the client that it is refused: turns the frame into the answer.
#[inline(never)]
pub fn answer<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> bool {
    if packet.is_tcp() {
        reset::<F>(ctx, packet)
    } else {
        let unreachable = if F::V6 { [1, 4] } else { [3, 3] };
        icmp::error::<F>(ctx, packet, u16::from_ne_bytes(unreachable), 0)
    }
}

/// Turns the frame into the reset that answers it (RFC 9293, section 3.5.2).
#[inline(always)]
fn reset<F: Family>(ctx: &XdpContext, packet: &Packet<F::Addr>) -> bool {
    if packet.tcp_flags & tcp_flag::RST != 0 {
        return false;
    }
    let l4 = packet.l4 as usize;
    let Some([_, sequence, acknowledged, offset_flags, _]) = frame::load::<[u32; 5]>(ctx, l4) else {
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
    segment::<F>(ctx, packet, new_sequence, new_acknowledged, flags)
}

/// Turns the frame into a segment without data that goes back to who sent it. Numbers are in network order.
#[inline(always)]
pub fn segment<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Addr>,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
) -> bool {
    let l3 = packet.l3 as usize & 31;
    let length = F::HEADER + TcpHdr::LEN;
    if !frame::cut_to(ctx, l3 + length, frame::length(ctx)) || !icmp::swap_macs(ctx, 0) {
        return false;
    }
    let offset_flags = ((5u32 << 28) | ((flags as u32) << 16)).to_be();
    let sum = icmp::address_sum::<F>(packet)
        + Be16::new(TcpHdr::LEN as u16).0 as u64
        + icmp::protocol_word(protocol::TCP)
        + packet.sport.0 as u64
        + packet.dport.0 as u64
        + sequence as u64
        + acknowledged as u64
        + offset_flags as u64;
    icmp::write_ip::<F>(ctx, packet, length, protocol::TCP)
        && frame::store(ctx, l3 + F::HEADER, [packet.dport, packet.sport])
        && frame::store(ctx, l3 + F::HEADER + 4, [sequence, acknowledged, offset_flags])
        && frame::store(ctx, l3 + F::HEADER + 16, [finish(sum), 0])
}
