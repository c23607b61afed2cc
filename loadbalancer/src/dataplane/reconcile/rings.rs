//! Which rings are in the kernel's table, and where there is room for another.

use std::collections::{HashMap, HashSet, VecDeque};

use loadbalancer_common::hash::mix;
use loadbalancer_common::ring::{RingBlock, RingRef};
use loadbalancer_common::service::Service;

use super::super::ids::{RingNumber, ServiceNumber};
use super::super::sizes::Sizes;
use super::error::ReconcileError;
use decide::ring::{self, member::Member};

/// Words of one ring block.
const BLOCK_WORDS: usize = size_of::<RingBlock>() / size_of::<u64>();

/// Which ring of which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tier {
    pub(super) service: ServiceNumber,
    /// Place in the service's entry.
    pub(super) place: usize,
}

/// A ring that was written.
#[derive(Clone, Debug)]
struct Built {
    members: Vec<Member>,
    ring: RingNumber,
    digest: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Rings {
    built: HashMap<Tier, Built>,
    /// Those that no service refers to.
    free: VecDeque<RingNumber>,
    deal: Deal,
    /// Blocks of a ring's place.
    blocks: u32,
    capacity: u32,
}

/// Makes the blocks of a ring: a function of its members alone.
pub(super) type Deal = fn(&[Member]) -> Vec<RingBlock>;

/// What is to be written for a ring.
pub(super) struct Content {
    pub(super) words: Vec<u64>,
    members: Vec<Member>,
    digest: u64,
}

impl Rings {
    /// What the rings are made of that services refer to is not known; until they are built anew they are only kept from being
    /// overwritten.
    pub(super) fn of(services: &[Service], sizes: &Sizes, deal: Deal) -> Self {
        let blocks = sizes.ring_blocks();
        let mut rings = Self { built: HashMap::new(), free: VecDeque::new(), deal, blocks, capacity: sizes.rings };
        let used: HashSet<RingNumber> =
            services.iter().flat_map(|service| service.tiers).filter_map(|ring| rings.number(RingRef(ring))).collect();
        rings.free = (0..sizes.rings).map(RingNumber).filter(|ring| !used.contains(ring)).collect();
        rings
    }

    /// Words of a ring's place.
    pub(super) fn words(blocks: u32) -> usize {
        blocks as usize * BLOCK_WORDS
    }

    /// What a service's entry says of a ring with so many members.
    pub(super) fn reference(&self, ring: RingNumber, members: u32) -> RingRef {
        RingRef::new(ring.0 * self.blocks, members)
    }

    /// The ring that an entry refers to.
    pub(super) fn number(&self, reference: RingRef) -> Option<RingNumber> {
        (reference.members() != 0).then(|| RingNumber(reference.block() / self.blocks))
    }

    /// The ring that a tier's entry refers to, if it is for this tier alone to give up.
    pub(super) fn referred(&self, tier: Tier, reference: RingRef) -> Option<RingNumber> {
        let is_of_another = |ring: RingNumber| self.built.iter().any(|(of, built)| *of != tier && built.ring == ring);
        self.number(reference).filter(|ring| !self.free.contains(ring) && !is_of_another(*ring))
    }

    /// The ring that was built for a tier.
    pub(super) fn built(&self, tier: Tier) -> Option<RingNumber> {
        self.built.get(&tier).map(|built| built.ring)
    }

    /// The same, if it was built of these members.
    pub(super) fn built_of(&self, tier: Tier, members: &[Member]) -> Option<RingNumber> {
        self.built.get(&tier).filter(|built| built.members == members).map(|built| built.ring)
    }

    /// Deals a ring to some members.
    pub(super) fn deal(&self, members: Vec<Member>) -> Content {
        let mut blocks = (self.deal)(&members);
        // What an earlier, larger ring left behind its own members is cleared, so that contents can be compared.
        blocks.resize(self.blocks as usize, RingBlock::default());
        let words: Vec<u64> =
            blocks.iter().flat_map(|block| bytemuck::cast::<_, [u64; BLOCK_WORDS]>(block.0)).collect();
        Content { digest: digest(words.iter().copied()), words, members }
    }

    /// Where the next ring is to be written.
    pub(super) fn next(&self) -> Result<RingNumber, ReconcileError> {
        let full = ReconcileError::Full { what: "another ring", capacity: self.capacity, key: "rings" };
        self.free.front().copied().ok_or(full)
    }

    /// Notes that a tier's ring is there. `referred`: the one that the tier's entry leads to until it is written.
    pub(super) fn insert(&mut self, tier: Tier, ring: RingNumber, content: Content, referred: Option<RingNumber>) {
        let Content { members, digest, .. } = content;
        self.free.retain(|free| *free != ring);
        let before = self.built.insert(tier, Built { members, ring, digest });
        self.release_unless(before, [Some(ring), referred]);
    }

    /// Forgets what was built for a tier. The ring that its entry leads to stays where it is until it is released.
    pub(super) fn forget(&mut self, tier: Tier, referred: Option<RingNumber>) {
        let before = self.built.remove(&tier);
        self.release_unless(before, [referred, None]);
    }

    /// A ring that is none of these was built, but no entry has led to it, as writing that has failed.
    fn release_unless(&mut self, built: Option<Built>, used: [Option<RingNumber>; 2]) {
        if let Some(Built { ring, .. }) = built.filter(|built| !used.contains(&Some(built.ring))) {
            self.release(ring);
        }
    }

    /// Gives up a ring that no packet finds any more.
    pub(super) fn release(&mut self, ring: RingNumber) {
        self.free.push_back(ring);
    }

    /// Forgets the rings that are not as they were built, so that they are built anew elsewhere, and gives how many these are.
    pub(super) fn forget_damaged<W: Iterator<Item = u64>>(&mut self, words: impl Fn(RingNumber) -> W) -> usize {
        let damaged: Vec<_> = self
            .built
            .iter()
            .filter(|(_, built)| digest(words(built.ring)) != built.digest)
            .map(|(tier, built)| (*tier, built.ring))
            .collect();
        for (tier, ring) in &damaged {
            self.built.remove(tier);
            self.release(*ring);
        }
        damaged.len()
    }
}

/// A ring as packets use it.
pub(super) fn deal(members: &[Member]) -> Vec<RingBlock> {
    let ring = ring::build(members);
    let mut blocks = vec![RingBlock::default(); ring::blocks(ring.members().len())];
    ring.write_blocks(&mut blocks);
    blocks
}

/// A number that stands for the words of a ring.
fn digest(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0, |digest, word| mix(digest ^ word))
}
