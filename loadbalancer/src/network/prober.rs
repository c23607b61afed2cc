//! Where the sockets of probes through VIPs are: a network namespace of our own, joined to the gateway's by a pair of
//! interfaces.
//!
//! A VIP is not an address of the gateway, and what a socket of the gateway's sends never meets XDP. So probes are sent from
//! the inner end of the pair; at its outer end they run through the packet path like the packets of a client.
//!
//! The other way round, the packet path sends here what the controller itself is to answer: whatever comes in by the
//! pair is local, so a socket that listens on a VIP gets it.
//!
//! The namespace has no name: it ends with this process, however that ends, and the kernel removes the pair with it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use decide::plan::header::PROBER_MTU;
use loadbalancer_common::probe::MAC;
use model::ids::stable_hash;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use super::ethtool::{Feature, set_feature};
use super::netlink::Network;
use super::netns::Namespace;
use super::{interface, packet_socket, sysctl};

/// Name of the inner end.
const INNER: &str = "probe";
/// Room for what any server answers on Ethernet.
const MTU: u32 = PROBER_MTU as u32;
/// The loopback interface, in every namespace.
const LOOPBACK: u32 = 1;
/// Table of what comes in by the pair; the main table is for what goes out.
const INWARDS: u32 = 76;
/// Before the rule of the main table, which has 32,766.
const INWARDS_PRIORITY: u32 = 76;
/// Segments of this size fit into the smallest MTU of IPv6 (RFC 8200, section 5), and into any that there is in IPv4.
const SEGMENT: u32 = 1280 - 40 - 20;
/// Connections that nobody has accepted yet.
const BACKLOG: i32 = 1024;
/// How long a peer may leave data without an acknowledgement, also when the connection is closed: a socket holds the
/// namespace.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action}, which probes through VIPs and queues need: {source}\nhelp: they take network namespaces, veth and \
     CAP_SYS_ADMIN; or ask servers directly, with through = \"server\", and have no [service.queue]"
)]
pub struct ProberError {
    action: &'static str,
    source: io::Error,
}

/// The namespace; clones share it. It ends with the last one and the last socket.
#[derive(Clone, Debug)]
pub struct Prober(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    namespace: Namespace,
    interface: String,
    index: u32,
    inner_index: u32,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
}

impl PartialEq for Prober {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Prober {}

/// Name of the outer end, for the gateway that keeps its state below a directory.
pub fn interface_name(pin_directory: &Path) -> String {
    format!("lbprobe{:08x}", stable_hash(&[pin_directory.as_os_str().as_encoded_bytes()]) as u32)
}

impl Prober {
    /// Makes the namespace and the pair. A pair of that name that is there already is removed.
    ///
    /// # Errors
    /// The kernel refuses something: there are no namespaces, or no veth, or rights are missing.
    pub async fn open(network: &Network, interface: &str) -> Result<Self, ProberError> {
        let failed = |action| move |source| ProberError { action, source };
        let refused = |action| move |source: rtnetlink::Error| ProberError { action, source: from_netlink(source) };
        network.remove_link(interface).await.map_err(|error| failed("remove an old pair")(io::Error::other(error)))?;
        let namespace = make_namespace().await.map_err(failed("make a network namespace"))?;
        let descriptor = namespace.descriptor().await.map_err(failed("make a network namespace"))?;
        let inner =
            LinkUnspec::new_with_name(INNER).address(MAC.to_vec()).mtu(MTU).setns_by_fd(descriptor.as_raw_fd()).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(interface, INNER).mtu(MTU);
        let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(inner))).build();
        network.handle.link().add(pair).execute().await.map_err(refused("make a pair of interfaces (veth)"))?;
        // The outer end is nobody's neighbour: it needs no addresses.
        sysctl::try_write(&format!("ipv6/conf/{interface}/disable_ipv6"), "1");
        let index =
            interface::index(interface).map_err(|error| failed("find the outer interface")(io::Error::other(error)))?;
        let outer = LinkUnspec::new_with_index(index).up().build();
        network.handle.link().change(outer).execute().await.map_err(refused("bring up the outer interface"))?;
        let (inner_index, handle) = set_up_inner(&namespace).await.map_err(failed("set up the inner interface"))?;
        // All is one hop away, and takes any address: nobody is asked for one.
        let link = LinkUnspec::new_with_index(inner_index).arp(false).up().build();
        handle.link().change(link).execute().await.map_err(refused("bring up the inner interface"))?;
        // What an XDP program redirects here needs a program or GRO to be received. The kernel takes note of it only while the
        // interface is up (6.3 and later, `veth_set_features`).
        namespace
            .run(|| set_feature(INNER, Feature::ReceiveMerging, true))
            .await
            .and_then(|result| result)
            .map_err(failed("have the inner interface receive from XDP"))?;
        set_routes(&handle, inner_index).await.map_err(refused("set the routes of probes"))?;
        set_inwards(&handle).await.map_err(refused("have what comes in by the pair be local"))?;
        let (addresses, wanted) = watch::channel(BTreeSet::new());
        tokio::spawn(keep_addresses(handle, inner_index, wanted));
        Ok(Self(Arc::new(Shared { namespace, interface: interface.to_owned(), index, inner_index, addresses })))
    }

    /// Where its sockets are.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Name of the outer end.
    pub fn interface(&self) -> &str {
        &self.0.interface
    }

    /// Index of the outer end.
    pub fn index(&self) -> u32 {
        self.0.index
    }

    /// Whether the outer end is still there, and up.
    pub fn is_up(&self) -> bool {
        let name = self.interface();
        interface::index(name).is_ok_and(|index| index == self.index()) && interface::is_up(name)
    }

    /// The addresses that probes come from.
    pub fn set_addresses(&self, wanted: BTreeSet<IpAddr>) {
        self.0.addresses.send_if_modified(|current| {
            let changed = *current != wanted;
            *current = wanted;
            changed
        });
    }

    /// A listener in the namespace, on an address that is not one of its own: a VIP.
    ///
    /// # Errors
    /// As when a socket listens.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let listen = move || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            if address.is_ipv4() {
                socket.set_ip_transparent_v4(true)?;
            } else {
                socket.set_ip_transparent_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            // Connections inherit both.
            socket.set_tcp_mss(SEGMENT)?;
            socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        };
        self.0.namespace.run(listen).await?
    }

    /// A socket by which whole frames are sent through the pair, to the packet path.
    ///
    /// # Errors
    /// As when a socket is opened.
    pub async fn packet_socket(&self) -> io::Result<Socket> {
        let inner_index = self.0.inner_index;
        let open = move || {
            let socket = packet_socket::socket(inner_index, Type::RAW, 0)?;
            packet_socket::bypass_queue(&socket)?;
            Ok(socket)
        };
        self.0.namespace.run(open).await?
    }
}

