//! The reconciler on tables that are not the kernel's.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use loadbalancer_common::backend::Backend;
use loadbalancer_common::path::Path;
use loadbalancer_common::ring::{RingBlock, RingRef};
use loadbalancer_common::service::{Service, Vip, mode};

use super::change::Change;
use super::error::ReconcileError;
use super::found::Found;
use super::rings::Rings;
use super::state::State;
use super::tables::Tables;
use crate::dataplane::error::MapError;
use crate::dataplane::ids::{BackendNumber, PathNumber, RingNumber, ServiceNumber};
use crate::dataplane::sizes::Sizes;
use decide::plan::desired::{Desired, DesiredBackend, DesiredProbe, DesiredService};
use decide::ring::member::Member;
use model::address::{Listen, Protocol};
use model::ids::{BackendId, ServerId, ServiceId};

const WEB: u64 = 100;
const MAIL: u64 = 200;
const GAME: u64 = 300;

/// Few of everything, so that whatever is not given back is missing soon.
const SIZES: Sizes = Sizes { services: 3, backends: 8, rings: 5, flows: 64, nat_flows: 64, vips: 64 };

/// Tables in memory. After each write, all that a packet could find must be there.
#[derive(Clone, Debug)]
struct Memory {
    found: Found,
    paths: HashMap<PathNumber, Path>,
    /// The same as they were written, whatever became of them.
    written_paths: HashMap<PathNumber, Path>,
    rings: Vec<Vec<u64>>,
    /// Servers in the rings.
    members: HashMap<RingNumber, BTreeSet<u16>>,
    active: HashMap<BackendNumber, u32>,
    /// Numbers of servers of which nobody remembers flows.
    unused: HashSet<BackendNumber>,
    writes: usize,
    /// The write that fails.
    fails_at: Cell<Option<usize>>,
}

impl Memory {
    fn new() -> Self {
        Self {
            found: Found {
                services: vec![Service::default(); SIZES.services as usize + 1],
                backends: vec![Backend::default(); SIZES.backends as usize + 1],
                ..Found::default()
            },
            paths: HashMap::new(),
            written_paths: HashMap::new(),
            rings: vec![vec![0; Rings::words(SIZES.ring_blocks())]; SIZES.rings as usize],
            members: HashMap::new(),
            active: HashMap::new(),
            unused: (1..=SIZES.backends as u16).map(BackendNumber).collect(),
            writes: 0,
            fails_at: Cell::new(None),
        }
    }

    /// Rings that services refer to.
    fn referred(&self) -> Vec<(ServiceNumber, RingNumber)> {
        let rings = |(number, service): (usize, &Service)| {
            let rings = service.tiers.map(RingRef).into_iter().filter(|ring| ring.members() != 0);
            let number = ServiceNumber(number as u16);
            rings.map(move |ring| (number, RingNumber(ring.block() / SIZES.ring_blocks()))).collect::<Vec<_>>()
        };
        self.found.services.iter().enumerate().flat_map(rings).collect()
    }

    fn expect_service(&self, number: u16, what: &str) {
        assert_ne!(self.found.service(ServiceNumber(number)).mode, 0, "{what} leads to service {number}");
    }

    fn expect_backend(&self, number: u16, service: u16, what: &str) {
        let backend = self.found.backend(BackendNumber(number));
        assert!(backend.has(Backend::PRESENT) && backend.service == service, "{what} leads to server {number}");
    }

    /// What a packet could find leads to what is there.
    fn check(&self) {
        for (target, vip) in self.found.vips.iter().filter(|(_, vip)| vip.kind == Vip::SERVICE) {
            self.expect_service(vip.service, &format!("VIP {target:?}"));
        }
        for (target, reply) in &self.found.replies {
            self.expect_service(reply.service, &format!("reply {target:?}"));
            self.expect_backend(reply.backend, reply.service, &format!("reply {target:?}"));
        }
        for (port, probe) in &self.found.probes {
            self.expect_backend(probe.backend, probe.service, &format!("probe {port}"));
        }
        for (service, ring) in self.referred() {
            let members = &self.members[&ring];
            assert!(!members.is_empty(), "{service:?} has {ring:?}, which is empty");
            members.iter().for_each(|number| self.expect_backend(*number, service.0, &format!("{ring:?}")));
        }
        for (number, backend) in self.found.present() {
            for path in backend.paths.into_iter().filter(|path| *path != 0).map(PathNumber) {
                assert!(self.paths.contains_key(&path), "{number:?} has {path:?}, which is not there");
            }
        }
        let rings = self.referred();
        let different: HashSet<RingNumber> = rings.iter().map(|(_, ring)| *ring).collect();
        assert_eq!(different.len(), rings.len(), "a ring is of two services: {rings:?}");
    }

