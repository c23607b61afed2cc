//! Weights as they are configured and set by hand.

/// The largest; 0: no new flows.
pub const MAX_WEIGHT: u16 = 1_000;
