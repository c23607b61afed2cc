//! Rings: which server a flow's hash selects, for every slot, from the servers' weights alone.
//!
//! [`build`] is a pure function of the set of members: the same on every gateway, whatever the order of the members and
//! whatever the ring was before. It keeps three promises that pull against each other:
//!
//! - **Balance.** A member's slots differ from its fair share, `SLOTS * weight / sum of weights`, by less than one. (A
//!   member too light for a slot gets one nevertheless; the others share the rest.)
//! - **Little moves when weights change.** See below.
//! - **Speed.** A ring of 1,000 members takes some 20 ms on one core, since rings follow the measured quality of servers.
//!
//! # How
//!
//! 1. *Shares* (`share`): how many slots each member gets. A divisor method of apportionment, so when one member's weight
//!    falls no other member loses a slot.
//! 2. *Dealing* (`deal`): which ones. Every member walks through all slots in its own order, as in Maglev, at times that
//!    are spread like those of an exponential clock whose rate is its weight. The first to come to a free slot takes it,
//!    unless it has its share already. Without that last condition this is weighted rendezvous hashing, which moves
//!    nothing without need but is off by 7 % of a share of 100 slots; the condition makes it exact.
//! 3. *Two rounds.* First the ring of the [nominal](Member::nominal) weights is dealt. Then members whose weight now asks
//!    for less give back the slots they took last, and only these are dealt again.
//!
//! # Disruption
//!
//! Slots that differ between the rings before and after a change, divided by the least that any builder must move: the
//! sum of what the fair shares of the members that gain rise by. Equal weights, means over four sets and three members;
//! unequal ones (1 to 100) come within 0.4 of these. `figures_of_disruption_and_balance` in the tests prints a table.
//!
//! | change | from | 30 members | 100 | 300 | 655 |
//! |---|---|---|---|---|---|
//! | any: one or all weights, a member lost or back | nominal weights | 1.0 | 1.0 | 1.0 | 1.0 |
//! | a member lost | all weights 20 % off nominal | 1.4 | 1.6 | 2.2 | 3.2 |
//! | one weight -10 % | all weights 20 % off nominal | 1.8 | 2.3 | 4.0 | 5.2 |
//! | all weights by up to 20 % | all weights 20 % off nominal | 1.3 | 1.3 | 1.3 | 1.3 |
//! | a member added or removed | nominal weights changed too | 1.1 | 1.3 | 2.1 | 3.5 |
//! | one nominal weight -10 % | nominal weights changed too | 1.3 | 2.2 | 4.6 | 6.0 |
//! | plain Maglev: a member removed | | 1.1 | 1.6 | 3.6 | 6.1 |
//! | plain Maglev: one weight -10 % | | 1.5 | 4.2 | 7.7 | 9.2 |
//!
//! Plain Maglev moves so much because a slot that comes free is taken by a member that then leaves another free, and so on.
//! A full member makes the same chain here, though a shorter one. It is the price of exact shares without history: random
//! dealing gives a member with 100 slots 7 too many or too few, each slot that lands on it later has to be made up for by
//! another, and of a pure function all sets of weights are equals. The nominal weights break that tie. Ideas that did not
//! help by more than a tenth: using a tolerance of 1 % in the shares, minimum-cost assignment to shares, with and without
//! the tolerance, and correcting a rendezvous ring by moving single slots. More slots do help: what counts is the number
//! of slots per member.
//!
//! # Sources
//!
//! Maglev: Eisenbud et al., NSDI 2016. Rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Transactions on Networking
//! 1998. Consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, SODA 2018. Assignment without memory
//! and what it costs: Berger, Kuszmaul, Polak, Tidor and Wein, "Memoryless Worker-Task Assignment with Polylogarithmic
//! Switching Cost", ICALP 2022. Divisor methods: Balinski and Young, "Fair Representation", 1982.

use loadbalancer_common::ring::{BLOCK_SLOTS, RingBlock, SLOT_BLOCKS, SLOTS};

pub mod member;
mod share;
mod deal;

#[cfg(test)]
mod figures;
#[cfg(test)]
mod tests;

use deal::deal;
use member::Member;
use share::shares;

/// Backend number of every slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    slots: Vec<u16>,
    members: Vec<u16>,
}

/// The ring of a set of members. Without weights above zero it is empty: all slots are zero.
///
/// # Panics
/// With more than 65,535 members (backend numbers are 16 bits).
pub fn build(members: &[Member]) -> Ring {
    assert!(members.len() <= usize::from(u16::MAX), "{} members in a ring, at most 65,535 fit", members.len());
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| (member.id, member.backend));

    let mut slots = vec![0; SLOTS as usize];
    let mut held = shares(&members, |member| member.nominal);
    let dealt = deal(&mut slots, &members, |member| member.nominal, &held);

    let wanted = shares(&members, |member| member.weight);
    for taken in dealt.iter().rev() {
        let owner = usize::from(taken.member);
        if held[owner] > wanted[owner] {
            held[owner] -= 1;
            slots[taken.slot as usize] = 0;
        }
    }
    let missing: Vec<u32> = wanted.iter().zip(&held).map(|(wanted, held)| wanted - held).collect();
    deal(&mut slots, &members, |member| member.weight, &missing);

    let members = members.iter().filter(|member| member.weight > 0).map(|member| member.backend).collect();
    Ring { slots, members }
}

/// Blocks that a ring of so many members takes: its slots, then the list of its members.
pub const fn blocks(members: usize) -> usize {
    SLOT_BLOCKS as usize + members.div_ceil(BLOCK_SLOTS as usize)
}

impl Ring {
    /// Backend numbers by slot; all zero in an empty ring.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// Backend numbers of the members that have slots, in the order of their ids.
    pub fn members(&self) -> &[u16] {
        &self.members
    }

    /// Lays the ring out as [`loadbalancer_common::ring`] describes. Slots and members end on whole blocks, filled up
    /// with zeros.
    ///
    /// # Panics
    /// If `out` is not as long as [`blocks`] says for [`Ring::members`].
    pub fn write_blocks(&self, out: &mut [RingBlock]) {
        let needed = blocks(self.members.len());
        assert_eq!(out.len(), needed, "a ring of {} members was given another size of room", self.members.len());
        let size = BLOCK_SLOTS as usize;
        for (block, part) in out.iter_mut().zip(self.slots.chunks(size).chain(self.members.chunks(size))) {
            *block = RingBlock::default();
            block.0[..part.len()].copy_from_slice(part);
        }
    }
}

/// Slots whose backend differs between two rings.
pub fn disruption(before: &Ring, after: &Ring) -> usize {
    before.slots.iter().zip(&after.slots).filter(|(before, after)| before != after).count()
}
