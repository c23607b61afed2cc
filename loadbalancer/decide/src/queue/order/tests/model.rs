//! The same rules in a list that is searched from end to end: slow, and easy to see through.

use proptest::prelude::*;

use super::*;

/// Virtual time of a release at weight 1; weights here are among its divisors.
const UNIT: u64 = 16 * 9 * 5 * 7;

#[derive(Clone, Debug, PartialEq)]
struct Item {
    key: u64,
    source: u128,
    ring: usize,
    class: u16,
    arrived: Duration,
    deadline: Duration,
    verified: bool,
    value: u64,
}

#[derive(Clone, Copy, Default)]
struct Lane {
    tag: u64,
    above_since: Option<Duration>,
    overloaded: bool,
}

struct Model {
    settings: Settings,
    items: Vec<Item>,
    lanes: [Lane; RINGS],
    virtual_time: u64,
    now: Duration,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    New(Option<Item>),
    Known,
    Refused(Full),
}

fn item(entry: Entry<u64>) -> Item {
    let Entry { key, source, ring, class, arrived, deadline, verified, value, .. } = entry;
    Item { key, source, ring: usize::from(ring), class, arrived, deadline, verified, value }
}

fn seen(entry: Entry<&u64>) -> Item {
    let Entry { key, source, ring, class, arrived, deadline, verified, value, .. } = entry;
    Item { key, source, ring: usize::from(ring), class, arrived, deadline, verified, value: *value }
}

impl Model {
    fn new(settings: &Settings) -> Self {
        let settings = settings.clone();
        Self { settings, items: Vec::new(), lanes: Default::default(), virtual_time: 0, now: Duration::ZERO }
    }

    fn in_ring(&self, ring: usize) -> Vec<&Item> {
        self.items.iter().filter(|item| item.ring == ring).collect()
    }

    fn take(&mut self, key: u64) -> Option<Item> {
        let index = self.items.iter().position(|item| item.key == key)?;
        Some(self.items.remove(index))
    }

    fn look(&mut self) {
        for ring in 0..RINGS {
            let oldest = self.in_ring(ring).iter().map(|item| item.arrived).min();
            let lane = &mut self.lanes[ring];
            match oldest {
                Some(oldest) if self.now > oldest + self.settings.target => {
                    let begin = oldest + self.settings.target;
                    let since = lane.above_since.unwrap_or(begin).min(begin);
                    lane.above_since = Some(since);
                    lane.overloaded = self.now >= since + self.settings.interval;
                }
                _ => (lane.above_since, lane.overloaded) = (None, false),
            }
        }
    }

    fn begin(&mut self, ring: usize) {
        if self.in_ring(ring).is_empty() {
            self.lanes[ring].tag = self.lanes[ring].tag.max(self.virtual_time);
        }
    }

    fn push(&mut self, new: Item, now: Duration) -> Outcome {
        self.now = now;
        self.look();
        if let Some(item) = self.items.iter_mut().find(|item| item.key == new.key) {
            item.verified |= new.verified;
            return Outcome::Known;
        }
        if self.items.iter().filter(|item| item.source == new.source).count() >= self.settings.max_per_source {
            return Outcome::Refused(Full::Source);
        }
        let mut goes = None;
        if self.items.len() >= self.settings.max_entries {
            // As shares of a common multiple of all weights.
            let load = |ring: usize| {
                let count = self.in_ring(ring).len() + usize::from(ring == new.ring);
                count as u64 * (UNIT / u64::from(self.settings.weights[ring]))
            };
            let most = (0..RINGS).map(load).max().expect("there are rings");
            let fullest = if load(new.ring) == most {
                new.ring
            } else {
                (0..RINGS).rfind(|ring| load(*ring) == most).expect("there is one")
            };
            let mut choice: Vec<&Item> = self.in_ring(fullest);
            choice.sort_by_key(|item| (item.arrived, item.key));
            if !self.lanes[fullest].overloaded {
                choice.reverse();
            }
            let forged = choice.iter().find(|item| !item.verified);
            let victim = if fullest != new.ring {
                forged.or(choice.first())
            } else if new.verified {
                forged
            } else {
                None
            };
            match victim {
                Some(victim) => goes = Some(victim.key),
                None => return Outcome::Refused(Full::Entries),
            }
        }
        self.begin(new.ring);
        let evicted = goes.and_then(|key| self.take(key));
        self.items.push(new);
        self.look();
        Outcome::New(evicted)
    }

    /// The key of the next one.
    fn next(&self, which: Which) -> Option<u64> {
        let may = |item: &&&Item| item.verified || which == Which::All;
        let lane = |ring: usize| self.in_ring(ring).iter().filter(may).copied().cloned().collect::<Vec<Item>>();
        let ring =
            (0..RINGS).filter(|ring| !lane(*ring).is_empty()).min_by_key(|ring| (self.lanes[*ring].tag, *ring))?;
        let mut items = lane(ring);
        if self.lanes[ring].overloaded {
            items.sort_by_key(|item| (item.arrived, item.key));
            items.reverse();
        } else {
            items.sort_by_key(|item| (item.deadline, item.arrived, item.key));
        }
        items.first().map(|item| item.key)
    }

