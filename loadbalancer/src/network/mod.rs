//! The machine's network as the packet path needs it: where frames to a server go.

pub mod hop;
