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
//! With channels the servers are behind a router, which is .1 on their links and .2 on those to the gateway:
//!
//! ```text
//! clients -- gateway -- channel1, relayed -- router -- servers
//!                 |---- channel2, relayed ----|
//!                 |---- return link ----------|
//! ```
//!
//! What servers send to the gateway's address on a channel comes back over that channel; what they send to clients, as
//! in DSR, comes over the return link, which nothing impairs. The gateway's kernel takes the first channel that is up.

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
    /// Ways between the gateway and the servers, each with a relay that impairs it; none means direct links. Channels
    /// need [`Topology::Routed`].
    pub channels: u8,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self { topology: Topology::Routed, clients: 2, servers: 4, client_mtu: 1500, server_mtu: 1500, channels: 0 }
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
    /// Also the name of the interface at the gateway and at the router.
    pub name: String,
    pub gateway: Addresses,
    pub router: Addresses,
}

/// A veth pair: namespace and device of both ends.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub ends: [(String, String); 2],
    mtu: u16,
}

impl Wire {
    fn new(near: (&str, &str), far: (&str, &str), mtu: u16) -> Self {
        let owned = |(namespace, device): (&str, &str)| (namespace.to_owned(), device.to_owned());
        Self { ends: [owned(near), owned(far)], mtu }
    }

    /// The hosts at its ends.
    pub fn hosts(&self) -> [&str; 2] {
        self.ends.each_ref().map(|(host, _)| host.as_str())
    }

    /// The `ip` command that makes it, given the full names of both namespaces.
    pub fn line(&self, [near, far]: [&str; 2]) -> String {
        let [(_, near_device), (_, far_device)] = &self.ends;
        let mtu = self.mtu;
        format!("link add {near_device} mtu {mtu} netns {near} type veth peer name {far_device} mtu {mtu} netns {far}")
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    topology: Topology,
    pub hosts: Vec<PlannedHost>,
    pub gateway_links: Vec<GatewayLink>,
    pub channels: Vec<PlannedChannel>,
    /// First one of each host, in their order.
    pub wires: Vec<Wire>,
}

/// The devices of a relay: towards the gateway, and away from it.
pub(super) fn relay_devices(link: &str) -> [String; 2] {
    [format!("{link}-near"), format!("{link}-far")]
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
        let channels: Vec<PlannedChannel> = (1..=config.channels)
            .map(|n| PlannedChannel {
                name: format!("channel{n}"),
                gateway: Addresses::new(RETURN_SUBNET + n, 1),
                router: Addresses::new(RETURN_SUBNET + n, 2),
            })
            .collect();
        let centre = |host: &PlannedHost| match (config.topology, host.role) {
            (Topology::Segment, _) => SWITCH,
            (Topology::Routed, Role::Server) if !channels.is_empty() => ROUTER,
            (Topology::Routed, _) => GATEWAY,
        };
        let mut wires: Vec<Wire> = hosts
            .iter()
            .map(|host| Wire::new((&host.name, HOST_DEVICE), (centre(host), &host.name), host.mtu))
            .collect();
        let mut gateway_links: Vec<GatewayLink> = hosts
            .iter()
            .filter(|host| centre(host) == GATEWAY)
            .map(|host| GatewayLink { device: host.name.clone(), addresses: host.gateway })
            .collect();
        if config.topology == Topology::Segment {
            let mtu = config.client_mtu.max(config.server_mtu);
            wires.push(Wire::new((GATEWAY, SEGMENT_DEVICE), (SWITCH, GATEWAY), mtu));
            gateway_links.push(GatewayLink { device: SEGMENT_DEVICE.to_owned(), addresses: Addresses::new(0, 1) });
        }
        for channel in &channels {
            let [near, far] = relay_devices(&channel.name);
            wires.push(Wire::new((GATEWAY, &channel.name), (RELAY, &near), config.server_mtu));
            wires.push(Wire::new((RELAY, &far), (ROUTER, &channel.name), config.server_mtu));
            gateway_links.push(GatewayLink { device: channel.name.clone(), addresses: channel.gateway });
        }
        if !channels.is_empty() {
            wires.push(Wire::new((GATEWAY, RETURN_DEVICE), (ROUTER, RETURN_DEVICE), config.server_mtu));
            let addresses = Addresses::new(RETURN_SUBNET, 1);
            gateway_links.push(GatewayLink { device: RETURN_DEVICE.to_owned(), addresses });
        }
        Self { topology: config.topology, hosts, gateway_links, channels, wires }
    }

