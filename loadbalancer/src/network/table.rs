//! The kernel's links and neighbours, as last heard.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use model::route::Tag;

/// VLAN tags that a prebuilt header has room for.
const MAX_TAGS: usize = 2;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Bytes.
    pub mtu: u32,
    /// None: not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Up, and with a carrier.
    pub is_up: bool,
    /// Kind of a virtual interface (`veth`, `vlan`, `bond`, `bridge`, ...); empty for hardware.
    pub kind: String,
    pub vlan: Option<Vlan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface below; none: it is in another network namespace.
    pub parent: Option<u32>,
    pub id: u16,
    /// EtherType of the tag, host order.
    pub ethertype: u16,
}

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    Usable {
        mac: [u8; 6],
        /// Not confirmed for a while.
        stale: bool,
    },
    Asking,
    /// It did not answer.
    Failed,
}

impl Neighbour {
    /// Whether the difference matters for where frames go.
    fn differs(before: Option<Self>, now: Option<Self>) -> bool {
        match (before, now) {
            (Some(Self::Usable { mac: before, .. }), Some(Self::Usable { mac: now, .. })) => before != now,
            (before, now) => before != now,
        }
    }
}

#[derive(Debug, Default)]
pub struct Table(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    links: HashMap<u32, Link>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

impl Table {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn link(&self, index: u32) -> Option<Link> {
        self.inner().links.get(&index).cloned()
    }

    pub fn link_named(&self, name: &str) -> Option<Link> {
        self.inner().links.values().find(|link| link.name == name).cloned()
    }

    /// The interface below all VLANs, and their tags, outer first.
    ///
    /// # Errors
    /// Names an interface, and what it is that cannot be used.
    pub fn below_vlans(&self, link: &Link) -> Result<(Link, Vec<Tag>), (String, &'static str)> {
        let mut tags = Vec::new();
        let mut lowest = link.clone();
        while let Some(vlan) = lowest.vlan {
            tags.insert(0, Tag { ethertype: vlan.ethertype, vlan: vlan.id });
            if tags.len() > MAX_TAGS {
                return Err((link.name.clone(), "which has more than two VLAN tags, and XDP sends no more"));
            }
            let Some(parent) = vlan.parent else {
                let why = "a VLAN of an interface in another network namespace: run the gateway there";
                return Err((lowest.name, why));
            };
            let name = lowest.name;
            lowest = self.link(parent).ok_or((name, "a VLAN of an interface that is gone"))?;
        }
        Ok((lowest, tags))
    }

    pub fn neighbour(&self, interface: u32, address: IpAddr) -> Option<Neighbour> {
        self.inner().neighbours.get(&(interface, address)).copied()
    }

    /// Takes a neighbour as told. True if it differs in what matters.
    pub fn set_neighbour(&self, message: &NeighbourMessage, exists: bool) -> bool {
        let Some((key, neighbour)) = read_neighbour(message) else {
            return false;
        };
        let neighbours = &mut self.inner().neighbours;
        match neighbour.filter(|_| exists) {
            Some(neighbour) => Neighbour::differs(neighbours.insert(key, neighbour), Some(neighbour)),
            None => neighbours.remove(&key).is_some(),
        }
    }

    pub fn set_link(&self, message: &LinkMessage) -> bool {
        let Some(link) = read_link(message) else {
            return false;
        };
        self.inner().links.insert(link.index, link.clone()) != Some(link)
    }

    pub fn remove_link(&self, index: u32) -> bool {
        let mut inner = self.inner();
        inner.neighbours.retain(|(interface, _), _| *interface != index);
        inner.links.remove(&index).is_some()
    }

    /// Takes a complete list. True if it differs in what matters.
    pub fn replace(&self, links: &[LinkMessage], neighbours: &[NeighbourMessage]) -> bool {
        let links: HashMap<u32, Link> = links.iter().filter_map(read_link).map(|link| (link.index, link)).collect();
        let neighbours: HashMap<(u32, IpAddr), Neighbour> = neighbours
            .iter()
            .filter_map(read_neighbour)
            .filter_map(|(key, neighbour)| Some((key, neighbour?)))
            .collect();
        let mut inner = self.inner();
        let differs = inner.links != links
            || inner.neighbours.len() != neighbours.len()
            || neighbours.iter().any(|(key, now)| Neighbour::differs(inner.neighbours.get(key).copied(), Some(*now)));
        *inner = Inner { links, neighbours };
        differs
    }
}

fn mac(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

type Key = (u32, IpAddr);

/// None inside: the entry says nothing yet.
fn read_neighbour(message: &NeighbourMessage) -> Option<(Key, Option<Neighbour>)> {
    // Forwarding entries of bridges and VXLAN are told of as neighbours, too.
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut address = None;
    let mut link_address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => address = Some(IpAddr::V4(*addr)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => address = Some(IpAddr::V6(*addr)),
            NeighbourAttribute::LinkLayerAddress(bytes) => link_address = mac(bytes),
            _ => {}
        }
    }
    let neighbour = match (message.header.state, link_address) {
        (NeighbourState::Failed, _) => Some(Neighbour::Failed),
        (NeighbourState::Incomplete, _) => Some(Neighbour::Asking),
        (NeighbourState::None, _) | (_, None) => None,
        (state, Some(mac)) => Some(Neighbour::Usable { mac, stale: state == NeighbourState::Stale }),
    };
    Some(((message.header.ifindex, address?), neighbour))
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    // Bridges and IPv6 notify of links, too, in messages that lack most of what a link is.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        is_up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        kind: String::new(),
        vlan: None,
    };
    let mut parent = None;
    let mut is_parent_elsewhere = false;
    let mut vlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = mac(bytes);
            }
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_parent_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind_name(kind),
                        LinkInfo::Data(InfoData::Vlan(parts)) => vlan = Some(read_vlan(parts)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if let Some((id, ethertype)) = vlan {
        // An index says nothing outside of its namespace.
        link.vlan = Some(Vlan { parent: parent.filter(|_| !is_parent_elsewhere), id, ethertype });
    }
    (!link.name.is_empty() && link.mtu != 0).then_some(link)
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn read_vlan(parts: &[InfoVlan]) -> (u16, u16) {
    let mut id = 0;
    let mut ethertype = loadbalancer_common::net::ethertype::VLAN;
    for part in parts {
        match part {
            InfoVlan::Id(found) => id = *found,
            InfoVlan::Protocol(VlanProtocol::Ieee8021Ad) => ethertype = loadbalancer_common::net::ethertype::QINQ,
            _ => {}
        }
    }
    (id, ethertype)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link as the kernel tells of it; a VLAN if it has an identifier.
    fn message(index: u32, parent: u32, vlan: Option<(u16, VlanProtocol)>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName(format!("link{index}")),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]),
            // Not only VLANs have one: that of a veth is its peer.
            LinkAttribute::Link(parent),
        ];
        let info = match vlan {
            None => vec![LinkInfo::Kind(InfoKind::Veth)],
            Some((id, protocol)) => {
                let data = InfoData::Vlan(vec![InfoVlan::Id(id), InfoVlan::Protocol(protocol)]);
                vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]
            }
        };
        message.attributes.push(LinkAttribute::LinkInfo(info));
        message
    }

    #[test]
    fn vlans_are_resolved_to_the_lowest_interface_and_tags_outer_first() {
        let (customer, provider) = (VlanProtocol::Ieee8021Q, VlanProtocol::Ieee8021Ad);
        let mut elsewhere = message(6, 1, Some((9, customer)));
        elsewhere.attributes.push(LinkAttribute::LinkNetNsId(0));
        let links = [
            message(1, 99, None),
            message(2, 1, Some((5, customer))),
            message(3, 1, Some((7, provider))),
            message(4, 3, Some((8, customer))),
            message(5, 4, Some((9, customer))),
            elsewhere,
            message(7, 98, Some((9, customer))),
        ];
        let table = Table::default();
        assert!(table.replace(&links, &[]));
        let tag = |ethertype, vlan| Tag { ethertype, vlan };
        let cases = [
            (1, Ok(vec![])),
            (2, Ok(vec![tag(0x8100, 5)])),
            (4, Ok(vec![tag(0x88a8, 7), tag(0x8100, 8)])),
            (5, Err("more than two")),
            (6, Err("another network namespace")),
            (7, Err("gone")),
        ];
        for (index, expected) in cases {
            let result = table.below_vlans(&table.link(index).expect("the link is known"));
            match (result, expected) {
                (Ok((lowest, tags)), Ok(expected)) => assert_eq!((lowest.index, tags), (1, expected), "link{index}"),
                (Err((name, why)), Err(part)) => {
                    assert!(why.contains(part), "link{index}: {why}");
                    assert_eq!(name, format!("link{index}"));
                }
                (result, expected) => panic!("link{index}: {result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn forwarding_entries_of_bridges_are_not_taken_for_neighbours() {
        let address = IpAddr::from([10, 0, 0, 9]);
        for (family, known) in [(AddressFamily::Bridge, false), (AddressFamily::Inet, true)] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            message.header.ifindex = 3;
            message.header.state = NeighbourState::Permanent;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 9].into())),
                NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            ];
            let table = Table::default();
            assert_eq!(table.set_neighbour(&message, true), known, "{family:?}");
            assert_eq!(table.neighbour(3, address).is_some(), known, "{family:?}");
        }
    }
}
