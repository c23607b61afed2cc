//! The next hop to an address. Routes are asked of the kernel for each, so policy, metrics and preferred sources are the
//! kernel's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType, RouteVia,
};

use model::route::{NextHop, Route, Via};

use super::netlink::Network;
use super::table::Neighbour;

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

impl Network {
    /// How frames leave on a route.
    ///
    /// # Errors
    /// They cannot leave, or it is not known yet how.
    pub async fn resolve(&self, route: &Route) -> Result<NextHop, ResolveError> {
        let target = route.target;
        let route = self.find(route).await?;
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
        Ok(NextHop { ifindex: lowest.index, source_mac, destination_mac, tags, source, mtu, router: route.router })
    }

    /// Has the kernel confirm a neighbour that only XDP uses, whose traffic the kernel does not see.
    ///
    /// # Errors
    /// There is no route.
    pub async fn refresh(&self, route: &Route) -> Result<(), ResolveError> {
        let found = self.find(route).await?;
        let neighbour = found.router.unwrap_or(route.target);
        if matches!(self.table.neighbour(found.interface, neighbour), Some(Neighbour::Usable { stale: true, .. })) {
            self.ask(found.interface, neighbour).await;
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

    async fn find(&self, route: &Route) -> Result<FoundRoute, ResolveError> {
        match &route.via {
            None => self.look_up(route.target, None).await,
            Some(via) => self.found_via(route.target, via).await,
        }
    }

    /// What is given stands; the kernel is asked for the source if it is not.
    async fn found_via(&self, target: IpAddr, via: &Via) -> Result<FoundRoute, ResolveError> {
        let unknown = || ResolveError::NoInterface { target, interface: via.interface.clone() };
        let link = self.table.link_named(&via.interface).ok_or_else(unknown)?;
        if !link.is_up {
            // The kernel knows no routes there, which would only be told as a consequence.
            return Err(ResolveError::LinkDown { target, interface: link.name });
        }
        let mut route = FoundRoute {
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

    async fn look_up(&self, target: IpAddr, interface: Option<u32>) -> Result<FoundRoute, ResolveError> {
        let mut request = match target {
            IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(addr, 32).build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(addr, 128).build(),
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
        FoundRoute::read(&message).ok_or(ResolveError::NoRoute(target))
    }
}

/// A question for the route that a packet would take, and not for one in the tables.
fn lookup(mut request: RouteMessage) -> RouteMessage {
    request.header.flags = RouteFlags::LookupTable;
    request.header.table = 0;
    request.header.protocol = RouteProtocol::Unspec;
    request.header.scope = RouteScope::Universe;
    request.header.kind = RouteType::Unspec;
    request
}

/// A route as the kernel tells it.
struct FoundRoute {
    kind: RouteType,
    interface: u32,
    router: Option<IpAddr>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

impl FoundRoute {
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
