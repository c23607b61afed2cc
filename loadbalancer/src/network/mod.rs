//! The machine's network as the packet path needs it: where frames to a server go, followed over netlink.
//!
//! Routes are asked of the kernel for each address, so policy, metrics and preferred sources are the kernel's own.
//! Links and neighbours are kept in a copy that the kernel's notifications update, because checks make the kernel notify
//! of neighbours many times a second without anything that matters here having changed.

pub mod announce;
pub mod facts;
pub mod frames;
pub mod header;
pub mod hop;
pub mod policy;
pub mod prober;
mod table;

pub use announce::announce;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use hop::{Hop, Via, Way};
pub use table::Link;
use table::{Neighbour, Table};

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
    #[error("there is no interface {0}\nhelp: `ip link` lists them")]
    NoInterface(String),
}

/// Why frames cannot be sent to an address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("there is no route to {0}; add one (`ip route add`)")]
    NoRoute(IpAddr),
    #[error("the route to {target} refuses packets ({kind}); see `ip route get {target}`")]
    Refused { target: IpAddr, kind: String },
    #[error("interface {interface}, on the way to {target}, is down; `ip link set {interface} up`")]
    LinkDown { target: IpAddr, interface: String },
    #[error("{neighbour} is being asked for its address on {interface}")]
    Pending { neighbour: IpAddr, interface: String },
    #[error("{neighbour} does not answer on {interface}: is it on, and on the same segment?")]
    NoNeighbour { neighbour: IpAddr, interface: String },
    #[error("{0} is the gateway's own address; a server must be another machine")]
    Local(IpAddr),
    #[error("the way to {target} leads over {interface}, {why}")]
    Unsupported { target: IpAddr, interface: String, why: &'static str },
    #[error("there is no interface {interface}, over which a channel leads to {target}; `ip link` lists them")]
    NoInterface { target: IpAddr, interface: String },
    #[error("cannot look up the route to {target}: {source}")]
    Kernel { target: IpAddr, source: rtnetlink::Error },
}

/// A handle on the network of the namespace in which it was opened.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
    table: Arc<Table>,
    /// Held while something is listed: the kernel lists one thing at a time on a socket, and refuses the next (EBUSY).
    listing: Arc<Mutex<()>>,
}

impl Network {
    /// Opens netlink in the calling thread's network namespace. The receiver sees a new number whenever something has
    /// changed that may matter for a next hop.
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

    /// Takes a notification. True if it matters.
    async fn take(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> bool {
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

    /// How frames leave on a way.
    pub async fn resolve(&self, way: &Way) -> Result<Hop, ResolveError> {
        let target = way.target;
        let route = self.route(way).await?;
        match route.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Err(ResolveError::Local(target)),
            kind => return Err(ResolveError::Refused { target, kind: format!("{kind:?}").to_lowercase() }),
        }
        let unsupported =
            |interface: &str, why| ResolveError::Unsupported { target, interface: interface.to_owned(), why };
        let no_link = || ResolveError::NoRoute(target);
        let link = self.table.link(route.interface).ok_or_else(no_link)?;
        let (lowest, tags) = self.table.below_vlans(&link).map_err(|(interface, why)| unsupported(&interface, why))?;
        if ["bridge", "openvswitch", "team"].contains(&lowest.kind.as_str()) {
            let why = "through which XDP cannot send: attach to its ports, or take one of them out of it";
            return Err(unsupported(&lowest.name, why));
        }
        let Some(source_mac) = link.mac else {
            return Err(unsupported(
                &link.name,
                "which is no Ethernet: servers behind tunnels cannot be reached by XDP",
            ));
        };
        for device in [&link, &lowest] {
            if !device.is_up {
                return Err(ResolveError::LinkDown { target, interface: device.name.clone() });
            }
        }
        let source = route.source.ok_or_else(|| {
            unsupported(&link.name, "which has no address to send from: add one of the same family (`ip address add`)")
        })?;
        let neighbour = route.router.unwrap_or(target);
        let destination_mac = match self.table.neighbour(route.interface, neighbour) {
            Some(Neighbour::Usable { mac, .. }) => mac,
            Some(Neighbour::Failed) => {
                self.ask(route.interface, neighbour).await;
                return Err(ResolveError::NoNeighbour { neighbour, interface: link.name });
            }
            Some(Neighbour::Asking) => return Err(ResolveError::Pending { neighbour, interface: link.name }),
            None => {
                self.ask(route.interface, neighbour).await;
                return Err(ResolveError::Pending { neighbour, interface: link.name });
            }
        };
        let mtu = route.mtu.unwrap_or(u32::MAX).min(link.mtu).min(u32::from(u16::MAX)) as u16;
        Ok(Hop { ifindex: lowest.index, source_mac, destination_mac, tags, source, mtu, router: route.router })
    }

    /// Has the kernel confirm a neighbour that only XDP uses, whose traffic the kernel does not see.
    pub async fn refresh(&self, way: &Way) -> Result<(), ResolveError> {
        let route = self.route(way).await?;
        let neighbour = route.router.unwrap_or(way.target);
        if matches!(self.table.neighbour(route.interface, neighbour), Some(Neighbour::Usable { stale: true, .. })) {
            self.ask(route.interface, neighbour).await;
        }
        Ok(())
    }

    /// Has the kernel resolve a neighbour, as a packet to it would.
    async fn ask(&self, interface: u32, neighbour: IpAddr) {
        let request = self
            .handle
            .neighbours()
            .add(interface, neighbour)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        if let Err(error) = request.execute().await {
            tracing::debug!(%neighbour, %error, "cannot ask for a neighbour");
        }
    }

    async fn route(&self, way: &Way) -> Result<Route, ResolveError> {
        match &way.via {
            None => self.look_up(way.target, None).await,
            Some(via) => self.route_via(way.target, via).await,
        }
    }

    /// What is given stands; the kernel is asked for the source if it is not.
    async fn route_via(&self, target: IpAddr, via: &Via) -> Result<Route, ResolveError> {
        let unknown = || ResolveError::NoInterface { target, interface: via.interface.clone() };
        let link = self.table.link_named(&via.interface).ok_or_else(unknown)?;
        if !link.is_up {
            // The kernel knows no routes there, which would only be told as a consequence.
            return Err(ResolveError::LinkDown { target, interface: link.name });
        }
        let mut route = Route {
            kind: RouteType::Unicast,
            interface: link.index,
            router: via.router,
            source: via.source,
            mtu: None,
        };
        if route.source.is_none() {
            let found = self.look_up(via.router.unwrap_or(target), Some(link.index)).await?;
            route.source = found.source.filter(|_| found.kind == RouteType::Unicast);
        }
        Ok(route)
    }

    async fn look_up(&self, target: IpAddr, interface: Option<u32>) -> Result<Route, ResolveError> {
        let mut request = match target {
            IpAddr::V4(addr) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(addr, 32).build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(addr, 128).build(),
        };
        request.attributes.extend(interface.map(RouteAttribute::Oif));
        let mut answers = Box::pin(self.handle.route().get(lookup(request)).execute());
        let message = match answers.try_next().await {
            Ok(message) => message.ok_or(ResolveError::NoRoute(target))?,
            Err(rtnetlink::Error::NetlinkError(error)) => {
                return Err(match error.raw_code().abs() {
                    libc::EINVAL => ResolveError::Refused { target, kind: "blackhole".to_owned() },
                    libc::EACCES => ResolveError::Refused { target, kind: "prohibit".to_owned() },
                    libc::EHOSTUNREACH => ResolveError::Refused { target, kind: "unreachable".to_owned() },
                    libc::ENETUNREACH => ResolveError::NoRoute(target),
                    _ => ResolveError::Kernel { target, source: rtnetlink::Error::NetlinkError(error) },
                });
            }
            Err(source) => return Err(ResolveError::Kernel { target, source }),
        };
        Route::read(&message).ok_or(ResolveError::NoRoute(target))
    }

    /// The interface of a name.
    pub async fn interface(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        Ok(self.table.link_named(name))
    }

    /// All addresses of the machine, with the index of their interface.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, NetworkError> {
        let messages = self.list_addresses().await?;
        Ok(messages.iter().filter_map(|message| Some((message.header.index, address(message)?))).collect())
    }

