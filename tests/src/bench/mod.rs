//! Benches: what they have in common, and the packet bench.

pub mod packet;
pub mod plot;
pub mod qos;
pub mod report;
pub mod ring;
pub mod simulate;
pub mod system;
