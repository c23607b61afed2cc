//! Kernel state: loading the programs, the maps, and bringing the maps to what is wanted.

pub mod map;
pub mod kernel;
mod occupant;
