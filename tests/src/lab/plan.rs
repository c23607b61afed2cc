//! The plan of a lab: names, addresses and wires, as values.
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | routed, link to client n | 10.77.n.0/24 | fd77:n::/64 |
//! | routed, link to server n | 10.77.(100+n).0/24 | fd77:(100+n)::/64 |
//! | segment | 10.77.0.0/24 | fd77::/64 |
//! | return link | 10.77.200.0/24 | fd77:200::/64 |
//! | channel n | 10.77.(200+n).0/24 | fd77:(200+n)::/64 |
//!
//! The gateway is .1 and ::1 everywhere. A host is .2 and ::2 on its link; in a segment client n is .n+10 and server n
//! .n+110. IPv6 groups are written with the decimal digits of the IPv4 numbers.
//!
//! With channels the servers of a routed lab are behind a router, which is .1 on their links and .2 on those to the
//! gateway:
//!
//! ```text
//! clients -- gateway -- channel1, relayed -- router -- servers
//!                 |---- channel2, relayed ----|
//!                 |---- return link ----------|
//! ```
//!
//! In a segment the gateway has one more interface for each channel:
//!
//! ```text
//!            gateway -- channel1, relayed -- switch -- servers, clients
//!                 |---- channel2, relayed ----|
//!                 |---- lan ------------------|
//! ```
//!
//! What servers send to the gateway's address on a channel comes back over that channel; what they send to clients, as
//! in DSR, comes over the return link or goes to the segment, which nothing impairs. The gateway's kernel takes the
//! first channel that is up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The interface of every host.
pub const HOST_DEVICE: &str = "eth0";
/// The gateway's one interface in a segment. In a routed lab its interfaces bear the names of the hosts they lead to.
pub const SEGMENT_DEVICE: &str = "lan";

pub const GATEWAY: &str = "gateway";
pub const SWITCH: &str = "switch";
/// Between the channels and the servers.
pub const ROUTER: &str = "router";
/// Where the relays of all impaired links run.
pub const RELAY: &str = "relay";
const BRIDGE: &str = "bridge";
/// The interface of the return link, at both ends.
const RETURN_DEVICE: &str = "return";
const RETURN_SUBNET: u8 = 200;

/// Most clients, and most servers, that the addresses have room for.
pub const MAX_HOSTS: u8 = 99;
/// Most channels.
pub const MAX_CHANNELS: u8 = 9;
/// Smallest MTU: the least that IPv6 allows (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;
pub const MAX_MTU: u16 = 9000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Every host on a link and subnet of its own to the gateway.
    Routed,
    /// All hosts and the gateway on one subnet, joined by a bridge. Servers reach clients without the gateway.
    Segment,
}

#[derive(Clone, Copy, Debug)]
pub struct LabConfig {
    pub topology: Topology,
    pub clients: u8,
    pub servers: u8,
    /// MTU of the clients' links, in bytes.
    pub client_mtu: u16,
    /// MTU of the servers' links, in bytes. In a segment the gateway's link has the larger of both.
    pub server_mtu: u16,
    /// Ways between the gateway and the servers, each with a relay that impairs it; none means the links alone.
    pub channels: u8,
    /// Whether each server's link has a relay of its own.
    pub server_relays: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            topology: Topology::Routed,
            clients: 2,
            servers: 4,
            client_mtu: 1500,
            server_mtu: 1500,
            channels: 0,
            server_relays: false,
        }
    }
}

/// Addresses on one link. Prefixes are /24 and /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

impl Addresses {
    fn new(subnet: u8, host: u8) -> Self {
        Self {
            ipv4: Ipv4Addr::new(10, 77, subnet, host),
            ipv6: Ipv6Addr::new(0xfd77, as_hex_digits(subnet), 0, 0, 0, 0, 0, as_hex_digits(host)),
        }
    }

    /// The address of the same family as `like`.
    pub fn like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() }
    }
}