    /// The item, and what it has cost.
    fn pop(&mut self, now: Duration, which: Which) -> Option<(Item, u64)> {
        self.now = now;
        self.look();
        let key = self.next(which)?;
        let ring = self.items.iter().find(|item| item.key == key)?.ring;
        let cost = UNIT / u64::from(self.settings.weights[ring]);
        self.virtual_time = self.virtual_time.max(self.lanes[ring].tag);
        self.lanes[ring].tag += cost;
        for ring in 0..RINGS {
            if !self.items.iter().any(|item| item.ring == ring && (item.verified || which == Which::All)) {
                self.lanes[ring].tag = self.lanes[ring].tag.max(self.virtual_time);
            }
        }
        let item = self.take(key)?;
        self.look();
        Some((item, cost))
    }

    fn give_back(&mut self, mut back: Item, cost: u64) -> Option<Item> {
        let later = self.remove(back.key);
        back.verified |= later.as_ref().is_some_and(|later| later.verified);
        self.begin(back.ring);
        let lane = &mut self.lanes[back.ring];
        lane.tag = lane.tag.saturating_sub(cost);
        self.items.push(back);
        self.look();
        later
    }

    fn remove(&mut self, key: u64) -> Option<Item> {
        let item = self.take(key);
        self.look();
        item
    }

    fn expire(&mut self, now: Duration) -> Vec<Item> {
        self.now = now;
        self.look();
        let (mut expired, rest) =
            std::mem::take(&mut self.items).into_iter().partition::<Vec<_>, _>(|item| item.deadline <= now);
        expired.sort_by_key(|item| (item.deadline, item.arrived, item.key));
        self.items = rest;
        self.look();
        expired
    }

