//! A server as it comes into a group.

/// A server as the configuration has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nominal {
    pub weight: u32,
    /// Connections at most.
    pub high_water: Option<u32>,
}

/// How a server comes in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    /// It begins with slow start.
    New,
    /// It served already, or all begin together.
    Known,
    /// It is as an earlier controller has left it.
    Adopted(Adopted),
}

/// What an earlier controller made of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adopted {
    pub factor: f64,
    /// It was in its slow start, which begins anew.
    pub starting: bool,
    /// Since when is not known, so it is as if it were now.
    pub ejected: bool,
}
