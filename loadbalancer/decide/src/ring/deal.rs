//! Which slots each member gets.
//!
//! All members walk at once, each in its own order through all slots, at times that depend on its id and weight alone. A
//! free slot goes to whoever comes first, until that member has its number.
//!
//! The times are the mean order statistics of [`SLOTS`] exponential variables whose rate is the weight. So each member
//! wins slots in proportion to its weight, also when weights differ much (a property of exponential clocks), and with
//! half the variance of independent draws.

use loadbalancer_common::hash::{mix, scale, second};
use loadbalancer_common::ring::SLOTS;
use std::sync::LazyLock;

use super::member::Member;

/// Keeps walks apart from other uses of the same ids.
const WALK: u64 = 0x7761_6c6b_7761_6c6b;

/// Visits that are brought into order at a time: small enough for the first-level cache.
const BATCH: f64 = 2048.0;

/// Bits of a visit's key that tell the member; the others are the time's.
const MEMBER_MASK: u64 = 0xffff;

/// Mean time of the n-th of [`SLOTS`] exponential clocks of rate one: `1/S + 1/(S-1) + ...`, n terms. Sums, not
/// logarithms: those may differ in the last bit between C libraries, and gateways must agree.
static CLOCK: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let steps = (1..=SLOTS).rev().scan(0.0, |time, left| {
        *time += 1.0 / f64::from(left);
        Some(*time)
    });
    std::iter::once(0.0).chain(steps).collect()
});

/// A slot that a member took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Index into the members.
    pub member: u16,
    pub slot: u32,
}

struct Walk {
    slot: u32,
    step: u32,
    /// Visits whose time was computed so far.
    timed: u32,
    room: u32,
    weight: f64,
    /// When, in the gap between two clock times, this member's visits are.
    phase: f64,
}

/// Fills free slots (zero) so that each member takes `room` of them, and tells who took which, in the order of taking.
///
/// There must be as many free slots as there is room, and a weight wherever there is room.
pub fn deal(slots: &mut [u16], members: &[Member], weight: impl Fn(&Member) -> u32, room: &[u32]) -> Vec<Taken> {
    let mut left: u32 = room.iter().sum();
    let mut taken = Vec::with_capacity(left as usize);
    let mut walks: Vec<Walk> =
        members.iter().zip(room).map(|(member, room)| Walk::new(member.id, weight(member), *room)).collect();
    let mut open: Vec<usize> = (0..walks.len()).collect();
    let mut visits = Vec::new();
    let mut until = 0.0;

    while left > 0 {
        // A walk that came by every slot once left none of them free.
        open.retain(|member| walks[*member].room > 0 && walks[*member].timed < SLOTS);
        assert!(!open.is_empty(), "{left} slots of a ring are left and no member wants them");
        until += BATCH / open.iter().map(|member| walks[*member].rate()).sum::<f64>();
        let end = f64::to_bits(until) & !MEMBER_MASK;
        visits.clear();
        for member in &open {
            let walk = &mut walks[*member];
            while walk.timed < SLOTS {
                // Bits of positive floating-point numbers are in the order of the numbers.
                let time = walk.time().to_bits() & !MEMBER_MASK;
                if time >= end {
                    break;
                }
                visits.push(time | *member as u64);
                walk.timed += 1;
            }
        }
        visits.sort_unstable();
        for visit in &visits {
            let member = (visit & MEMBER_MASK) as u16;
            let walk = &mut walks[usize::from(member)];
            if walk.room == 0 {
                continue;
            }
            let slot = walk.advance();
            if slots[slot as usize] == 0 {
                slots[slot as usize] = members[usize::from(member)].backend;
                walk.room -= 1;
                left -= 1;
                taken.push(Taken { member, slot });
            }
        }
    }
    taken
}

/// A number in `0.0..1.0` from a hash.
pub fn fraction(hash: u64) -> f64 {
    // 53 bits are what an f64 holds exactly.
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

impl Walk {
    fn new(id: u64, weight: u32, room: u32) -> Self {
        let start = mix(id ^ WALK);
        let step = second(start);
        // The number of slots is prime, so every step leads through all of them.
        Self {
            slot: scale(start, SLOTS),
            step: 1 + scale(step, SLOTS - 1),
            timed: 0,
            room,
            weight: f64::from(weight),
            phase: fraction(second(step)),
        }
    }

    /// Time of the next visit.
    fn time(&self) -> f64 {
        let visit = self.timed as usize;
        let (from, to) = (CLOCK[visit], CLOCK[visit + 1]);
        (from + self.phase * (to - from)) / self.weight
    }

    /// Visits per unit of time, from the next one on.
    fn rate(&self) -> f64 {
        self.weight * f64::from(SLOTS - self.timed)
    }

    fn advance(&mut self) -> u32 {
        let slot = self.slot;
        self.slot += self.step;
        if self.slot >= SLOTS {
            self.slot -= SLOTS;
        }
        slot
    }
}
