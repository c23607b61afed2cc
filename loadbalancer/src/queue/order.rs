//! First come, first served.
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How flows wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub weights: [u32; 5],
    pub target: Duration,
    pub interval: Duration,
    pub max_entries: usize,
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
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Which {
    All,
    Verified,
}
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Full {
    Entries,
    Source,
}
#[derive(Clone, Debug)]
pub struct Arrival<T> {
    pub key: u64,
    pub source: u128,
    pub ring: u8,
    pub class: u16,
    pub arrived: Duration,
    pub deadline: Duration,
    pub verified: bool,
    pub value: T,
}
pub type Entry<T> = Arrival<T>;
pub enum Pushed<T> {
    New { evicted: Option<Entry<T>> },
    Known,
    Refused { arrival: Arrival<T>, why: Full },
}
#[derive(Debug)]
pub struct Queue<T> {
    s: Settings,
    m: HashMap<u64, Entry<T>>,
    o: BTreeMap<(Duration, u64), u64>,
}
impl<T> Queue<T> {
    pub fn new(s: Settings, _now: Duration) -> Self {
        Self { s, m: HashMap::new(), o: BTreeMap::new() }
    }
    pub fn set_settings(&mut self, s: &Settings) {
        self.s = s.clone();
    }
    pub fn push(&mut self, a: Arrival<T>, _now: Duration) -> Pushed<T> {
        if let Some(e) = self.m.get_mut(&a.key) {
            e.verified |= a.verified;
            return Pushed::Known;
        }
        if self.m.len() >= self.s.max_entries {
            return Pushed::Refused { arrival: a, why: Full::Entries };
        }
        self.o.insert((a.deadline, a.key), a.key);
        self.m.insert(a.key, a);
        Pushed::New { evicted: None }
    }
    pub fn pop(&mut self, _now: Duration, w: Which) -> Option<Entry<T>> {
        let k = *self.o.values().find(|k| w == Which::All || self.m[k].verified)?;
        self.remove(k)
    }
    pub fn remove(&mut self, k: u64) -> Option<Entry<T>> {
        let e = self.m.remove(&k)?;
        self.o.remove(&(e.deadline, k));
        Some(e)
    }
    pub fn contains(&self, k: u64) -> bool {
        self.m.contains_key(&k)
    }
    pub fn verify(&mut self, k: u64) -> bool {
        self.m.get_mut(&k).map(|e| e.verified = true).is_some()
    }
    pub fn expire(&mut self, now: Duration) -> Vec<Entry<T>> {
        let v: Vec<u64> = self.o.range(..=(now, u64::MAX)).map(|x| *x.1).collect();
        v.into_iter().filter_map(|k| self.remove(k)).collect()
    }
    pub fn next_deadline(&self) -> Option<Duration> {
        self.o.keys().next().map(|k| k.0)
    }
    pub fn len(&self) -> usize {
        self.m.len()
    }
    pub fn is_empty(&self) -> bool {
        self.m.is_empty()
    }
    pub fn unverified(&self) -> usize {
        self.m.values().filter(|e| !e.verified).count()
    }
    pub fn waiting_of_class(&self, c: u16) -> usize {
        self.m.values().filter(|e| e.class == c).count()
    }
    pub fn oldest(&self, c: u16) -> Option<Duration> {
        self.m.values().filter(|e| e.class == c).map(|e| e.arrived).min()
    }
    pub fn is_overloaded(&self, _r: u8) -> bool {
        false
    }
    pub fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.m.values()
    }
    pub fn drain(&mut self) -> Vec<Entry<T>> {
        self.o.clear();
        self.m.drain().map(|x| x.1).collect()
    }
}