    async fn list_addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        let failed = |source| NetworkError::Netlink { action: "list addresses".to_owned(), source };
        let _listing = self.listing.lock().await;
        self.handle.address().get().execute().try_collect().await.map_err(failed)
    }

    /// Gives an interface an address. False if it has it already.
    pub async fn assign(&self, interface: &str, vip: IpAddr) -> Result<bool, NetworkError> {
        let link = self.table.link_named(interface).ok_or_else(|| NetworkError::NoInterface(interface.to_owned()))?;
        if self.addresses().await?.contains(&(link.index, vip)) {
            return Ok(false);
        }
        let mut request = self.handle.address().add(link.index, vip, if vip.is_ipv4() { 32 } else { 128 });
        if vip.is_ipv6() {
            // A VIP may be on several gateways on purpose, and must serve at once.
            let flags = rtnetlink::packet_route::address::AddressFlags::Nodad;
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        }
        let action = format!("give {vip} to {interface}");
        request.execute().await.map_err(|source| NetworkError::Netlink { action, source })?;
        Ok(true)
    }

    /// Takes an address from an interface. False if it does not have it.
    pub async fn unassign(&self, interface: &str, vip: IpAddr) -> Result<bool, NetworkError> {
        let Some(link) = self.table.link_named(interface) else {
            return Ok(false);
        };
        for message in self.list_addresses().await? {
            if message.header.index == link.index && address(&message) == Some(vip) {
                let action = format!("take {vip} from {interface}");
                let failed = |source| NetworkError::Netlink { action, source };
                self.handle.address().del(message).execute().await.map_err(failed)?;
                return Ok(true);
            }
        }
        Ok(false)
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
            Some(message) => network.take(message).await,
            None => network.relist().await,
        };
        if changed {
            changes.send_modify(|number| *number += 1);
        }
    }
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
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

/// A question for the route that a packet would take, and not for one in the tables.
fn lookup(mut request: RouteMessage) -> RouteMessage {
    request.header.flags = RouteFlags::LookupTable;
    request.header.table = 0;
    request.header.protocol = rtnetlink::packet_route::route::RouteProtocol::Unspec;
    request.header.scope = rtnetlink::packet_route::route::RouteScope::Universe;
    request.header.kind = RouteType::Unspec;
    request
}

struct Route {
    kind: RouteType,
    interface: u32,
    router: Option<IpAddr>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

impl Route {
    fn read(message: &RouteMessage) -> Option<Self> {
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
            RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
            _ => None,
        };
        let mut route = Self { kind: message.header.kind, interface: 0, router: None, source: None, mtu: None };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.interface = *index,
                RouteAttribute::Gateway(address) => route.router = ip(address),
                RouteAttribute::Via(RouteVia::Inet(addr)) => route.router = Some((*addr).into()),
                RouteAttribute::Via(RouteVia::Inet6(addr)) => route.router = Some((*addr).into()),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        (route.interface != 0).then_some(route)
    }
}