/// An interface of the gateway.
#[derive(Clone, Debug)]
pub struct GatewayLink {
    pub device: String,
    pub addresses: Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

#[derive(Clone, Debug)]
pub(super) struct PlannedHost {
    pub name: String,
    pub role: Role,
    pub addresses: Addresses,
    pub gateway: Addresses,
    mtu: u16,
}

/// A way from the gateway to the servers.
#[derive(Clone, Debug)]
pub(super) struct PlannedChannel {
    /// Also the name of the interface at both ends.
    pub name: String,
    pub gateway: Addresses,
    /// The router; none in a segment, where servers are neighbours.
    pub next_hop: Option<Addresses>,
}

/// A link: namespace and device of both ends.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    /// Away from the gateway, and towards it.
    pub ends: [(String, String); 2],
    mtu: u16,
    relayed: bool,
}

impl Wire {
    fn new(away: (&str, &str), towards: (&str, &str), mtu: u16) -> Self {
        let owned = |(namespace, device): (&str, &str)| (namespace.to_owned(), device.to_owned());
        Self { ends: [owned(away), owned(towards)], mtu, relayed: false }
    }

    fn relayed(self, relayed: bool) -> Self {
        Self { relayed, ..self }
    }

    /// The devices of its relay, if it has one: to the end away from the gateway, and to the other.
    pub fn relay_devices(&self) -> Option<[String; 2]> {
        let name = &self.ends[1].1;
        self.relayed.then(|| [format!("{name}-far"), format!("{name}-near")])
    }

    /// The veth pairs it is made of.
    fn pairs(&self) -> Vec<[(String, String); 2]> {
        let [away, towards] = self.ends.clone();
        match self.relay_devices() {
            None => vec![[away, towards]],
            Some([far, near]) => vec![[away, (RELAY.to_owned(), far)], [(RELAY.to_owned(), near), towards]],
        }
    }

    /// The `ip` commands that make it, given the full names of namespaces by those of their hosts.
    pub fn lines(&self, full_name: impl Fn(&str) -> String) -> Vec<String> {
        let mtu = self.mtu;
        let line = |[(host, device), (peer, peer_device)]: [(String, String); 2]| {
            let [host, peer] = [host, peer].map(|host| full_name(&host));
            format!("link add {device} mtu {mtu} netns {host} type veth peer name {peer_device} mtu {mtu} netns {peer}")
        };
        self.pairs().into_iter().map(line).collect()
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    topology: Topology,
    pub hosts: Vec<PlannedHost>,
    pub gateway_links: Vec<GatewayLink>,
    pub channels: Vec<PlannedChannel>,
    /// One of each host and then one of each channel, in their order, and others.
    pub wires: Vec<Wire>,
}

impl Plan {
    pub fn new(config: &LabConfig) -> Self {
        let clients = (1..=config.clients).map(|n| ("client", Role::Client, n, n, n + 10, config.client_mtu));
        let servers = (1..=config.servers).map(|n| ("server", Role::Server, n, n + 100, n + 110, config.server_mtu));
        let hosts = clients.chain(servers).map(|(word, role, n, subnet, segment_host, mtu)| {
            let (addresses, gateway) = match config.topology {
                Topology::Routed => (Addresses::new(subnet, 2), Addresses::new(subnet, 1)),
                Topology::Segment => (Addresses::new(0, segment_host), Addresses::new(0, 1)),
            };
            PlannedHost { name: format!("{word}{n}"), role, addresses, gateway, mtu }
        });
        let hosts: Vec<PlannedHost> = hosts.collect();
        let routed = config.topology == Topology::Routed;
        let channels: Vec<PlannedChannel> = (1..=config.channels)
            .map(|n| PlannedChannel {
                name: format!("channel{n}"),
                gateway: Addresses::new(RETURN_SUBNET + n, 1),
                next_hop: routed.then(|| Addresses::new(RETURN_SUBNET + n, 2)),
            })
            .collect();
        let centre = |role| match role {
            _ if !routed => SWITCH,
            Role::Server if !channels.is_empty() => ROUTER,
            _ => GATEWAY,
        };
        let mut wires: Vec<Wire> = Vec::new();
        let mut gateway_links: Vec<GatewayLink> = Vec::new();
        for host in &hosts {
            let relayed = host.role == Role::Server && config.server_relays;
            let centre = centre(host.role);
            wires.push(Wire::new((&host.name, HOST_DEVICE), (centre, &host.name), host.mtu).relayed(relayed));
            if centre == GATEWAY {
                gateway_links.push(GatewayLink { device: host.name.clone(), addresses: host.gateway });
            }
        }
        for PlannedChannel { name, gateway, .. } in &channels {
            wires.push(Wire::new((centre(Role::Server), name), (GATEWAY, name), config.server_mtu).relayed(true));
            gateway_links.push(GatewayLink { device: name.clone(), addresses: *gateway });
        }
        if !routed {
            let mtu = config.client_mtu.max(config.server_mtu);
            wires.push(Wire::new((SWITCH, GATEWAY), (GATEWAY, SEGMENT_DEVICE), mtu));
            gateway_links.push(GatewayLink { device: SEGMENT_DEVICE.to_owned(), addresses: Addresses::new(0, 1) });
        } else if !channels.is_empty() {
            wires.push(Wire::new((ROUTER, RETURN_DEVICE), (GATEWAY, RETURN_DEVICE), config.server_mtu));
            let addresses = Addresses::new(RETURN_SUBNET, 1);
            gateway_links.push(GatewayLink { device: RETURN_DEVICE.to_owned(), addresses });
        }
        Self { topology: config.topology, hosts, gateway_links, channels, wires }
    }

