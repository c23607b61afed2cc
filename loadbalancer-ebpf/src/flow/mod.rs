//! What is known of a flow: its entry in the affinity table, its two in connection tracking, or its first fragment.

pub mod affinity;
pub mod conntrack;
pub mod fragment;