    /// What must not change while something refers to it does not.
    fn check_change(&self, change: &Change) {
        match change {
            Change::Path(number, path) if self.written_paths.get(number) != Some(path) => {
                let mut users = self.found.present().filter(|(_, backend)| backend.paths.contains(&number.0));
                assert_eq!(users.next(), None, "{number:?} changes");
            }
            Change::Ring(ring, _) => {
                assert!(self.referred().iter().all(|(_, referred)| referred != ring), "{ring:?} changes");
            }
            Change::Backend(number, backend) if backend.has(Backend::PRESENT) => {
                let before = self.found.backend(*number);
                let is_same = (before.service, before.identity) == (backend.service, backend.identity);
                assert!(is_same || self.unused.contains(number), "{number:?} still has flows of another");
            }
            _ => {}
        }
    }
}

impl Tables for Memory {
    fn found(&self) -> Result<Found, MapError> {
        Ok(self.found.clone())
    }

    fn path(&self, path: PathNumber) -> Result<Option<Path>, MapError> {
        Ok(self.paths.get(&path).copied())
    }

    fn ring(&self, ring: RingNumber) -> impl Iterator<Item = u64> {
        self.rings[ring.0 as usize].iter().copied()
    }

    fn active(&self, backend: BackendNumber) -> u32 {
        self.active.get(&backend).copied().unwrap_or(0)
    }

    fn write(&mut self, change: &Change) -> Result<(), MapError> {
        if self.fails_at.get() == Some(self.writes) {
            self.fails_at.set(None);
            return Err(MapError { operation: "write", map: "TEST", source: io::Error::other("as asked for") });
        }
        self.writes += 1;
        self.check_change(change);
        match change {
            Change::Path(number, path) => {
                self.paths.insert(*number, *path);
                self.written_paths.insert(*number, *path);
            }
            Change::Ring(ring, words) => {
                let numbers = words.iter().flat_map(|word| bytemuck::cast::<u64, [u16; 4]>(*word));
                self.members.insert(*ring, numbers.filter(|number| *number != 0).collect());
                self.rings[ring.0 as usize].clone_from(words);
            }
            Change::ForgetFlows(backends) => self.unused.extend(backends),
            Change::Backend(number, backend) if backend.has(Backend::PRESENT) => {
                self.unused.remove(number);
            }
            Change::ResetActive(number) | Change::ResetBackend(number) => {
                self.active.remove(number);
            }
            _ => {}
        }
        self.found.note(change);
        self.check();
        Ok(())
    }
}

fn path(number: u8) -> Path {
    let mut path = Path { ifindex: 2, channel: number % 2, ..bytemuck::Zeroable::zeroed() };
    path.header[0] = number;
    path
}

/// A ring of a slot for each weight, which is built in no time.
fn deal(members: &[Member]) -> Vec<RingBlock> {
    let mut ring = RingBlock::default();
    let slots = members.iter().flat_map(|member| std::iter::repeat_n(member.backend, member.weight as usize));
    ring.0.iter_mut().zip(slots).for_each(|(slot, backend)| *slot = backend);
    vec![ring]
}

/// A server with a weight, over some paths.
fn server(number: u8, weight: u32, paths: &[u8]) -> DesiredBackend {
    DesiredBackend {
        id: BackendId(u64::from(number)),
        addr: IpAddr::from([10, 0, 0, number]),
        port: None,
        source: None,
        flags: Backend::ACCEPTS,
        tier: 0,
        ring: weight,
        help: None,
        load: weight,
        nominal: 1,
        set_weight: 0,
        high_water: u32::MAX,
        paths: paths.iter().map(|number| path(*number)).collect(),
    }
}

fn service(identity: u64, mode: u8, backends: Vec<DesiredBackend>) -> DesiredService {
    let vip = IpAddr::from([192, 0, 2, (identity / 100) as u8]);
    DesiredService {
        id: ServiceId(identity),
        mode,
        flags: 0,
        nat_ports: (1024, 65_535),
        sample_mask: 0,
        listens: vec![Listen { addr: vip, port: Some(80), protocol: Protocol::Tcp }],
        backends,
    }
}

/// With a probe through the VIP to each server.
fn desired(services: Vec<DesiredService>) -> Desired {
    let mut probes = Vec::new();
    for service in &services {
        for backend in &service.backends {
            probes.push(DesiredProbe {
                source: ([10, 1, 0, 1], 5_000 + probes.len() as u16).into(),
                vip: (service.listens[0].addr, 80).into(),
                protocol: Protocol::Tcp,
                server: ServerId { service: service.id, backend: backend.id },
            });
        }
    }
    Desired { seed: 7, services, probes, ..Desired::default() }
}

