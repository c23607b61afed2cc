//! The machine's network as the packet path needs it: where frames to a server go, followed over netlink, and what a gateway
//! sets up there.

pub mod netlink;
mod table;
pub mod resolver;
pub mod next_hop;
pub mod policy;
pub mod vip;
pub mod announce;
pub mod prober;
pub mod netns;
pub mod packet_socket;
pub mod interface;
pub mod ethtool;
pub mod sysctl;

pub use announce::announce;
pub use interface::NoInterface;
pub use netlink::{Network, NetworkError};
pub use next_hop::ResolveError;
pub use table::Link;
