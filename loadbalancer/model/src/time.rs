//! Spans of time that both planes go by.

use std::time::Duration;

/// Idle time-outs of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_syn: Duration,
    pub tcp_established: Duration,
    /// After one side's FIN.
    pub tcp_fin: Duration,
    /// After both FINs, or a reset.
    pub tcp_closed: Duration,
    pub udp: Duration,
    /// Of the memory which server a client has, for services with client affinity.
    pub client: Duration,
}

impl Default for Timeouts {
    /// TCP established: RFC 5382, REQ-5. UDP: RFC 4787, REQ-5. TCP after both FINs: it covers what is still under way.
    fn default() -> Self {
        Self {
            tcp_syn: Duration::from_secs(20),
            tcp_established: Duration::from_secs(7_440),
            tcp_fin: Duration::from_secs(120),
            tcp_closed: Duration::from_secs(10),
            udp: Duration::from_secs(300),
            client: Duration::from_secs(600),
        }
    }
}
