//! What is rare, in programs of its own.

pub mod icmp;
pub mod later_fragment;
pub mod probe;
pub mod hold;
pub mod release;
