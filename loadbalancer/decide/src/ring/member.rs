//! A server as a ring sees it: who it is, and what it weighs.

/// A server in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number of the backend, unique in the ring, not zero. It has no influence on who gets which slot.
    pub backend: u16,
    /// What the server is the same by on all gateways and over restarts: a hash of its configured name or address.
    pub id: u64,
    /// Weight that the server was configured with: it changes with the configuration only. A ring of weights close to
    /// their nominal ones changes by little more than it must, and so does one whose new member is nominally zero.
    pub nominal: u32,
    /// Weight that the server has now; zero: no slots. A server that is down stays in the set, with weight zero.
    pub weight: u32,
}