/// One after the other, and then from the beginning.
fn steps() -> Vec<Desired> {
    let nat = |number, weight| DesiredBackend { source: Some([10, 0, 1, 1].into()), ..server(number, weight, &[1]) };
    let helping = |number| DesiredBackend { tier: 1, help: Some((0, 1)), ..server(number, 1, &[1]) };
    let web = service(WEB, mode::DSR, vec![server(1, 1, &[1]), server(2, 2, &[2])]);
    let mail = service(MAIL, mode::DNAT, vec![server(3, 1, &[3]), server(4, 1, &[3])]);
    let game = service(GAME, mode::NAT, vec![nat(5, 1), nat(6, 3)]);
    vec![
        desired(vec![web.clone(), mail.clone()]),
        // Weights, paths and one more server.
        desired(vec![
            service(WEB, mode::DSR, vec![server(1, 3, &[1, 4]), server(2, 2, &[4]), server(7, 1, &[5])]),
            mail.clone(),
        ]),
        // Another tier, which helps.
        desired(vec![service(WEB, mode::DSR, vec![server(2, 2, &[4]), helping(7)]), mail.clone(), game.clone()]),
        // All are down.
        desired(vec![service(WEB, mode::DSR, vec![server(2, 0, &[4]), server(7, 0, &[])]), mail, game.clone()]),
        // Others in their places.
        desired(vec![game, service(MAIL, mode::DNAT, vec![server(8, 1, &[6])]), web]),
        Desired::default(),
    ]
}

fn apply(state: &mut State, desired: &Desired, tables: &mut Memory) {
    state.apply(desired, tables).unwrap_or_else(|error| panic!("{error}"));
    let writes = tables.writes;
    state.apply(desired, tables).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(tables.writes, writes, "there is nothing left to do");
}

