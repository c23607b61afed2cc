//! Classes of waiting clients by their addresses, in the packet path's map of prefixes.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use loadbalancer_common::queue::ClassKey;

use super::error::MapError;
use super::ids::ServiceNumber;
use super::maps::Maps;
use decide::queue::settings::ServiceQueue;

/// What the map holds.
#[derive(Debug, Default)]
pub struct Classes {
    /// Services with the settings that their prefixes are from; none: the map has not been looked at.
    of: Option<Vec<(ServiceNumber, Arc<ServiceQueue>)>>,
    written: HashMap<ClassKey, u32>,
}

impl Classes {
    /// Makes the map say what services want. Nothing is done if it does already.
    ///
    /// # Errors
    /// The map is full, or the kernel refuses. What was written stands, and the next call goes on.
    pub fn follow(&mut self, maps: &Maps, wanted: &[(ServiceNumber, Arc<ServiceQueue>)]) -> Result<(), MapError> {
        let same = |known: &[(ServiceNumber, Arc<ServiceQueue>)]| {
            known.len() == wanted.len()
                && known.iter().zip(wanted).all(|(one, other)| {
                    one.0 == other.0 && (Arc::ptr_eq(&one.1, &other.1) || one.1.classes == other.1.classes)
                })
        };
        match &self.of {
            Some(known) if same(known) => {}
            Some(_) => self.write(maps, wanted)?,
            None => {
                // An earlier controller may have left some; whatever they say is written anew.
                self.written = maps.classes.keys()?.into_iter().map(|key| (key, 0)).collect();
                self.write(maps, wanted)?;
            }
        }
        // Not only if they differ: what is compared by address next time is the newest.
        self.of = Some(wanted.to_vec());
        Ok(())
    }

    fn write(&mut self, maps: &Maps, wanted: &[(ServiceNumber, Arc<ServiceQueue>)]) -> Result<(), MapError> {
        let mut new = HashMap::new();
        for (service, queue) in wanted {
            for (class, position) in queue.classes.iter().zip(1..) {
                new.extend(class.clients.iter().map(|prefix| (key(*service, prefix), position)));
            }
        }
        let gone: Vec<ClassKey> = self.written.keys().filter(|key| !new.contains_key(key)).copied().collect();
        for key in gone {
            maps.classes.remove(&key)?;
            self.written.remove(&key);
        }
        for (key, class) in new {
            if self.written.get(&key) != Some(&class) {
                maps.classes.set(&key, &class)?;
                self.written.insert(key, class);
            }
        }
        Ok(())
    }
}

fn key(service: ServiceNumber, prefix: &IpNet) -> ClassKey {
    let addr = prefix.network();
    ClassKey::new(service.0, addr.is_ipv6(), addr.into(), prefix.prefix_len())
}
