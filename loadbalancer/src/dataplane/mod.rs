//! Kernel state: loading the programs, the maps, and bringing the maps to what is wanted.

pub mod map;
pub mod kernel;
pub mod desired;
pub mod reconcile;
pub mod census;
pub mod classes;
pub mod stats;
pub mod signals;
pub mod flows;
pub mod half_open;
pub mod decap;
mod occupant;
