//! How packets reach servers and come back, a file for each kind.

pub mod dsr;
pub mod dnat;
pub mod nat;
