//! Kernel state: loading the programs, the maps, and bringing the maps to what is wanted. The only user of aya.

pub mod load;
pub mod attach;
pub mod attached_program;
pub mod pins;
pub mod packet_log;
pub mod sizes;
pub mod maps;
pub mod queue_buffer;
pub mod ids;
pub mod reconcile;
pub mod census;
pub mod classes;
pub mod stats;
pub mod signals;
pub mod flows;
pub mod half_open;
pub mod clock;
pub mod decap;
pub mod error;