    /// Hosts that need a namespace.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.wires.iter().flat_map(Wire::pairs).flatten().map(|(host, _)| host).collect()
    }

    /// The devices of a host, by its name.
    pub fn devices(&self, host: &str) -> Vec<String> {
        let ends = self.wires.iter().flat_map(Wire::pairs).flatten();
        ends.filter(|(end, _)| end == host).map(|(_, device)| device).collect()
    }

    /// The `ip` commands that set up the switch.
    pub fn switch_lines(&self) -> Vec<String> {
        let bridge = [format!("link add {BRIDGE} type bridge"), format!("link set {BRIDGE} up")];
        let ports = self.devices(SWITCH).into_iter().map(|port| format!("link set {port} master {BRIDGE} up"));
        bridge.into_iter().chain(ports).collect()
    }

    pub fn gateway_lines(&self) -> Vec<String> {
        let links = self.gateway_links.iter().flat_map(|link| up_lines(&link.device, &link.addresses));
        let channels = (0..self.channels.len()).flat_map(|index| self.channel_routes(index));
        ["link set lo up".to_owned()].into_iter().chain(links).chain(channels).collect()
    }

    /// The interfaces of the gateway on the segment, if it has several: each may only answer for its own addresses.
    pub fn gateway_neighbours(&self) -> impl Iterator<Item = &str> {
        let several = self.topology == Topology::Segment && !self.channels.is_empty();
        self.gateway_links.iter().filter(move |_| several).map(|link| link.device.as_str())
    }

    /// The `ip` commands that set up the router.
    pub fn router_lines(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        for channel in &self.channels {
            lines.extend(channel.next_hop.iter().flat_map(|router| up_lines(&channel.name, router)));
        }
        lines.extend(self.servers().flat_map(|server| up_lines(&server.name, &server.gateway)));
        lines.extend(up_lines(RETURN_DEVICE, &Addresses::new(RETURN_SUBNET, 2)));
        lines.extend(default_routes(RETURN_DEVICE, &Addresses::new(RETURN_SUBNET, 1)));
        lines
    }

    /// The `ip` commands that set up the relays' devices.
    pub fn relay_lines(&self) -> Vec<String> {
        // The relay's own kernel takes no part.
        self.devices(RELAY).into_iter().map(|device| format!("link set {device} arp off up")).collect()
    }

