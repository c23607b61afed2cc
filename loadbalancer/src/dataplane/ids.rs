//! The numbers of services, servers, paths and rings in the kernel.

/// Place of a service in the kernel's tables; zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceNumber(pub u16);

/// Place of a server, as a member of one service, in the kernel's tables; zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendNumber(pub u16);

/// Place of a path in the kernel's table; zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathNumber(pub u32);

/// Place of a ring in the kernel's table: each has room for as many blocks as the largest takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RingNumber(pub u32);
