//! Who is released next, who has waited for too long, and who has to go when there is no room.
//!
//! # Between rings
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), where each release costs the same: a ring's tag is
//! the virtual time at which its next release starts; the least tag is next, and a release moves it by a constant over
//! the ring's weight. Virtual time is the tag of what was released last. A ring with nothing to release is taken along
//! by virtual time, so it saves nothing up, and one with weight 1 is released at least once in as many releases as the
//! sum of weights.
//!
//! # Within a ring
//!
//! Earliest deadline first. In standing overload newest first (Maurer, "Fail at Scale", ACM Queue 2015: adaptive LIFO),
//! since in a long queue by deadline everybody is released when nearly too late. Overload is told from a burst as CoDel
//! does it (Nichols and Jacobson, ACM Queue 2012; RFC 8289): for a whole interval there was no moment at which the
//! oldest one had waited for no longer than the target. Nothing is dropped for it, as CoDel would: deadlines and bounds
//! do that.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use slab::Slab;

use super::heap::{By, Heap, Node, Rank};

pub const RINGS: usize = 5;

/// Virtual time of a release at weight 1. Without rest for all weights up to 32, powers of two up to 1,024 and 100:
/// the least common multiple of 1 to 32, times 32. A rest would be less than a share of 10^-6 for any weight.
const COST: u64 = 144_403_552_893_600 * 32;

/// Constants of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Shares of releases by ring, the most urgent first; 0 counts as 1, as no ring is to starve.
    pub weights: [u32; RINGS],
    /// Wait of a ring's oldest entry that is not overload (CoDel: `TARGET`, 5 ms for packets; here it is a server that
    /// is waited for).
    pub target: Duration,
    /// How long it has to be longer to be standing overload (CoDel: `INTERVAL`, a round-trip time; here of those who
    /// release).
    pub interval: Duration,
    /// Entries of all rings.
    pub max_entries: usize,
    /// Entries of one source.
    pub max_per_source: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: [16, 8, 4, 2, 1],
            target: Duration::from_millis(100),
            interval: Duration::from_secs(2),
            max_entries: 10_000,
            max_per_source: 256,
        }
    }
}

/// A connection that comes to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival<T> {
    /// Of its flow. No two that wait have the same.
    pub key: u64,
    /// The prefix that the bound of a source goes by.
    pub source: u128,
    /// 0 is the most urgent one; what is beyond the last counts as the last.
    pub ring: u8,
    pub class: u16,
    /// Since the controller's start, as all times; those after 584 years count as that.
    pub arrived: Duration,
    /// At this time it has waited for too long.
    pub deadline: Duration,
    /// Its address is not forged.
    pub verified: bool,
    pub value: T,
}

/// One that waits, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    pub key: u64,
    pub source: u128,
    pub ring: u8,
    pub class: u16,
    pub arrived: Duration,
    pub deadline: Duration,
    pub verified: bool,
    pub value: T,
    /// Virtual time that its release has cost its ring.
    cost: u64,
}

/// What became of an arrival.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed<T> {
    New {
        /// Had to give way.
        evicted: Option<Entry<T>>,
    },
    /// The same key waits already, and goes on as it was; it is verified if either is.
    Known,
    Refused {
        arrival: Arrival<T>,
        why: Full,
    },
}

/// Which bound there is no room in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Entries,
    Source,
}

/// Which ones are to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    Verified,
}

/// Connections of one service that wait.
///
/// Calls without a time count as made at the time of the last call with one. All take O(log n) for each entry that
/// comes or goes.
pub struct Queue<T> {
    settings: Settings,
    nodes: Slab<Node<T>>,
    /// Keys and sources come from the network, so their hashes are seeded.
    slots: HashMap<u64, u32>,
    sources: HashMap<u128, u32>,
    classes: BTreeMap<u16, Heap>,
    rings: [Ring; RINGS],
    virtual_time: u128,
    now_ns: u64,
}

struct Ring {
    unverified: Line,
    verified: Line,
    /// Virtual time at which its next release starts.
    tag: u128,
    /// Since when its oldest entry has waited for longer than the target.
    above_since_ns: Option<u64>,
    overloaded: bool,
}

