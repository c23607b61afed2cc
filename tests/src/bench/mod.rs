//! Benches: what they have in common, and the packet bench.

pub mod packet;
pub mod plot;
pub mod qos;
pub mod queue;
pub mod report;
pub mod ring;
pub mod scenario;
pub mod simulate;
pub mod system;
