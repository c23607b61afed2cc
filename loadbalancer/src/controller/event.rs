//! What happens to the controller.

use model::route::Resolved;
use socket2::Socket;
use tokio::sync::oneshot;

use super::standby::HookDone;
use super::status::{ChannelsStatus, GatewayStatus, QualityStatus, QueueStatus, StandbyStatus};
use crate::dataplane::signals::{Interval, Source};
use crate::health::ProbeReport;
use crate::network::prober::Prober;

/// All that the one loop takes, in the order in which it comes.
pub enum Event {
    /// A probe came to an end.
    Report(ProbeReport),
    /// What the packet path has seen of servers and channels since the last time.
    Seen(Vec<(Source, Interval)>),
    /// The network is not as it was.
    Resolved(Resolved),
    /// A hook of the standby pool came to an end.
    Hook(HookDone),
    /// Where probes through VIPs come from is open, or why it is not.
    Prober(Result<(Prober, Socket), String>),
    /// Somebody asks for something.
    Request(Request),
    /// The configuration is to be read anew.
    Reload,
    /// The gateway is to stop.
    Stop,
}

/// What others ask of the controller. Each brings where the answer goes to.
#[derive(Debug)]
pub enum Request {
    Gateway(oneshot::Sender<GatewayStatus>),
    Quality(oneshot::Sender<QualityStatus>),
    Channels(oneshot::Sender<ChannelsStatus>),
    Standby(oneshot::Sender<StandbyStatus>),
    Queue(oneshot::Sender<QueueStatus>),
    /// Server, as `service/server` or by its name alone.
    Change(String, Change, oneshot::Sender<Result<String, String>>),
    Reload(oneshot::Sender<Result<(), String>>),
}

/// A change to a server that the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// No new flows; live ones go on.
    Drain,
    /// New flows again, and the weight of the configuration.
    Enable,
    Weight(u16),
}
