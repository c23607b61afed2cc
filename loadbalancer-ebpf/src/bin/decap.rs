//! What runs on a server: takes the outer header off tunnelled packets, so that no tunnel device is needed.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, xdp_action};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::net::{AnyAddr, Be16, GUE_PORT, ethertype, protocol};
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

#[expect(dead_code, reason = "the gateway's program uses all of it, this one a part")]
#[path = "../packet/cursor.rs"]
mod cursor;

use cursor::Frame;

/// UDP port on which GUE arrives, host order; zero stands for the default.
#[map]
static GUE: Array<u32> = Array::with_max_entries(1, 0);

/// Addresses at which tunnels end here. Packets in a tunnel to elsewhere are not this machine's to open.
#[map]
static ENDS: HashMap<AnyAddr, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Packets taken out of a tunnel.
#[map]
static DECAPSULATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Passes every frame. A veth end accepts redirected frames only where some program runs.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp(frags)]
pub fn decap(mut ctx: XdpContext) -> u32 {
    let frame = Frame::of_program(&mut ctx);
    match inner(frame) {
        Some((outer, ethertype)) => strip(frame, outer, ethertype),
        None => xdp_action::XDP_PASS,
    }
}

/// Bytes of outer headers, and the EtherType of what they carry.
#[inline(always)]
fn inner(frame: &Frame) -> Option<(usize, u16)> {
    let at = EthHdr::LEN;
    let (mut outer, mut carried, end) = match frame.load::<Be16>(at - 2)?.get() {
        ethertype::IPV4 => {
            let header = frame.load::<[u8; Ipv4Hdr::LEN]>(at)?;
            // Options and fragments are not what a load balancer's tunnel sends.
            if header[0] != 0x45 || u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                return None;
            }
            (Ipv4Hdr::LEN, header[9], AnyAddr([frame.load::<u32>(at + 16)?, 0, 0, 0]))
        }
        ethertype::IPV6 => {
            let header = frame.load::<[u8; 8]>(at)?;
            (Ipv6Hdr::LEN, header[6], AnyAddr(frame.load::<[u32; 4]>(at + 24)?))
        }
        _ => return None,
    };
    if carried == protocol::UDP {
        let port = match GUE.get(0) {
            Some(0) | None => GUE_PORT,
            Some(port) => *port as u16,
        };
        if frame.load::<[Be16; 2]>(at + outer)?[1].get() != port {
            return None;
        }
        outer += UdpHdr::LEN;
        // Variant 1: the version of IP stands where variant 0 has its own.
        carried = match frame.load::<u8>(at + outer)? >> 4 {
            4 => protocol::IPV4,
            6 => protocol::IPV6,
            _ => return None,
        };
    }
    let carried = match carried {
        protocol::IPV4 => ethertype::IPV4,
        protocol::IPV6 => ethertype::IPV6,
        _ => return None,
    };
    // SAFETY: the value is not used.
    unsafe { ENDS.get(end) }?;
    Some((outer, carried))
}

#[inline(always)]
fn strip(frame: &mut Frame, outer: usize, ethertype: u16) -> u32 {
    let Some(macs) = frame.load::<[u16; 6]>(0) else {
        return xdp_action::XDP_PASS;
    };
    if !frame.grow_head(-(outer as i32)) || !frame.store(0, macs) || !frame.store(EthHdr::LEN - 2, Be16::new(ethertype))
    {
        return xdp_action::XDP_DROP;
    }
    if let Some(count) = DECAPSULATED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no path reaches this.
    loop {}
}