/// Those of a ring that are verified, or those that are not.
struct Line {
    by_deadline: Heap,
    oldest: Heap,
    newest: Heap,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The last ring takes what is beyond it.
fn ring_index(ring: u8) -> usize {
    usize::from(ring).min(RINGS - 1)
}

/// Memory of a table of std: a power of two of places, of which 7/8 may be used, with one byte of control each.
fn table_memory<K, V>(table: &HashMap<K, V>) -> usize {
    let places = if table.capacity() == 0 { 0 } else { (table.capacity() * 8 / 7).next_power_of_two() };
    places * (size_of::<(K, V)>() + 1)
}

impl<T> Node<T> {
    fn entry(self, cost: u64) -> Entry<T> {
        let Self { key, source, ring, class, verified, value, .. } = self;
        let (arrived, deadline) = (Duration::from_nanos(self.arrived_ns), Duration::from_nanos(self.deadline_ns));
        Entry { key, source, ring, class, arrived, deadline, verified, value, cost }
    }

    fn as_entry(&self) -> Entry<&T> {
        Entry {
            key: self.key,
            source: self.source,
            ring: self.ring,
            class: self.class,
            arrived: Duration::from_nanos(self.arrived_ns),
            deadline: Duration::from_nanos(self.deadline_ns),
            verified: self.verified,
            value: &self.value,
            cost: 0,
        }
    }
}

impl Line {
    fn new() -> Self {
        Self { by_deadline: Heap::new(By::Deadline), oldest: Heap::new(By::Oldest), newest: Heap::new(By::Newest) }
    }

    fn len(&self) -> usize {
        self.oldest.len()
    }

    fn heaps(&self) -> [&Heap; 3] {
        [&self.by_deadline, &self.oldest, &self.newest]
    }

    fn heaps_mut(&mut self) -> [&mut Heap; 3] {
        [&mut self.by_deadline, &mut self.oldest, &mut self.newest]
    }

    fn insert<T>(&mut self, slot: u32, nodes: &mut Slab<Node<T>>) {
        self.heaps_mut().into_iter().for_each(|heap| heap.insert(slot, nodes));
    }

    fn remove<T>(&mut self, slot: u32, nodes: &mut Slab<Node<T>>) {
        self.heaps_mut().into_iter().for_each(|heap| heap.remove(slot, nodes));
    }
}

impl Ring {
    fn new() -> Self {
        Self { unverified: Line::new(), verified: Line::new(), tag: 0, above_since_ns: None, overloaded: false }
    }

    fn len(&self) -> usize {
        self.unverified.len() + self.verified.len()
    }

    fn lines(&self) -> [&Line; 2] {
        [&self.unverified, &self.verified]
    }

    fn line_mut(&mut self, verified: bool) -> &mut Line {
        if verified { &mut self.verified } else { &mut self.unverified }
    }

