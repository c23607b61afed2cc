//! Policies: how new flows find a server.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The packet path with the weights of the configuration.
    Fixed,
    /// The packet path with measured weights.
    Measured,
    /// The packet path with weights by the law that was planned first, to compare with: see `gradient`.
    Gradient,
    /// HAProxy's `leastconn`: the server with the fewest connections for its weight.
    LeastConnections,
    /// HAProxy's `random(2)`: of two random servers the one with fewer connections for its weight.
    RandomOfTwo,
}

impl Policy {
    /// Those that are compared.
    pub const ALL: [Self; 5] = [Self::Fixed, Self::Measured, Self::Gradient, Self::LeastConnections, Self::RandomOfTwo];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Measured => "measured",
            Self::Gradient => "gradient",
            Self::LeastConnections => "leastconn",
            Self::RandomOfTwo => "random(2)",
        }
    }
}
