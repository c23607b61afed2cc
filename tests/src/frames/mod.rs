//! Frames, built and read field by field, and a gateway in the kernel's test run that takes them.

pub mod frame;
pub mod verify;
pub mod world;