    fn set_settings(&mut self, settings: &Settings) {
        if settings.target != self.settings.target {
            self.lanes.iter_mut().for_each(|lane| lane.above_since = None);
        }
        self.settings = settings.clone();
        self.look();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push {
        key: u64,
        source: u128,
        ring: u8,
        class: u16,
        age: u64,
        life: u64,
        verified: bool,
    },
    Pop(Which),
    GiveBack(prop::sample::Index),
    Release(prop::sample::Index),
    Remove(u64),
    Verify(u64),
    Expire,
    Settings(Settings),
    /// By how many classes are moved on.
    Classes(u16),
    Drain,
}

fn settings() -> impl Strategy<Value = Settings> {
    let weight = prop::sample::select(vec![1u32, 2, 3, 4, 5, 7, 8, 16]);
    let weights = prop_oneof![Just([16, 8, 4, 2, 1]), prop::array::uniform5(weight)];
    let times = (prop::sample::select(vec![0u64, 5, 20]), prop::sample::select(vec![0u64, 10, 40]));
    let bounds = (prop_oneof![0usize..9, Just(1_000)], prop_oneof![1 => 0usize..5, 3 => Just(1_000)]);
    (weights, times, bounds).prop_map(|(weights, (target, interval), (max_entries, max_per_source))| Settings {
        weights,
        target: ms(target),
        interval: ms(interval),
        max_entries,
        max_per_source,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..24;
    let push = (key.clone(), 0u128..4, 0u8..6, 0u16..4, (0u64..8, 0u64..60), any::<bool>()).prop_map(
        |(key, source, ring, class, (age, life), verified)| Op::Push {
            key,
            source,
            ring,
            class,
            // Most have arrived just now.
            age: age.saturating_sub(5),
            life,
            verified,
        },
    );
    let which = prop_oneof![Just(Which::All), Just(Which::Verified)];
    prop_oneof![
        40 => push,
        16 => which.prop_map(Op::Pop),
        8 => any::<prop::sample::Index>().prop_map(Op::GiveBack),
        4 => any::<prop::sample::Index>().prop_map(Op::Release),
        3 => key.clone().prop_map(Op::Remove),
        6 => key.prop_map(Op::Verify),
        4 => Just(Op::Expire),
        2 => settings().prop_map(Op::Settings),
        1 => (0u16..5).prop_map(Op::Classes),
        1 => Just(Op::Drain),
    ]
}

struct Both {
    queue: Queue<u64>,
    model: Model,
    /// Popped, neither given back nor released.
    out: Vec<(Entry<u64>, Item, u64)>,
    now: Duration,
    value: u64,
}

impl Both {
    fn new(settings: &Settings) -> Self {
        let (queue, model) = (Queue::new(settings), Model::new(settings));
        Self { queue, model, out: Vec::new(), now: Duration::ZERO, value: 0 }
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        let Self { queue, model, out, now, value } = self;
        let now = *now;
        match op {
            Op::Push { key, source, ring, class, age, life, verified } => {
                *value += 1;
                let (arrived, deadline, value) = (now.saturating_sub(ms(age)), now + ms(life), *value);
                let arrival = Arrival { key, source, ring, class, arrived, deadline, verified, value };
                let ring = usize::from(ring.min(4));
                let new = Item { key, source, ring, class, arrived, deadline, verified, value };
                let found = match queue.push(arrival.clone(), now) {
                    Pushed::New { evicted } => Outcome::New(evicted.map(item)),
                    Pushed::Known => Outcome::Known,
                    Pushed::Refused { arrival: back, why } => {
                        prop_assert_eq!(back, arrival);
                        Outcome::Refused(why)
                    }
                };
                prop_assert_eq!(found, model.push(new, now));
            }
            Op::Pop(which) => {
                let peeked = queue.peek(now, which).map(seen);
                let (popped, wanted) = (queue.pop(now, which), model.pop(now, which));
                prop_assert_eq!(popped.clone().map(item), wanted.clone().map(|(item, _)| item));
                prop_assert_eq!(peeked, popped.clone().map(item));
                out.extend(popped.zip(wanted).map(|(entry, (item, cost))| (entry, item, cost)));
            }
            Op::GiveBack(index) if !out.is_empty() => {
                let (entry, back, cost) = out.swap_remove(index.index(out.len()));
                prop_assert_eq!(queue.give_back(entry).map(item), model.give_back(back, cost));
            }
            Op::Release(index) if !out.is_empty() => drop(out.swap_remove(index.index(out.len()))),
            Op::GiveBack(_) | Op::Release(_) => {}
            Op::Remove(key) => prop_assert_eq!(queue.remove(key).map(item), model.remove(key)),
            Op::Verify(key) => {
                let one = model.items.iter_mut().find(|item| item.key == key && !item.verified);
                prop_assert_eq!(queue.verify(key), one.is_some());
                one.into_iter().for_each(|item| item.verified = true);
            }
            Op::Expire => {
                let found: Vec<Item> = queue.expire(now).into_iter().map(item).collect();
                prop_assert_eq!(found, model.expire(now));
            }
            Op::Settings(settings) => {
                queue.set_settings(&settings);
                model.set_settings(&settings);
            }
            Op::Classes(by) => {
                let moved = |class: u16| (class + by) % 5;
                queue.set_classes(moved);
                model.items.iter_mut().for_each(|item| item.class = moved(item.class));
            }
            Op::Drain => {
                let mut found: Vec<Item> = queue.drain().into_iter().map(item).collect();
                found.sort_by_key(|item| item.key);
                let mut wanted = std::mem::take(&mut model.items);
                wanted.sort_by_key(|item| item.key);
                model.look();
                prop_assert_eq!(found, wanted);
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let Self { queue, model, .. } = self;
        let items = &model.items;
        prop_assert_eq!(queue.len(), items.len());
        prop_assert_eq!(queue.is_empty(), items.is_empty());
        prop_assert_eq!(queue.unverified(), items.iter().filter(|item| !item.verified).count());
        prop_assert_eq!(queue.next_deadline(), items.iter().map(|item| item.deadline).min());
        for ring in 0..RINGS {
            prop_assert_eq!(in_ring(queue, ring as u8), model.in_ring(ring).len());
            prop_assert_eq!(queue.is_overloaded(ring as u8), model.lanes[ring].overloaded, "ring {}", ring);
        }
        for class in 0..5 {
            let of_class = || items.iter().filter(|item| item.class == class);
            prop_assert_eq!(queue.waiting_of_class(class), of_class().count());
            prop_assert_eq!(queue.oldest_of_class(class), of_class().map(|item| item.arrived).min());
        }
        let mut all: Vec<Item> = queue.iter().map(seen).collect();
        all.sort_by_key(|item| item.key);
        let mut wanted = items.clone();
        wanted.sort_by_key(|item| item.key);
        prop_assert_eq!(&all, &wanted);
        for key in 0..25 {
            let wanted = wanted.iter().find(|item| item.key == key);
            prop_assert_eq!(queue.get(key).map(seen), wanted.cloned());
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn the_queue_does_what_a_plain_list_does(
        first in settings(),
        ops in prop::collection::vec((0u64..6, op()), 0..200),
    ) {
        let mut both = Both::new(&first);
        for (step, op) in ops {
            // Half of them at the same time as the one before.
            both.now += ms(step.saturating_sub(2));
            both.apply(op)?;
            both.compare()?;
        }
        // What is left comes out in the same order.
        while !both.model.items.is_empty() {
            both.apply(Op::Pop(Which::All))?;
            both.compare()?;
        }
    }
}
