//! Virtual services: what a packet's destination is looked up in, and what the lookup gives.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::net::{Addr4, Addr6, AnyAddr, Be16};

/// Key of the VIP maps. `port` zero stands for any port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VipKey<A> {
    pub addr: A,
    pub port: Be16,
    pub protocol: u8,
    pub pad: u8,
}

pub type VipKey4 = VipKey<Addr4>;
pub type VipKey6 = VipKey<Addr6>;

/// What stands behind an address, port and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Vip {
    /// Index into the service array; meaningless for [`Vip::NAT_SOURCE`].
    pub service: u16,
    /// One of [`Vip::SERVICE`], [`Vip::NAT_SOURCE`].
    pub kind: u16,
    pub pad: u32,
}

impl Vip {
    /// Clients send here: a virtual service.
    pub const SERVICE: u16 = 1;
    /// Servers answer here: an address that `nat` uses as its source. Port is zero in its key.
    pub const NAT_SOURCE: u16 = 2;
}

/// Value of the reply maps (key: server address, server port or zero, protocol): the VIP that replies of a `dnat`
/// server must carry as their source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Reply {
    pub vip: AnyAddr,
    /// Zero keeps the port (a service on any port).
    pub port: Be16,
    pub service: u16,
    pub backend: u16,
    /// That of the service.
    pub sample_mask: u16,
}

/// Index 0 is no service: packets that are not ours are counted there.
pub const NO_SERVICE: u16 = 0;

/// Tiers a service can have in the kernel.
pub const MAX_TIERS: usize = 4;

/// How packets reach the servers of a service.
pub mod mode {
    pub const NAT: u8 = 1;
    pub const DNAT: u8 = 2;
    /// `dsr-l2`, `dsr-ipip` and `dsr-gue` differ only in their path headers.
    pub const DSR: u8 = 3;
}

/// One service, as the packet path reads it. The controller replaces single aligned fields, never the flow of a reader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// One of [`mode`]; zero: the slot is unused.
    pub mode: u8,
    pub flags: u8,
    /// Tiers in use, preferred first.
    pub tier_count: u8,
    pub pad: u8,
    /// First and last port that `nat` may use as source, host order.
    pub nat_port_first: u16,
    pub nat_port_last: u16,
    /// Which flows are sampled, see [`crate::signal::is_sampled`].
    pub sample_mask: u16,
    pub pad2: [u16; 3],
    /// Which it is in the configuration, so that a new controller recognises what it finds.
    pub identity: u64,
    /// Ring and members of each tier, see [`crate::ring::RingRef`]; one word so that a switch is seen as a whole.
    pub tiers: [u64; MAX_TIERS],
}

impl Service {
    /// New flows follow the client's address: flows of one client meet on one server (R18).
    pub const CLIENT_AFFINITY: u8 = 1;
    /// What cannot be served is answered (TCP reset, ICMP unreachable) instead of dropped.
    pub const REFUSE_WITH_RESET: u8 = 2;
    /// Live flows of a server that is down are reset instead of kept.
    pub const RESET_ON_DOWN: u8 = 4;
    /// The first datagram of a flow may wait as a connection does.
    pub const QUEUE_DATAGRAMS: u8 = 8;

    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Per service, shared by all CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceState {
    /// Raised whenever a server of the service may have room again: a flow ended, a mark was raised, a server came.
    pub room_epoch: u64,
    /// Value of `room_epoch`, plus one, at which a search found every server at its mark; zero: none was. While they
    /// agree, a new flow is refused at once instead of searching all servers again.
    pub full_epoch: u64,
    /// Until when flows that no server takes are handed over to the controller, in nanoseconds of the monotonic clock. The
    /// controller moves it on while it lives, so that a dead one holds nothing up.
    pub queue_until: u64,
    /// The same for all new flows: as long as some wait, none may overtake them.
    pub waiting_until: u64,
    /// Not zero: a flow may wait only if its client has shown that it is where its packets say.
    pub challenge: u64,
    pub pad: [u64; 3],
}

/// Places of words, for whoever sees a state as words.
impl ServiceState {
    pub const ROOM_EPOCH: usize = offset_of!(Self, room_epoch) / size_of::<u64>();
    pub const FULL_EPOCH: usize = offset_of!(Self, full_epoch) / size_of::<u64>();
    pub const QUEUE_UNTIL: usize = offset_of!(Self, queue_until) / size_of::<u64>();
    pub const WAITING_UNTIL: usize = offset_of!(Self, waiting_until) / size_of::<u64>();
    pub const CHALLENGE: usize = offset_of!(Self, challenge) / size_of::<u64>();
}
