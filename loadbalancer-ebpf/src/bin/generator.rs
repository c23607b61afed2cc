//! The generator of the packet bench: a frame of another flow at every call, then the program under test. Not part of
//! the product.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::XdpContext;
use loadbalancer_common::checksum::finish;
use loadbalancer_common::hash::{mix, scale};
use loadbalancer_common::net::{Addr4, Be16};

#[expect(dead_code, reason = "the gateway's program uses all of it, this one a part")]
#[path = "../packet/cursor.rs"]
mod cursor;

use cursor::Frame;

/// Bytes of a template: Ethernet, IPv6 and TCP, or IPv4 and TCP with options, rounded up.
const TEMPLATE: usize = 80;

/// What to generate. The layout is known to the bench.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    /// Flows, after which the first comes again.
    flows: u32,
    /// Number of the next one.
    next: u32,
    /// Bytes of the frame, and where in it the last four bytes of the source address and the source port are.
    length: u32,
    address_at: u32,
    port_at: u32,
    /// Address of the first flow, in host order.
    address: u32,
    /// Flows in random order, or one after the other.
    random: u32,
    /// Where the checksums of IP (zero: none) and transport are, and their sums without address and port.
    ip_checksum_at: u32,
    checksum_at: u32,
    ip_sum: u32,
    sum: u32,
    template: [u8; TEMPLATE],
}

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What remains of a program that does nothing.
#[xdp(frags)]
pub fn null(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// A flow, and its backend, as a kernel hash map has them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    src: Addr4,
    dst: Addr4,
    ports: [Be16; 2],
    protocol: u32,
}

#[map]
static LRU: LruHashMap<Flow, u32> = LruHashMap::with_max_entries(2_000_000, 0);
/// Outer headers by backend.
#[map]
static OUTER: Array<[u32; 5]> = Array::with_max_entries(128, 0);

/// What to compare with: the least that a balancer does which keeps its flows in the kernel's own LRU hash map, as most do.
/// It looks for the flow, takes any server for a new one, and encapsulates in IPv4, without any check or counter.
#[xdp(frags)]
pub fn lru(mut ctx: XdpContext) -> u32 {
    if balance(Frame::of_program(&mut ctx)).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_DROP }
}

#[inline(always)]
fn balance(frame: &mut Frame) -> Option<()> {
    let words = frame.load::<[u32; 6]>(14)?;
    let flow = Flow {
        src: Addr4(words[3]),
        dst: Addr4(words[4]),
        ports: frame.load::<[Be16; 2]>(34)?,
        protocol: words[2] & 0xff00,
    };
    // SAFETY: the value is a word.
    let backend = match unsafe { LRU.get(flow) } {
        Some(backend) => *backend,
        None => {
            let backend = (flow.ports[0].get() % 100) as u32;
            LRU.insert(flow, backend, 0).ok()?;
            backend
        }
    };
    let outer = *OUTER.get(backend)?;
    let macs = frame.load::<[u16; 7]>(0)?;
    if !frame.grow_head(20) {
        return None;
    }
    let length = u16::from_be((words[0] >> 16) as u16) + 20;
    let first = (words[0] & 0xffff) | ((length.to_be() as u32) << 16);
    let sum = first as u64 + outer[1] as u64 + outer[2] as u64 + outer[3] as u64 + outer[4] as u64;
    let third = outer[2] | ((finish(sum) as u32) << 16);
    let stored = frame.store(0, macs) && frame.store(14, [first, outer[1], third, outer[3], outer[4]]);
    stored.then_some(())
}

#[xdp(frags)]
pub fn generator(mut ctx: XdpContext) -> u32 {
    if make(Frame::of_program(&mut ctx)).is_some() {
        // SAFETY: the program array holds XDP programs only.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn make(frame: &mut Frame) -> Option<()> {
    let config = CONFIG.get_ptr_mut(0)?;
    // SAFETY: the bench runs on one CPU, and nothing else uses this map.
    let config = unsafe { &mut *config };
    let number = config.next;
    config.next = if number + 1 >= config.flows { 0 } else { number + 1 };
    let flow = if config.random == 0 { number } else { scale(mix(number as u64), config.flows) };
    // The frame is as the last program has left it; the helper is called whether or not its head has moved, so that it
    // is in both of what is compared.
    let extra = frame.linear_length() as i32 - config.length as i32;
    // SAFETY: the context is the one that the kernel gave us.
    if unsafe { bpf_xdp_adjust_head(frame.context_mut(), extra) } != 0 {
        return None;
    }
    let copied = match config.length {
        ..66 => frame.write_front::<54, _>(&config.template),
        66 => frame.write_front::<66, _>(&config.template),
        _ => frame.write_front::<74, _>(&config.template),
    };
    if !copied {
        return None;
    }
    let (address, port) = ((config.address + (flow >> 12)).to_be(), (1024 + (flow & 0xfff) as u16).to_be());
    if config.ip_checksum_at != 0
        && !frame.store(config.ip_checksum_at as usize, finish(config.ip_sum as u64 + address as u64))
    {
        return None;
    }
    let checksum = finish(config.sum as u64 + address as u64 + port as u64);
    let stored = frame.store(config.address_at as usize, address)
        && frame.store(config.port_at as usize, port)
        && frame.store(config.checksum_at as usize, checksum);
    stored.then_some(())
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no path reaches this.
    loop {}
}
