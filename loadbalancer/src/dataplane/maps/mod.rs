//! The kernel's maps, by system call and by memory mapping.
//!
//! The library that loads the programs has no batch look-ups and no memory mapping, and wants its own trait on every key
//! and value; these few system calls take the plain-old-data layouts of `loadbalancer-common` as they are.

mod handles;
mod pinned;
mod words;
mod map;
mod mapped;
mod syscall;

pub use handles::Maps;
pub(super) use handles::entries;
pub use map::Map;
pub use mapped::Mapped;
pub(super) use pinned::is_compatible;
