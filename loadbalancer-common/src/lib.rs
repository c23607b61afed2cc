//! The contract between the packet path (XDP program) and the controller.
//!
//! Everything here is `no_std`, free of allocation and of side effects: plain-old-data layouts of the maps that the two
//! sides share, and the pure decisions that must come out the same on both (hashing, affinity, admission, checksums).
//!
//! Modules in the order in which a packet meets them.

#![no_std]
#![deny(unsafe_code)]
#![deny(clippy::missing_errors_doc)]

pub mod net;
pub mod settings;
pub mod clock;
pub mod hash;
pub mod service;
pub mod ring;
pub mod affinity;
pub mod admission;
pub mod backend;
pub mod path;
pub mod probe;
pub mod queue;
pub mod conntrack;
pub mod signal;
pub mod checksum;
pub mod histogram;
pub mod outcome;
mod pod;

/// Version of every layout in this crate. It is part of the directory in which maps are pinned, so a controller never
/// adopts a state that it would misread. Raise it with any change of a map's key, value, size class or meaning.
pub const LAYOUT_VERSION: u32 = 6;
