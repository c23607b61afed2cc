//! Which connections of a service wait in which ring, and for how long.

use std::ops::Deref;
use std::time::Duration;

use ipnet::IpNet;

/// With no class, their numbers are to fit 8 bits, and the last of these stays free.
pub const MOST_CLASSES: usize = 254;

/// Connections that wait in the same way. Of a client in prefixes of several classes the longest decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueClass {
    /// Unique in the service.
    pub name: String,
    /// 0 to 4, for priorities 1 (most urgent) to 5.
    pub ring: u8,
    pub deadline: Duration,
    /// Without host bits; no two classes have the same.
    pub clients: Vec<IpNet>,
    pub dscp: Vec<u8>,
    /// Destination ports.
    pub ports: Vec<u16>,
}

/// The classes of a service in the order of the file, with tables for the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    all: Vec<QueueClass>,
    /// Number of the class by DSCP; zero: none. Values beyond 63 there are not.
    by_dscp: [u8; 64],
    /// Number of the class by port, sorted by port.
    by_port: Vec<(u16, u8)>,
}

impl Default for Classes {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<QueueClass>> for Classes {
    fn from(all: Vec<QueueClass>) -> Self {
        let mut classes = Self { all, by_dscp: [0; 64], by_port: Vec::new() };
        for (number, class) in (1..=u8::MAX).zip(&classes.all) {
            for dscp in &class.dscp {
                if let Some(slot) = classes.by_dscp.get_mut(usize::from(*dscp)).filter(|slot| **slot == 0) {
                    *slot = number;
                }
            }
            classes.by_port.extend(class.ports.iter().map(|port| (*port, number)));
        }
        classes.by_port.sort_unstable();
        classes.by_port.dedup_by_key(|(port, _)| *port);
        classes
    }
}

impl Deref for Classes {
    type Target = [QueueClass];

    fn deref(&self) -> &[QueueClass] {
        &self.all
    }
}

impl Classes {
    /// The class of a connection and its number, which is its position plus one. `by_prefix` is passed over if there is
    /// no such position.
    pub fn find(&self, by_prefix: Option<u16>, dscp: u8, port: u16) -> Option<(u16, &QueueClass)> {
        let by_prefix = by_prefix
            .filter(|position| usize::from(*position) < self.all.len().min(MOST_CLASSES))
            .map(|position| position + 1);
        let by_dscp =
            || self.by_dscp.get(usize::from(dscp)).filter(|number| **number > 0).map(|number| u16::from(*number));
        let by_port = || {
            let found = self.by_port.binary_search_by_key(&port, |(port, _)| *port).ok()?;
            Some(u16::from(self.by_port[found].1))
        };
        let number = by_prefix.or_else(by_dscp).or_else(by_port)?;
        Some((number, self.all.get(usize::from(number) - 1)?))
    }
}