    /// Hosts that need a namespace.
    pub fn namespaces(&self) -> Vec<&str> {
        let switch = (self.topology == Topology::Segment).then_some(SWITCH);
        let behind = if self.channels.is_empty() { [].as_slice() } else { &[ROUTER, RELAY] };
        let hosts = self.hosts.iter().map(|host| host.name.as_str());
        hosts.chain([GATEWAY]).chain(switch).chain(behind.iter().copied()).collect()
    }

    /// The devices of a host, by its name.
    pub fn devices(&self, host: &str) -> Vec<&str> {
        let ends = self.wires.iter().flat_map(|wire| &wire.ends);
        ends.filter(|(namespace, _)| namespace == host).map(|(_, device)| device.as_str()).collect()
    }

    /// The `ip` commands that set up the switch.
    pub fn switch_lines(&self) -> Vec<String> {
        let bridge = [format!("link add {BRIDGE} type bridge"), format!("link set {BRIDGE} up")];
        let ports = self.devices(SWITCH).into_iter().map(|port| format!("link set {port} master {BRIDGE} up"));
        bridge.into_iter().chain(ports).collect()
    }

    pub fn gateway_lines(&self) -> Vec<String> {
        let links = self.gateway_links.iter().flat_map(|link| up_lines(&link.device, &link.addresses));
        ["link set lo up".to_owned()].into_iter().chain(links).collect()
    }

    /// The `ip` commands that set up the router.
    pub fn router_lines(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        for channel in &self.channels {
            lines.extend(up_lines(&channel.name, &channel.router));
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
        let PlannedChannel { name, router, .. } = &self.channels[index];
        let metric = 100 + index;
        self.servers()
            .flat_map(|server| {
                let Addresses { ipv4, ipv6 } = server.addresses;
                [
                    format!("route replace {ipv4}/32 via {} dev {name} metric {metric}", router.ipv4),
                    format!("route replace {ipv6}/128 via {} dev {name} metric {metric}", router.ipv6),
                ]
            })
            .collect()
    }

    fn servers(&self) -> impl Iterator<Item = &PlannedHost> {
        self.hosts.iter().filter(|host| host.role == Role::Server)
    }
}

impl PlannedHost {
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(up_lines(HOST_DEVICE, &self.addresses));
        lines.extend(default_routes(HOST_DEVICE, &self.gateway));
        lines
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_largest_lab_has_no_address_or_name_twice() {
        for (topology, channels) in [(Topology::Routed, 0), (Topology::Segment, 0), (Topology::Routed, MAX_CHANNELS)] {
            let config =
                LabConfig { topology, channels, clients: MAX_HOSTS, servers: MAX_HOSTS, ..LabConfig::default() };
            let plan = Plan::new(&config);
            let hosts = plan.hosts.iter().map(|host| host.addresses);
            let routers = plan.channels.iter().map(|channel| channel.router);
            let links = plan.gateway_links.iter().map(|link| link.addresses);
            let all: Vec<Addresses> = hosts.chain(routers).chain(links).collect();
            assert_eq!(all.iter().map(|a| a.ipv4).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            assert_eq!(all.iter().map(|a| a.ipv6).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            let names = plan.namespaces();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{topology:?}");
            let ends: Vec<_> = plan.wires.iter().flat_map(|wire| &wire.ends).collect();
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
