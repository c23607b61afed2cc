//! `Pod` for the generic layouts, which the derive cannot prove: a derived `Pod` wants a concrete type.
//!
//! What makes them sound is checked here at compile time: the size is the sum of the fields, so there is no padding.

#![expect(unsafe_code, reason = "bytemuck's derive does not take generic structs")]

use bytemuck::{Pod, Zeroable};

use crate::conntrack::{Fragment, FragmentKey, Translation, Tuple};
use crate::net::{Addr4, Addr6};
use crate::path::LastHop;
use crate::service::VipKey;

macro_rules! pod {
    ($($layout:ident: $rest:expr, $addrs:expr;)+) => { $(
        const _: () = assert!(size_of::<$layout<Addr4>>() == $rest + $addrs * size_of::<Addr4>());
        const _: () = assert!(size_of::<$layout<Addr6>>() == $rest + $addrs * size_of::<Addr6>());
        // SAFETY: all fields are `Pod`, the layout is `repr(C)`, and the assertions above exclude padding.
        unsafe impl Zeroable for $layout<Addr4> {}
        // SAFETY: as above.
        unsafe impl Pod for $layout<Addr4> {}
        // SAFETY: as above.
        unsafe impl Zeroable for $layout<Addr6> {}
        // SAFETY: as above.
        unsafe impl Pod for $layout<Addr6> {}
    )+ };
}

const LAST_HOP: usize = size_of::<LastHop>();

pod! {
    VipKey: 4, 1;
    Tuple: 8, 2;
    Translation: 24 + LAST_HOP, 2;
    FragmentKey: 8, 2;
    Fragment: 8 + LAST_HOP, 2;
}