fn read(tables: &Memory) -> State {
    State::read(tables, SIZES, deal).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn after_each_write_all_that_a_packet_finds_is_there_and_nothing_is_lost_over_time() {
    let mut tables = Memory::new();
    let mut state = read(&tables);
    for _ in 0..3 {
        for desired in steps() {
            apply(&mut state, &desired, &mut tables);
            let servers: usize = desired.services.iter().map(|service| service.backends.len()).sum();
            assert_eq!(tables.found.present().count(), servers);
            assert_eq!((state.numbers.backends().count(), tables.found.probes.len()), (servers, servers));
            assert_eq!(state.numbers.services().count(), desired.services.len());
        }
        assert_eq!((tables.found.vips.len(), tables.found.replies.len(), tables.referred().len()), (0, 0, 0));
    }
}

#[test]
fn a_new_controller_goes_on_where_another_stopped() {
    let mut tables = Memory::new();
    let mut state = read(&tables);
    for desired in steps() {
        apply(&mut state, &desired, &mut tables);
        let mut new = read(&tables);
        assert_eq!(new.numbers, state.numbers);
        let writes = tables.writes;
        apply(&mut new, &desired, &mut tables);
        assert_eq!(tables.writes, writes, "it has nothing to write");
        // And with what it has learnt.
        state = new;
    }
}

#[test]
fn whichever_write_fails_the_next_call_goes_on() {
    let mut tables = Memory::new();
    let mut state = read(&tables);
    let steps = steps();
    for (step, desired) in steps.iter().enumerate() {
        let next = &steps[(step + 1) % steps.len()];
        for fails_at in tables.writes.. {
            let (mut state, mut tables) = (state.clone(), tables.clone());
            tables.fails_at.set(Some(fails_at));
            match state.apply(desired, &mut tables) {
                Ok(()) => break,
                Err(ReconcileError::Map(_)) => {}
                Err(full) => panic!("{full}"),
            }
            // The next call may want the same, or something else; a new controller may make it.
            let (mut other_state, mut other_tables) = (state.clone(), tables.clone());
            apply(&mut state, desired, &mut tables);
            apply(&mut other_state, next, &mut other_tables);
            apply(&mut read(&tables), next, &mut tables);
        }
        apply(&mut state, desired, &mut tables);
    }
}

#[test]
fn a_ring_whose_servers_are_all_down_is_given_to_one_service_only() {
    let of = |weight, number| vec![server(number, weight, &[1])];
    let mut tables = Memory::new();
    let mut state = read(&tables);
    // Each round frees a ring, and each is given away again.
    for round in 0..2 * SIZES.rings {
        for weight in [0, 1 + round] {
            let services = vec![
                service(WEB, mode::DSR, of(weight, 1)),
                service(MAIL, mode::DSR, of(1 + round, 2)),
                service(GAME, mode::DSR, of(1, 3)),
            ];
            apply(&mut state, &desired(services), &mut tables);
            let rings = if weight == 0 { 2 } else { 3 };
            assert_eq!(tables.referred().len(), rings);
        }
    }
}

#[test]
fn what_others_change_is_found_and_mended() {
    let wanted = &steps()[0];
    let mut tables = Memory::new();
    let mut state = read(&tables);
    apply(&mut state, wanted, &mut tables);
    assert_eq!(state.compare(&mut tables).expect("compared"), 0);
    let sound = tables.clone();
    type Damage = fn(&mut Memory);
    let damages: [(&str, Damage); 7] = [
        ("settings", |tables| tables.found.settings.seed += 1),
        ("a service", |tables| tables.found.services[1].flags += 1),
        ("a server", |tables| tables.found.backends[1].high_water = 1),
        ("a VIP", |tables| tables.found.vips.retain(|target, _| target.port == 0)),
        ("a reply", |tables| tables.found.replies.clear()),
        ("a path", |tables| tables.paths.values_mut().for_each(|path| path.mtu += 1)),
        ("a ring", |tables| tables.rings.iter_mut().for_each(|words| words[5] += 1)),
    ];
    for (what, damage) in damages {
        damage(&mut tables);
        assert!(state.compare(&mut tables).expect("compared") > 0, "{what}");
        apply(&mut state, wanted, &mut tables);
        assert_eq!(tables.found, Found { services: tables.found.services.clone(), ..sound.found.clone() }, "{what}");
        assert_eq!(tables.paths, sound.paths, "{what}");
        for ((_, ring), (_, before)) in tables.referred().into_iter().zip(sound.referred()) {
            assert!(tables.ring(ring).eq(sound.ring(before)), "{what}");
        }
        assert_eq!(state.compare(&mut tables).expect("compared"), 0, "{what}");
    }
}

#[test]
fn a_server_that_got_a_flow_meanwhile_goes_when_the_flow_has_ended() {
    let (both, one) = (vec![server(1, 1, &[1]), server(2, 1, &[2])], vec![server(1, 1, &[1])]);
    let mut tables = Memory::new();
    let mut state = read(&tables);
    apply(&mut state, &desired(vec![service(WEB, mode::DSR, both)]), &mut tables);
    let gone = ServerId { service: ServiceId(WEB), backend: BackendId(2) };
    let number = state.numbers.backend(gone).expect("it is there");
    tables.active.insert(number, 1);
    let wanted = desired(vec![service(WEB, mode::DSR, one)]);
    apply(&mut state, &wanted, &mut tables);
    assert_eq!(state.numbers.backend(gone), Some(number));
    assert!(tables.found.backend(number).has(Backend::PRESENT));
    tables.active.clear();
    apply(&mut state, &wanted, &mut tables);
    assert_eq!(state.numbers.backend(gone), None);
    assert_eq!(*tables.found.backend(number), Backend::default());
    // With its service it goes at once.
    tables.active.insert(BackendNumber(1), 1);
    apply(&mut state, &Desired::default(), &mut tables);
    assert_eq!(tables.found.present().count(), 0);
}

#[test]
fn what_is_full_is_told_by_the_key_of_its_limit() {
    let many = |count: u8| (1..=count).map(|number| server(number, 1, &[1])).collect::<Vec<_>>();
    let services = (1..=4).map(|number| service(100 * number, mode::DSR, many(1))).collect();
    let tiers: Vec<_> = (0..3).map(|tier| DesiredBackend { tier, ..server(tier, 1, &[1]) }).collect();
    let tiers = vec![service(WEB, mode::DSR, tiers.clone()), service(MAIL, mode::DSR, tiers)];
    let ways = |number: u8| (8 * number..8 * (number + 1)).collect::<Vec<_>>();
    let ways = (1..=8).map(|number| server(number, 1, &ways(number))).collect();
    for (services, what) in [
        (services, "another service: all 3 are in use\nhelp: raise `services`"),
        (vec![service(WEB, mode::DSR, many(9))], "another server: all 8 are in use\nhelp: raise `backends`"),
        (tiers, "another ring: all 5 are in use\nhelp: raise `rings`"),
        (vec![service(WEB, mode::DSR, ways)], "another path: all 48 are in use\nhelp: raise `backends`"),
    ] {
        let mut tables = Memory::new();
        let error = read(&tables).apply(&desired(services), &mut tables).expect_err("it does not fit").to_string();
        assert!(error.contains(what), "{error}");
    }
}
