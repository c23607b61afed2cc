//! The plan of a lab: names, addresses and wires, as values.
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | routed, link to client n | 10.77.n.0/24 | fd77:n::/64 |
//! | routed, link to server n | 10.77.(100+n).0/24 | fd77:(100+n)::/64 |
//! | segment | 10.77.0.0/24 | fd77::/64 |
//!
//! The gateway is .1 and ::1 everywhere. A host is .2 and ::2 on its link; in a segment client n is .n+10 and server n
//! .n+110. IPv6 groups are written with the decimal digits of the IPv4 numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The interface of every host.
pub const HOST_DEVICE: &str = "eth0";
/// The gateway's one interface in a segment. In a routed lab its interfaces bear the names of the hosts they lead to.
pub const SEGMENT_DEVICE: &str = "lan";

pub const GATEWAY: &str = "gateway";
pub const SWITCH: &str = "switch";
const BRIDGE: &str = "bridge";

/// Most clients, and most servers, that the addresses have room for.
pub const MAX_HOSTS: u8 = 99;
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
}

impl Default for LabConfig {
    fn default() -> Self {
        Self { topology: Topology::Routed, clients: 2, servers: 4, client_mtu: 1500, server_mtu: 1500 }
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
        let centre = if config.topology == Topology::Routed { GATEWAY } else { SWITCH };
        let mut wires: Vec<Wire> =
            hosts.iter().map(|host| Wire::new((&host.name, HOST_DEVICE), (centre, &host.name), host.mtu)).collect();
        let gateway_links = match config.topology {
            Topology::Routed => {
                hosts.iter().map(|host| GatewayLink { device: host.name.clone(), addresses: host.gateway }).collect()
            }
            Topology::Segment => {
                let mtu = config.client_mtu.max(config.server_mtu);
                wires.push(Wire::new((GATEWAY, SEGMENT_DEVICE), (SWITCH, GATEWAY), mtu));
                vec![GatewayLink { device: SEGMENT_DEVICE.to_owned(), addresses: Addresses::new(0, 1) }]
            }
        };
        Self { topology: config.topology, hosts, gateway_links, wires }
    }

    /// Hosts that need a namespace.
    pub fn namespaces(&self) -> Vec<&str> {
        let switch = (self.topology == Topology::Segment).then_some(SWITCH);
        self.hosts.iter().map(|host| host.name.as_str()).chain([GATEWAY]).chain(switch).collect()
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
}

impl PlannedHost {
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(up_lines(HOST_DEVICE, &self.addresses));
        lines.extend(default_routes(&self.gateway));
        lines
    }
}

/// A host's routes beyond its link. The kernel forgets them when the interface goes down.
pub(super) fn default_routes(gateway: &Addresses) -> [String; 2] {
    [
        format!("route replace default via {} dev {HOST_DEVICE}", gateway.ipv4),
        format!("route replace ::/0 via {} dev {HOST_DEVICE}", gateway.ipv6),
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
        for topology in [Topology::Routed, Topology::Segment] {
            let config = LabConfig { topology, clients: MAX_HOSTS, servers: MAX_HOSTS, ..LabConfig::default() };
            let plan = Plan::new(&config);
            let hosts = plan.hosts.iter().map(|host| host.addresses);
            let all: Vec<Addresses> = hosts.chain(plan.gateway_links.iter().map(|link| link.addresses)).collect();
            assert_eq!(all.iter().map(|a| a.ipv4).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            assert_eq!(all.iter().map(|a| a.ipv6).collect::<BTreeSet<_>>().len(), all.len(), "{topology:?}");
            let names = plan.namespaces();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{topology:?}");
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