async fn make_namespace() -> io::Result<Namespace> {
    let namespace = Namespace::new("prober").await?;
    let set_defaults = || {
        for parameter in ["disable_ipv6", "accept_ra"] {
            sysctl::try_write(&format!("ipv6/conf/default/{parameter}"), "0");
        }
    };
    namespace.run(set_defaults).await?;
    Ok(namespace)
}

/// Index of the inner end, and netlink in its namespace.
async fn set_up_inner(namespace: &Namespace) -> io::Result<(u32, Handle)> {
    let runtime = tokio::runtime::Handle::current();
    let set_up = move || -> io::Result<_> {
        // An XDP program would find unfinished checksums, and packets larger than the link takes.
        for feature in [Feature::TxChecksums, Feature::TcpSegmentation, Feature::Segmentation] {
            set_feature(INNER, feature, false)?;
        }
        let _entered = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let index = interface::index(INNER).map_err(io::Error::other)?;
        Ok((index, connection, handle))
    };
    let (index, connection, handle) = namespace.run(set_up).await??;
    tokio::spawn(connection);
    Ok((index, handle))
}

/// Everything is behind the inner end. The kernel removes these routes with the last address, so they are set again with
/// each change.
async fn set_routes(handle: &Handle, inner_index: u32) -> Result<(), rtnetlink::Error> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(inner_index).scope(RouteScope::Link).build();
    handle.route().add(v4).replace().execute().await?;
    if sysctl::has_ipv6() {
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(inner_index).build();
        handle.route().add(v6).replace().execute().await?;
    }
    Ok(())
}

/// Whatever comes in by the pair is for a socket here, whatever its address is.
async fn set_inwards(handle: &Handle) -> Result<(), rtnetlink::Error> {
    handle.link().change(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::Local).scope(RouteScope::Host);
    handle.route().add(v4.table_id(INWARDS).output_interface(LOOPBACK).build()).replace().execute().await?;
    let rule = || {
        let rule = handle.rule().add().input_interface(INNER).table_id(INWARDS).priority(INWARDS_PRIORITY);
        rule.action(RuleAction::ToTable)
    };
    rule().v4().execute().await?;
    if sysctl::has_ipv6() {
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().kind(RouteType::Local);
        handle.route().add(v6.table_id(INWARDS).output_interface(LOOPBACK).build()).replace().execute().await?;
        rule().v6().execute().await?;
    }
    Ok(())
}

/// Gives the inner end what is wanted, until nobody can want anything.
async fn keep_addresses(handle: Handle, index: u32, mut wanted: watch::Receiver<BTreeSet<IpAddr>>) {
    let mut present: BTreeSet<IpAddr> = BTreeSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        for gone in present.difference(&now) {
            let message = address_message(&handle, index, *gone);
            if let Err(error) = handle.address().del(message).execute().await {
                tracing::debug!(address = %gone, %error, "an address that probes came from stays");
            }
        }
        let mut have: BTreeSet<IpAddr> = present.intersection(&now).copied().collect();
        for new in now.difference(&present) {
            let mut request = handle.address().add(index, *new, prefix(*new));
            *request.message_mut() = address_message(&handle, index, *new);
            match request.execute().await {
                Ok(()) => {
                    have.insert(*new);
                }
                Err(error) => tracing::error!(address = %new, %error, "probes through VIPs cannot come from it"),
            }
        }
        present = have;
        if let Err(error) = set_routes(&handle, index).await {
            tracing::error!(%error, "probes through VIPs have no route");
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn address_message(handle: &Handle, index: u32, address: IpAddr) -> AddressMessage {
    let mut request = handle.address().add(index, address, prefix(address));
    if address.is_ipv6() {
        // Nobody else is there who could have it.
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.message_mut().clone()
}

fn from_netlink(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_has_a_name_of_its_own_per_gateway() {
        let [one, other] =
            ["/sys/fs/bpf/loadbalancer", "/sys/fs/bpf/other"].map(|path| interface_name(Path::new(path)));
        assert_ne!(one, other);
        assert!(one.len() < libc::IFNAMSIZ, "{one}");
    }
}
