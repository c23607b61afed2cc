//! Flows that begin and never answer, while there is a flood of them.
//!
//! Those that came before clients had to show where they are hold places at servers until their time-out (`tcp_syn`). A client
//! that is there answers its server within a round-trip time, so under a flood a second is long enough; TCP Intercept and SYN caches
//! shorten this time under attack as well (RFC 4987, section 3.3).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use bytemuck::Pod;
use loadbalancer_common::affinity::{Entry, state};
use loadbalancer_common::conntrack::{TO_SERVER, Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};

use super::error::MapError;
use super::ids::BackendNumber;
use super::maps::Map;
use super::maps::Maps;

/// What was half-open when it was looked at last.
#[derive(Debug, Default)]
pub struct HalfOpen {
    /// By position in the affinity table, without the time.
    affinity: HashMap<usize, u64>,
    nat4: HashSet<Tuple<Addr4>>,
    nat6: HashSet<Tuple<Addr6>>,
}

impl HalfOpen {
    /// Ends the flows of some backends that are half-open now and were at the last call, and gives their places back. Gives
    /// how many. `has_nat`: whether some of the backends are of `nat` services.
    ///
    /// # Errors
    /// A map of `nat` flows cannot be read.
    pub fn sweep(&mut self, maps: &Maps, backends: &HashSet<BackendNumber>, has_nat: bool) -> Result<u64, MapError> {
        if backends.is_empty() {
            *self = Self::default();
            return Ok(0);
        }
        let mut ended = 0;
        let before = std::mem::take(&mut self.affinity);
        for (position, word) in maps.affinity.words().iter().enumerate() {
            let entry = Entry(word.load(Ordering::Relaxed));
            if entry.state() != state::TCP_SYN || !backends.contains(&BackendNumber(entry.backend())) {
                continue;
            }
            let timeless = entry.with(state::TCP_SYN, 0).0;
            if before.get(&position) != Some(&timeless) {
                self.affinity.insert(position, timeless);
            } else if word.compare_exchange(entry.0, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                give_back(maps, BackendNumber(entry.backend()));
                ended += 1;
            }
        }
        if has_nat {
            ended += sweep_nat(maps, &maps.conntrack4, &mut self.nat4, backends)?;
            ended += sweep_nat(maps, &maps.conntrack6, &mut self.nat6, backends)?;
        }
        Ok(ended)
    }
}

fn sweep_nat<A: Copy + Eq + std::hash::Hash>(
    maps: &Maps,
    map: &Map<Tuple<A>, Translation<A>>,
    seen: &mut HashSet<Tuple<A>>,
    backends: &HashSet<BackendNumber>,
) -> Result<u64, MapError>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let is_half_open = |entry: &Translation<A>| {
        entry.direction == TO_SERVER
            && entry.state == u32::from(state::TCP_SYN)
            && backends.contains(&BackendNumber(entry.backend))
    };
    let before = std::mem::take(seen);
    let mut old = Vec::new();
    map.for_each(|key, entry| {
        if is_half_open(entry) && !before.contains(key) {
            seen.insert(*key);
        } else if is_half_open(entry) {
            old.push(*key);
        }
    })?;
    let mut ended = 0;
    for key in old {
        // It may have been answered since the list was taken.
        if let Some(entry) = map.get(&key)?.filter(|entry| is_half_open(entry))
            && map.remove(&key)?
        {
            map.remove(&entry.reverse_key(key.protocol))?;
            give_back(maps, BackendNumber(entry.backend));
            ended += 1;
        }
    }
    Ok(ended)
}

fn give_back(maps: &Maps, backend: BackendNumber) {
    maps.active_counter(backend).fetch_sub(1, Ordering::SeqCst);
}
