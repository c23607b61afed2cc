//! What the kernel says over netlink: links and neighbours, of which a copy is kept, and addresses.
//!
//! Notifications update the copy, because checks make the kernel notify of neighbours many times a second without anything
//! that matters here having changed.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::interface::{self, NoInterface};
use super::table::{Link, Table};

/// How often links and neighbours are listed anew, in case a notification was lost.
const RESYNC: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    #[error("cannot {action}: {source}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("cannot announce {vip}: {source}")]
    Announce { vip: IpAddr, source: io::Error },
    #[error(transparent)]
    NoInterface(#[from] NoInterface),
}

/// A handle on the network of the namespace in which it was opened.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) handle: Handle,
    pub(super) table: Arc<Table>,
    /// Held while something is listed: the kernel lists one thing at a time on a socket, and refuses the next (EBUSY).
    pub(super) listing: Arc<Mutex<()>>,
}

impl Network {
    /// Opens netlink in the calling thread's network namespace. The receiver sees a new number whenever something has
    /// changed that may matter for a next hop.
    ///
    /// # Errors
    /// There is no netlink socket to be had, or links and neighbours cannot be listed.
    pub async fn open() -> Result<(Self, watch::Receiver<u64>), NetworkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        // Requests have a socket of their own: one that overflows with notifications loses answers, too.
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Open)?;
        tokio::spawn(connection);
        let (listener, _, messages) = rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Open)?;
        tokio::spawn(listener);
        let network = Self { handle, table: Arc::default(), listing: Arc::default() };
        network.list().await?;
        let (changes, receiver) = watch::channel(0);
        let messages = messages.map(|(message, _)| message);
        let (handle, listing) = (network.handle.clone(), Arc::clone(&network.listing));
        let table = Arc::downgrade(&network.table);
        let network_now =
            move || Some(Self { handle: handle.clone(), table: table.upgrade()?, listing: listing.clone() });
        tokio::spawn(follow(messages, network_now, changes));
        Ok((network, receiver))
    }

    /// True if the notification matters.
    async fn on_notification(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match message.payload {
            NetlinkPayload::InnerMessage(message) => match message {
                RouteNetlinkMessage::NewNeighbour(neighbour) => self.table.set_neighbour(&neighbour, true),
                RouteNetlinkMessage::DelNeighbour(neighbour) => self.table.set_neighbour(&neighbour, false),
                RouteNetlinkMessage::NewLink(link) => self.table.set_link(&link),
                RouteNetlinkMessage::DelLink(link) => self.table.remove_link(link.header.index),
                // Routes and addresses are asked for when needed.
                _ => true,
            },
            // Notifications were lost: anything may have changed, also routes, of which there is no copy to compare.
            NetlinkPayload::Overrun(_) => {
                self.relist().await;
                true
            }
            _ => false,
        }
    }

    async fn relist(&self) -> bool {
        match self.list().await {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(%error, "cannot list links and neighbours");
                false
            }
        }
    }

    /// Lists links and neighbours anew. True if something differs from what was known.
    async fn list(&self) -> Result<bool, NetworkError> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source| NetworkError::Netlink { action, source }
        };
        let _listing = self.listing.lock().await;
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        let neighbours: Vec<_> =
            self.handle.neighbours().get().execute().try_collect().await.map_err(failed("list neighbours"))?;
        Ok(self.table.replace(&links, &neighbours))
    }

    /// The interface of a name, as last heard.
    pub fn link(&self, name: &str) -> Option<Link> {
        self.table.link_named(name)
    }

    /// All addresses of the machine, with the index of their interface.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, NetworkError> {
        let messages = self.list_addresses().await?;
        Ok(messages.iter().filter_map(|message| Some((message.header.index, address(message)?))).collect())
    }

    pub(super) async fn list_addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        let failed = |source| NetworkError::Netlink { action: "list addresses".to_owned(), source };
        let _listing = self.listing.lock().await;
        self.handle.address().get().execute().try_collect().await.map_err(failed)
    }

    /// Removes an interface. False if there is none of that name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_link(&self, name: &str) -> Result<bool, NetworkError> {
        let Ok(index) = interface::index(name) else {
            return Ok(false);
        };
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(true),
            // Its other end was going away already.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(false),
            Err(source) => Err(NetworkError::Netlink { action: format!("remove {name}"), source }),
        }
    }
}

/// Keeps the table up to date and raises `changes`, until the network is no longer in use.
async fn follow(
    mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    network: impl Fn() -> Option<Network>,
    changes: watch::Sender<u64>,
) {
    let mut resync = tokio::time::interval_at(Instant::now() + RESYNC, RESYNC);
    loop {
        let message = tokio::select! {
            message = messages.next() => match message {
                Some(message) => Some(message),
                None => {
                    tracing::error!("the netlink socket is closed: changes of the network go unseen; restart");
                    return;
                }
            },
            _ = resync.tick() => None,
        };
        let Some(network) = network() else {
            return;
        };
        let changed = match message {
            Some(message) => network.on_notification(message).await,
            None => network.relist().await,
        };
        if changed {
            changes.send_modify(|number| *number += 1);
        }
    }
}

/// The address that a message is about.
pub(super) fn address(message: &AddressMessage) -> Option<IpAddr> {
    // On point-to-point links the local address is the own one.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })
}
