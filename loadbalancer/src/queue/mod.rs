//! The queue of connections that no server may take.

pub mod order;
