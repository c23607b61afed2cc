//! Heaps of slots that know where each slot is, so that any can be taken out in O(log n).
//!
//! A B-tree of times does the same, but takes 35 to 55 bytes for each entry and order, since its nodes are little more
//! than half full when times come in ascending order. Here it is 8, half of them in the node.

use slab::Slab;

/// What waits, with its place in each order.
pub(super) struct Node<T> {
    pub value: T,
    pub source: u128,
    pub key: u64,
    pub arrived_ns: u64,
    pub deadline_ns: u64,
    /// Index in the heap of each order.
    places: [u32; ORDERS],
    pub class: u16,
    pub ring: u8,
    pub verified: bool,
}

const ORDERS: usize = 4;

/// What a heap is ordered by.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// The earliest deadline first.
    Deadline,
    /// The earliest arrival first.
    Oldest,
    /// The latest arrival first.
    Newest,
    /// The earliest arrival first, among those of the same class.
    OldestOfClass,
}

/// Whatever is least comes first. No two that wait have the same key, so no two ranks of an order are equal.
pub(super) type Rank = (u64, u64, u64);

pub(super) struct Heap {
    by: By,
    slots: Vec<u32>,
}

impl<T> Node<T> {
    /// A node that is in no heap.
    pub fn new(value: T, key: u64, source: u128, arrived_ns: u64, deadline_ns: u64) -> Self {
        Self { value, source, key, arrived_ns, deadline_ns, places: [0; ORDERS], class: 0, ring: 0, verified: false }
    }

    pub fn rank(&self, by: By) -> Rank {
        match by {
            By::Deadline => (self.deadline_ns, self.arrived_ns, self.key),
            By::Oldest | By::OldestOfClass => (self.arrived_ns, self.key, 0),
            By::Newest => (!self.arrived_ns, !self.key, 0),
        }
    }
}

impl Heap {
    pub fn new(by: By) -> Self {
        Self { by, slots: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn first(&self) -> Option<u32> {
        self.slots.first().copied()
    }

    /// Bytes on the heap of the process.
    pub fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
    }

    pub fn insert<T>(&mut self, slot: u32, nodes: &mut Slab<Node<T>>) {
        self.slots.push(slot);
        self.rise(self.slots.len() - 1, nodes);
    }

    pub fn remove<T>(&mut self, slot: u32, nodes: &mut Slab<Node<T>>) {
        let place = nodes[slot as usize].places[self.by as usize] as usize;
        self.slots.swap_remove(place);
        if place < self.slots.len() {
            let place = self.rise(place, nodes);
            self.sink(place, nodes);
        }
    }

    fn rank<T>(&self, place: usize, nodes: &Slab<Node<T>>) -> Rank {
        nodes[self.slots[place] as usize].rank(self.by)
    }

    /// Tells the node at this place where it is.
    fn tell<T>(&self, place: usize, nodes: &mut Slab<Node<T>>) {
        nodes[self.slots[place] as usize].places[self.by as usize] = place as u32;
    }

    /// Where it ends up.
    fn rise<T>(&mut self, mut place: usize, nodes: &mut Slab<Node<T>>) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.rank(parent, nodes) <= self.rank(place, nodes) {
                break;
            }
            self.slots.swap(parent, place);
            self.tell(place, nodes);
            place = parent;
        }
        self.tell(place, nodes);
        place
    }

    fn sink<T>(&mut self, mut place: usize, nodes: &mut Slab<Node<T>>) {
        loop {
            let children = (2 * place + 1..=2 * place + 2).filter(|child| *child < self.slots.len());
            let Some(least) = children.min_by_key(|child| self.rank(*child, nodes)) else { break };
            if self.rank(place, nodes) <= self.rank(least, nodes) {
                break;
            }
            self.slots.swap(place, least);
            self.tell(place, nodes);
            place = least;
        }
        self.tell(place, nodes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_taken_out_the_least_stays_first(
            arrivals in prop::collection::vec(0u64..40, 1..80),
            removals in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
            by in prop::sample::select(vec![By::Deadline, By::Oldest, By::Newest, By::OldestOfClass]),
        ) {
            let (mut heap, mut nodes, mut present) = (Heap::new(by), Slab::new(), Vec::new());
            for (key, arrived_ns) in arrivals.into_iter().enumerate() {
                // Deadlines in another order than arrivals.
                let slot = nodes.insert(Node::new((), key as u64, 0, arrived_ns, arrived_ns * 7 % 40)) as u32;
                heap.insert(slot, &mut nodes);
                present.push(slot);
            }
            let first = |nodes: &Slab<Node<()>>, present: &[u32]| {
                present.iter().copied().min_by_key(|slot| nodes[*slot as usize].rank(by))
            };
            for removal in removals {
                if !present.is_empty() {
                    heap.remove(present.swap_remove(removal.index(present.len())), &mut nodes);
                }
                prop_assert_eq!(heap.first(), first(&nodes, &present));
            }
            while let Some(slot) = heap.first() {
                prop_assert_eq!(Some(slot), first(&nodes, &present));
                heap.remove(slot, &mut nodes);
                present.retain(|other| *other != slot);
            }
            prop_assert!(present.is_empty());
        }
    }
}
