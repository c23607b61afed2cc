//! Settings of the packet path as a whole.

use bytemuck::{Pod, Zeroable};

/// Idle time-outs, in ticks of [`crate::clock`], by state of a flow. The index is the state's number in
/// [`crate::affinity::state`].
pub const TIMEOUTS: usize = 8;

/// Indices into the program array.
pub mod program {
    pub const SPECIAL4: u32 = 0;
    pub const SPECIAL6: u32 = 1;
    pub const IPV6: u32 = 2;
    /// Flows that no server takes.
    pub const HOLD4: u32 = 3;
    pub const HOLD6: u32 = 4;
    /// Frames that the controller gives back: their ticket, then the rest.
    pub const TICKET: u32 = 5;
    pub const RELEASE4: u32 = 6;
    pub const RELEASE6: u32 = 7;
    pub const COUNT: u32 = 8;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Key of the flow hash; gateways that share an address must share it.
    pub seed: u64,
    /// Number of affinity buckets minus one; the number is a power of two.
    pub affinity_mask: u32,
    pub flags: u32,
    pub timeouts: [u16; TIMEOUTS],
    /// Always zero. The packet path adds it to offsets that the verifier would otherwise follow value by value, walking
    /// the whole program once per kind of link header.
    pub zero: u64,
    /// Number of places for sampled flows minus one; the number is a power of two.
    pub observed_mask: u32,
    /// Interface by which our own probes come in; zero: there are none.
    pub prober: u32,
}

impl Settings {
    /// Some service is on any port, or some service is `nat`: a second VIP lookup is needed.
    pub const ANY_PORT: u32 = 1;
    /// Some service is `dnat`: replies must be looked for.
    pub const DNAT: u32 = 2;
    /// What goes out of the interface that it came from is redirected there. `XDP_TX` on a veth wakes the other end only
    /// if that has an XDP program; a redirected frame wakes it if it has GRO as well.
    pub const REDIRECT_BACK: u32 = 4;
}