    fn has(&self, which: Which) -> bool {
        self.verified.len() > 0 || (which == Which::All && self.unverified.len() > 0)
    }
}

impl<T> Queue<T> {
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            nodes: Slab::new(),
            slots: HashMap::new(),
            sources: HashMap::new(),
            classes: BTreeMap::new(),
            rings: std::array::from_fn(|_| Ring::new()),
            virtual_time: 0,
            now_ns: 0,
        }
    }

    /// Nobody who waits has to go: with a lower bound there is no more room until enough have left.
    pub fn set_settings(&mut self, settings: &Settings) {
        if settings.target != self.settings.target {
            // How long the former target was exceeded does not tell of this one.
            self.rings.iter_mut().for_each(|ring| ring.above_since_ns = None);
        }
        self.settings = settings.clone();
        self.look();
    }

    /// Gives all that wait the class that `class_of` makes of theirs.
    pub fn set_classes(&mut self, class_of: impl Fn(u16) -> u16) {
        self.classes.clear();
        let slots: Vec<u32> = self.slots.values().copied().collect();
        for slot in slots {
            let class = &mut self.nodes[slot as usize].class;
            *class = class_of(*class);
            self.insert_into_class(slot);
        }
    }

    /// Takes in a connection, if there is room or it can be made.
    pub fn push(&mut self, arrival: Arrival<T>, now: Duration) -> Pushed<T> {
        self.pass(now);
        if self.slots.contains_key(&arrival.key) {
            if arrival.verified {
                self.verify(arrival.key);
            }
            return Pushed::Known;
        }
        let of_source = self.sources.get(&arrival.source).copied().unwrap_or(0);
        if of_source as usize >= self.settings.max_per_source {
            return Pushed::Refused { arrival, why: Full::Source };
        }
        let ring = ring_index(arrival.ring);
        let victim = if self.len() < self.settings.max_entries {
            None
        } else {
            match self.victim(ring, arrival.verified) {
                Some(victim) => Some(victim),
                None => return Pushed::Refused { arrival, why: Full::Entries },
            }
        };
        self.begin(ring);
        let evicted = victim.map(|victim| self.take(victim).entry(0));
        let (arrived_ns, deadline_ns) = (nanoseconds(arrival.arrived), nanoseconds(arrival.deadline));
        let mut node = Node::new(arrival.value, arrival.key, arrival.source, arrived_ns, deadline_ns);
        (node.ring, node.class, node.verified) = (ring as u8, arrival.class, arrival.verified);
        self.insert(node);
        self.look();
        Pushed::New { evicted }
    }

    /// Takes out the next one to be released, for which its ring pays; None: there is none.
    pub fn pop(&mut self, now: Duration, which: Which) -> Option<Entry<T>> {
        self.pass(now);
        let (ring, slot) = self.next(which, |ring| self.rings[ring].overloaded)?;
        let cost = COST / u64::from(self.weight(ring));
        // One that was given back may be behind virtual time.
        self.virtual_time = self.virtual_time.max(self.rings[ring].tag);
        self.rings[ring].tag += u128::from(cost);
        for ring in self.rings.iter_mut().filter(|ring| !ring.has(which)) {
            ring.tag = ring.tag.max(self.virtual_time);
        }
        let node = self.take(slot);
        self.look();
        Some(node.entry(cost))
    }

    /// What [`Self::pop`] would give.
    pub fn peek(&self, now: Duration, which: Which) -> Option<Entry<&T>> {
        let now_ns = self.now_ns.max(nanoseconds(now));
        let (_, slot) = self.next(which, |ring| self.is_overload(self.above_since(ring, now_ns), now_ns))?;
        Some(self.nodes[slot as usize].as_entry())
    }

    /// Takes back one that could not be released, as if it had never been out: with its arrival and its deadline,
    /// beyond all bounds, and its ring gets back what it has paid.
    ///
    /// If the same key has come again meanwhile, the later one is given out and they are verified if either is.
    pub fn give_back(&mut self, mut entry: Entry<T>) -> Option<Entry<T>> {
        let later = self.remove(entry.key);
        entry.verified |= later.as_ref().is_some_and(|later| later.verified);
        let ring = ring_index(entry.ring);
        self.begin(ring);
        let tag = &mut self.rings[ring].tag;
        *tag = tag.saturating_sub(u128::from(entry.cost));
        let (arrived_ns, deadline_ns) = (nanoseconds(entry.arrived), nanoseconds(entry.deadline));
        let mut node = Node::new(entry.value, entry.key, entry.source, arrived_ns, deadline_ns);
        (node.ring, node.class, node.verified) = (ring as u8, entry.class, entry.verified);
        self.insert(node);
        self.look();
        later
    }

    pub fn remove(&mut self, key: u64) -> Option<Entry<T>> {
        let slot = *self.slots.get(&key)?;
        let node = self.take(slot);
        self.look();
        Some(node.entry(0))
    }

    pub fn get(&self, key: u64) -> Option<Entry<&T>> {
        self.slots.get(&key).map(|slot| self.nodes[*slot as usize].as_entry())
    }

    /// Changes what waits under a key, if there is such a one.
    pub fn set_value(&mut self, key: u64, change: impl FnOnce(&mut T)) {
        if let Some(slot) = self.slots.get(&key) {
            change(&mut self.nodes[*slot as usize].value);
        }
    }

    /// The address of this one is not forged. True: it waits, and that was not known.
    pub fn verify(&mut self, key: u64) -> bool {
        let Some(slot) = self.slots.get(&key).copied() else { return false };
        let node = &mut self.nodes[slot as usize];
        if node.verified {
            return false;
        }
        node.verified = true;
        let ring = &mut self.rings[usize::from(node.ring)];
        ring.unverified.remove(slot, &mut self.nodes);
        ring.verified.insert(slot, &mut self.nodes);
        true
    }

    /// Takes out all whose deadline has come, in the order of their deadlines.
    pub fn expire(&mut self, now: Duration) -> Vec<Entry<T>> {
        self.pass(now);
        let mut expired = Vec::new();
        while let Some(slot) = self.first_by_deadline() {
            if self.nodes[slot as usize].deadline_ns > self.now_ns {
                break;
            }
            expired.push(self.take(slot).entry(0));
        }
        self.look();
        expired
    }

    /// Takes out all, in any order.
    pub fn drain(&mut self) -> Vec<Entry<T>> {
        self.slots.clear();
        self.sources.clear();
        self.classes.clear();
        for ring in &mut self.rings {
            (ring.unverified, ring.verified) = (Line::new(), Line::new());
        }
        self.look();
        self.nodes.drain().map(|node| node.entry(0)).collect()
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        self.first_by_deadline().map(|slot| Duration::from_nanos(self.nodes[slot as usize].deadline_ns))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn waiting_of_class(&self, class: u16) -> usize {
        self.classes.get(&class).map_or(0, Heap::len)
    }

    pub fn unverified(&self) -> usize {
        self.rings.iter().map(|ring| ring.unverified.len()).sum()
    }

    /// When the one of a class that has waited for longest arrived.
    pub fn oldest_of_class(&self, class: u16) -> Option<Duration> {
        let slot = self.classes.get(&class)?.first()?;
        Some(Duration::from_nanos(self.nodes[slot as usize].arrived_ns))
    }

    /// Whether a ring is in standing overload.
    pub fn is_overloaded(&self, ring: u8) -> bool {
        self.rings[ring_index(ring)].overloaded
    }

    /// All that wait, in any order.
    pub fn iter(&self) -> impl Iterator<Item = Entry<&T>> {
        self.nodes.iter().map(|(_, node)| node.as_entry())
    }

    /// Bytes in use, without what values point to and what the allocator takes for itself. Room that a larger queue has
    /// left behind counts.
    pub fn memory(&self) -> usize {
        // A vacant place is told by a value that `verified` cannot have, as in an option.
        let nodes = self.nodes.capacity() * size_of::<Option<Node<T>>>();
        let heaps = self.rings.iter().flat_map(Ring::lines).flat_map(Line::heaps).chain(self.classes.values());
        let orders: usize = heaps.map(Heap::memory).sum();
        // Nodes of a B-tree are at least half full.
        let classes = self.classes.len() * 2 * size_of::<(u16, Heap)>();
        size_of::<Self>() + nodes + orders + classes + table_memory(&self.slots) + table_memory(&self.sources)
    }

    fn weight(&self, ring: usize) -> u32 {
        self.settings.weights[ring].max(1)
    }

    fn rank(&self, slot: u32, by: By) -> Rank {
        self.nodes[slot as usize].rank(by)
    }

    /// The first of these in an order.
    fn first(&self, slots: impl Iterator<Item = u32>, by: By) -> Option<u32> {
        slots.min_by_key(|slot| self.rank(*slot, by))
    }

    fn first_by_deadline(&self) -> Option<u32> {
        let lines = self.rings.iter().flat_map(Ring::lines);
        self.first(lines.filter_map(|line| line.by_deadline.first()), By::Deadline)
    }

    fn oldest_of_ring(&self, ring: usize) -> Option<u64> {
        let firsts = self.rings[ring].lines().into_iter().filter_map(|line| line.oldest.first());
        firsts.map(|slot| self.nodes[slot as usize].arrived_ns).min()
    }

    /// Ring and slot of the next one to be released.
    fn next(&self, which: Which, is_overloaded: impl Fn(usize) -> bool) -> Option<(usize, u32)> {
        let rings = (0..RINGS).filter(|ring| self.rings[*ring].has(which));
        // Of equal ones the first, which is the most urgent.
        let ring = rings.min_by_key(|ring| self.rings[*ring].tag)?;
        let by = if is_overloaded(ring) { By::Newest } else { By::Deadline };
        let Ring { verified, unverified, .. } = &self.rings[ring];
        let lines = [Some(verified), (which == Which::All).then_some(unverified)];
        let first = |line: &Line| match by {
            By::Newest => line.newest.first(),
            _ => line.by_deadline.first(),
        };
        Some((ring, self.first(lines.into_iter().flatten().filter_map(first), by)?))
    }

    /// Who has to go for a newcomer in this ring; None: the newcomer.
    ///
    /// The ring that holds most for its weight gives one up. So a crowd in one ring cannot take the place of others,
    /// whose share of the room is at least that of releases. It could take that of its own ring, so there only those
    /// who may be forged give way to those who are not.
    ///
    /// Who goes is the one that would be released last: by deadline about the newest, which has lost least and may
    /// prove itself yet when it comes again, while the others are about to be served; in standing overload the oldest,
    /// whose client has likely given up, and which has had the longest time to be verified. With the newest first in
    /// overload, a flood would keep the forged ones in that came first, and push out all that came after.
    fn victim(&self, newcomer: usize, verified: bool) -> Option<u32> {
        let load = |ring: usize| (self.rings[ring].len() + usize::from(ring == newcomer)) as u128;
        // Of equal ones the newcomer's, so that two rings do not push out each other's in turn; then the least urgent.
        let fullest = (0..RINGS).max_by(|a, b| {
            let by_load = (load(*a) * u128::from(self.weight(*b))).cmp(&(load(*b) * u128::from(self.weight(*a))));
            by_load.then((*a == newcomer).cmp(&(*b == newcomer)))
        })?;
        let Ring { unverified, verified: rest, overloaded, .. } = &self.rings[fullest];
        let first = |line: &Line| if *overloaded { line.oldest.first() } else { line.newest.first() };
        if fullest == newcomer {
            first(unverified).filter(|_| verified)
        } else {
            first(unverified).or_else(|| first(rest))
        }
    }

    /// A ring that had nothing starts at virtual time.
    fn begin(&mut self, ring: usize) {
        let ring = &mut self.rings[ring];
        if ring.len() == 0 {
            ring.tag = ring.tag.max(self.virtual_time);
        }
    }

    /// Its key does not wait yet.
    fn insert(&mut self, node: Node<T>) {
        let (key, source, ring, verified) = (node.key, node.source, node.ring, node.verified);
        if self.nodes.len() == self.nodes.capacity() {
            // By a quarter instead of doubling: most of the memory is here.
            self.nodes.reserve_exact(self.nodes.len() / 4 + 16);
        }
        // As many as do not fit into 32 bits do not fit into memory.
        let slot = self.nodes.insert(node) as u32;
        self.slots.insert(key, slot);
        *self.sources.entry(source).or_default() += 1;
        self.rings[usize::from(ring)].line_mut(verified).insert(slot, &mut self.nodes);
        self.insert_into_class(slot);
    }

    fn insert_into_class(&mut self, slot: u32) {
        let class = self.nodes[slot as usize].class;
        self.classes.entry(class).or_insert_with(|| Heap::new(By::OldestOfClass)).insert(slot, &mut self.nodes);
    }

    fn take(&mut self, slot: u32) -> Node<T> {
        let Node { key, source, class, ring, verified, .. } = self.nodes[slot as usize];
        self.rings[usize::from(ring)].line_mut(verified).remove(slot, &mut self.nodes);
        if let Some(heap) = self.classes.get_mut(&class) {
            heap.remove(slot, &mut self.nodes);
            if heap.is_empty() {
                self.classes.remove(&class);
            }
        }
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
        self.slots.remove(&key);
        self.nodes.remove(slot as usize)
    }

    fn pass(&mut self, now: Duration) {
        self.now_ns = self.now_ns.max(nanoseconds(now));
        self.look();
    }

    /// Looks whether rings are in overload. Before a change this takes note of what the time alone has made, after one
    /// of what the change has.
    fn look(&mut self) {
        for ring in 0..RINGS {
            let since = self.above_since(ring, self.now_ns);
            self.rings[ring].above_since_ns = since;
            self.rings[ring].overloaded = self.is_overload(since, self.now_ns);
        }
    }

    /// Since when the oldest one of a ring has waited for longer than the target; None: it has not.
    fn above_since(&self, ring: usize, now_ns: u64) -> Option<u64> {
        let above = self.oldest_of_ring(ring)?.saturating_add(nanoseconds(self.settings.target));
        // Before it there was another one, perhaps. Or it was out and given back: then it has waited all the time.
        (above < now_ns).then(|| self.rings[ring].above_since_ns.map_or(above, |since| since.min(above)))
    }

    fn is_overload(&self, above_since_ns: Option<u64>, now_ns: u64) -> bool {
        above_since_ns.is_some_and(|since| now_ns - since >= nanoseconds(self.settings.interval))
    }
}

#[cfg(test)]
mod tests;
