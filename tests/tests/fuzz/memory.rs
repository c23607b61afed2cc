//! The entries of flows that must not be touched, as they stand in the maps.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use bytemuck::Pod;
use loadbalancer::dataplane::maps::Map;
use loadbalancer_common::clock::TIME_MASK;
use loadbalancer_common::conntrack::{Translation, Tuple};
use loadbalancer_common::net::{Addr4, Addr6};
use loadbalancer_tests::frames::world::World;

/// All flows that there are at one moment, without their times.
pub struct Memory {
    /// Index and word of affinity entries.
    affinity: Vec<(usize, u64)>,
    tracked4: Vec<(Tuple<Addr4>, Translation<Addr4>)>,
    tracked6: Vec<(Tuple<Addr6>, Translation<Addr6>)>,
}

impl Memory {
    pub fn of(world: &World) -> Result<Self> {
        let maps = &world.kernel().maps;
        let words = maps.affinity.words().iter().map(|word| word.load(Ordering::Relaxed)).enumerate();
        let affinity = words.filter(|(_, word)| *word != 0).map(|(index, word)| (index, timeless(word))).collect();
        Ok(Self { affinity, tracked4: tracked(&maps.conntrack4)?, tracked6: tracked(&maps.conntrack6)? })
    }

    /// How many flows, by table.
    pub fn sizes(&self) -> [usize; 3] {
        [self.affinity.len(), self.tracked4.len(), self.tracked6.len()]
    }

    /// The error tells which entry has changed.
    pub fn is_unchanged(&self, world: &World) -> Result<()> {
        let maps = &world.kernel().maps;
        for (index, word) in &self.affinity {
            let now = timeless(maps.affinity.words()[*index].load(Ordering::Relaxed));
            ensure!(now == *word, "affinity entry {index} was {word:016x} and is {now:016x}");
        }
        unchanged(&maps.conntrack4, &self.tracked4)?;
        unchanged(&maps.conntrack6, &self.tracked6)
    }
}

fn timeless(word: u64) -> u64 {
    word & !u64::from(TIME_MASK)
}

fn tracked<A: Copy>(map: &Map<Tuple<A>, Translation<A>>) -> Result<Vec<(Tuple<A>, Translation<A>)>>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    let mut entries = Vec::new();
    map.for_each(|key, entry| entries.push((*key, Translation { time: 0, ..*entry })))?;
    Ok(entries)
}

fn unchanged<A: Copy + PartialEq + std::fmt::Debug>(
    map: &Map<Tuple<A>, Translation<A>>,
    entries: &[(Tuple<A>, Translation<A>)],
) -> Result<()>
where
    Tuple<A>: Pod,
    Translation<A>: Pod,
{
    for (key, entry) in entries {
        let now = map.get(key)?.map(|now| Translation { time: 0, ..now });
        ensure!(now == Some(*entry), "the translation of {key:?} was {entry:?} and is {now:?}");
    }
    Ok(())
}
