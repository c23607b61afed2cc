//! Local ports that stand for servers.
//!
//! A probe through the real data path asks a VIP, and it is to reach one server. The packet path can know which by the
//! address and port that the probe comes from, so each probe of this kind gets a port of its own, always the same one.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use super::runner::ProbeKey;

/// Ports and whom they stand for. They are to lie outside of `ip_local_port_range`, or in `ip_local_reserved_ports`, so
/// that nothing else on the gateway gets one of them.
#[derive(Clone, Debug)]
pub struct SourcePorts {
    range: RangeInclusive<u16>,
    /// Where the search for a free one begins: in turn, so that each rests as long as it can.
    next: u16,
    owners: BTreeMap<NonZeroU16, ProbeKey>,
    ports: HashMap<ProbeKey, NonZeroU16>,
}

impl SourcePorts {
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { next: *range.start(), range, owners: BTreeMap::new(), ports: HashMap::new() }
    }

    /// All ports, taken or not.
    pub fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// The port of a probe, from now on until it is released. None: all are taken.
    pub fn reserve(&mut self, key: ProbeKey) -> Option<NonZeroU16> {
        if let Some(port) = self.ports.get(&key) {
            return Some(*port);
        }
        let (first, last) = (*self.range.start(), *self.range.end());
        let in_turn = (self.next..=last).chain(first..self.next);
        let port = in_turn.filter_map(NonZeroU16::new).find(|port| !self.owners.contains_key(port))?;
        self.next = if port.get() == last { first } else { port.get() + 1 };
        self.owners.insert(port, key);
        self.ports.insert(key, port);
        Some(port)
    }

    pub fn release(&mut self, key: ProbeKey) {
        if let Some(port) = self.ports.remove(&key) {
            self.owners.remove(&port);
        }
    }

    /// What the packet path has to know, by port.
    pub fn iter(&self) -> impl Iterator<Item = (NonZeroU16, ProbeKey)> {
        self.owners.iter().map(|(port, key)| (*port, *key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Part;
    use model::ids::ServerId;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn key(server: u32) -> ProbeKey {
        ProbeKey { server: ServerId::numbered(server), part: Part::Check }
    }

    #[test]
    fn a_port_that_was_released_rests_until_all_others_had_their_turn() {
        let mut ports = SourcePorts::new(100..=102);
        let mut reserved = |server: u32, release: bool| {
            let port = ports.reserve(key(server)).map(NonZeroU16::get);
            if release {
                ports.release(key(server));
            }
            port
        };
        assert_eq!(reserved(1, true), Some(100));
        assert_eq!(reserved(2, false), Some(101));
        assert_eq!(reserved(3, false), Some(102));
        assert_eq!(reserved(2, false), Some(101));
        assert_eq!(reserved(4, false), Some(100));
        assert_eq!(reserved(5, false), None);
    }

    proptest! {
        #[test]
        fn no_port_stands_for_two(first in 0u16..=u16::MAX, length in 0u16..20, steps in prop::collection::vec((0u32..30, any::<bool>()), 0..200)) {
            let range = first..=first.saturating_add(length);
            let mut ports = SourcePorts::new(range.clone());
            let mut mine: HashMap<u32, NonZeroU16> = HashMap::new();
            for (server, reserve) in steps {
                if reserve {
                    let room = range.clone().filter(|port| *port != 0).count();
                    match ports.reserve(key(server)) {
                        Some(port) => {
                            prop_assert!(range.contains(&port.get()));
                            prop_assert_eq!(*mine.entry(server).or_insert(port), port);
                        }
                        None => prop_assert!(mine.len() == room && !mine.contains_key(&server)),
                    }
                } else {
                    ports.release(key(server));
                    mine.remove(&server);
                }
                let distinct: HashSet<_> = mine.values().collect();
                prop_assert_eq!(distinct.len(), mine.len());
                prop_assert_eq!(ports.iter().count(), mine.len());
                for (port, owner) in ports.iter() {
                    prop_assert_eq!(mine.iter().find(|(server, _)| key(**server) == owner).map(|(_, port)| port), Some(&port));
                }
            }
        }
    }
}