    /// The `ip` commands that set up the gateway's routes over one channel, the first or best of which its kernel takes.
    /// The kernel forgets them when the interface goes down.
    pub fn channel_routes(&self, index: usize) -> Vec<String> {
        let PlannedChannel { name, next_hop, .. } = &self.channels[index];
        let via =
            |address: IpAddr| next_hop.map_or_else(String::new, |router| format!("via {} ", router.like(address)));
        let route = |address: IpAddr, prefix: u8| {
            format!("route replace {address}/{prefix} {}dev {name} metric {}", via(address), 100 + index)
        };
        let servers = self.servers().map(|server| server.addresses);
        servers.flat_map(|server| [route(server.ipv4.into(), 32), route(server.ipv6.into(), 128)]).collect()
    }

    pub fn host_lines(&self, host: &PlannedHost) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(up_lines(HOST_DEVICE, &host.addresses));
        lines.extend(default_routes(HOST_DEVICE, &host.gateway));
        for gateway in self.channels.iter().filter(|channel| channel.next_hop.is_none()).map(|channel| channel.gateway)
        {
            lines.push(format!("route add {}/32 dev {HOST_DEVICE}", gateway.ipv4));
            lines.push(format!("route add {}/128 dev {HOST_DEVICE}", gateway.ipv6));
        }
        lines
    }

    fn servers(&self) -> impl Iterator<Item = &PlannedHost> {
        self.hosts.iter().filter(|host| host.role == Role::Server)
    }
}

/// Routes beyond a link. The kernel forgets them when the interface goes down.
pub(super) fn default_routes(device: &str, gateway: &Addresses) -> [String; 2] {
    [
        format!("route replace default via {} dev {device}", gateway.ipv4),
        format!("route replace ::/0 via {} dev {device}", gateway.ipv6),
    ]
}

fn up_lines(device: &str, addresses: &Addresses) -> [String; 3] {
    [
        format!("addr add {}/24 dev {device}", addresses.ipv4),
        format!("addr add {}/64 dev {device} nodad", addresses.ipv6),
        format!("link set {device} up"),
    ]
}

/// 101 becomes 0x101.
fn as_hex_digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_lab_has_no_address_or_name_twice() {
        let cases = [Topology::Routed, Topology::Segment].map(|topology| [(topology, 0), (topology, MAX_CHANNELS)]);
        for (topology, channels) in cases.into_iter().flatten() {
            let config = LabConfig {
                topology,
                channels,
                clients: MAX_HOSTS,
                servers: MAX_HOSTS,
                server_relays: true,
                ..LabConfig::default()
            };
            let plan = Plan::new(&config);
            let hosts = plan.hosts.iter().map(|host| host.addresses);
            let routers = plan.channels.iter().filter_map(|channel| channel.next_hop);
            let links = plan.gateway_links.iter().map(|link| link.addresses);
            let all: Vec<Addresses> = hosts.chain(routers).chain(links).collect();
            assert_eq!(all.iter().map(|a| a.ipv4).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            assert_eq!(all.iter().map(|a| a.ipv6).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            let ends: Vec<_> = plan.wires.iter().flat_map(Wire::pairs).flatten().collect();
            assert_eq!(ends.iter().collect::<BTreeSet<_>>().len(), ends.len(), "{topology:?}");
            // IFNAMSIZ, with its final zero.
            assert_eq!(ends.iter().find(|(_, device)| device.len() > 15), None);
        }
    }

    #[test]
    fn both_families_show_the_same_numbers() {
        let server = &Plan::new(&LabConfig::default()).hosts[4];
        assert_eq!((server.name.as_str(), server.role), ("server3", Role::Server));
        assert_eq!(server.addresses.ipv4.to_string(), "10.77.103.2");
        assert_eq!(server.addresses.ipv6.to_string(), "fd77:103::2");
        assert_eq!(server.gateway.ipv6.to_string(), "fd77:103::1");
    }
}
