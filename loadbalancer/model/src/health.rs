//! Whether a server answers its check.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not asked yet, or never to be.
    Unknown,
    Up,
    Down,
}

impl Health {
    /// Whether the server may get new flows. One of which nothing is known may, as in HAProxy: else servers without
    /// checks would never work, and those with checks not for the first interval.
    pub const fn may_serve(self) -> bool {
        !matches!(self, Self::Down)
    }

    /// Label in tables and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
