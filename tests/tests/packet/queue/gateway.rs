//! A gateway whose new flows may wait.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use loadbalancer_common::affinity::Entry;
use loadbalancer_common::net::{AnyAddr, Be16};
use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{Held, LARGE_FRAME, SMALL_FRAME, kind};
use loadbalancer_common::service::Service;
use loadbalancer_tests::frames::frame::{Frame, Transport};
use loadbalancer_tests::frames::world::{INGRESS, Leases, Ran, World};

use super::super::entries::{self, flow_hash};
use super::super::expect::expect;
use super::super::family::Family;
use super::super::flow::same;
use super::super::mode::Mode;
use super::super::world::{packet, world};

/// Active flows of a server at its mark.
pub(super) const MARK: u32 = 5;

/// Nanoseconds of the monotonic clock.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A time that no test lives to see, and one that has passed even for a clock some milliseconds behind.
pub(in crate::packet) fn later() -> u64 {
    now_ns() + 600_000_000_000
}

pub(super) fn past() -> u64 {
    now_ns() - 100_000_000
}

/// A service of two servers.
pub(in crate::packet) struct Gateway {
    pub(in crate::packet) world: World,
    pub(in crate::packet) service: u16,
    pub(in crate::packet) backends: Vec<u16>,
    pub(in crate::packet) family: Family,
    pub(in crate::packet) mode: Mode,
}

impl Gateway {
    pub(in crate::packet) fn new(family: Family, mode: Mode, flags: u8) -> Result<Self> {
        let (world, service, backends) = world(&family, &mode, flags | Service::QUEUE_DATAGRAMS)?;
        Ok(Self { world, service, backends, family, mode })
    }

    /// One with all servers at their marks, whose new flows may wait.
    pub(in crate::packet) fn full(family: Family, mode: Mode, flags: u8) -> Result<Self> {
        let gateway = Self::new(family, mode, flags)?;
        gateway.fill()?;
        gateway.lease(Leases { queue: later(), ..Leases::default() });
        Ok(gateway)
    }

    /// Puts all servers at their marks.
    pub(in crate::packet) fn fill(&self) -> Result<()> {
        for id in &self.backends {
            self.world.change_backend(*id, |b| b.high_water = MARK)?;
            self.world.set_active(*id, MARK.into());
        }
        Ok(())
    }

    pub(in crate::packet) fn lease(&self, leases: Leases) {
        self.world.set_leases(self.service, leases);
    }

    /// As long as some flow waits.
    pub(in crate::packet) fn waiting(&self) {
        self.lease(Leases { queue: later(), waiting: later(), challenge: false });
    }

    pub(in crate::packet) fn packet(&self, number: u8, port: u16, flags: u8) -> Frame {
        packet(&self.family, number, port, flags)
    }

    pub(in crate::packet) fn run(&mut self, frame: &Frame) -> Result<Ran> {
        self.world.run(&frame.bytes())
    }

    pub(in crate::packet) fn expect(&mut self, frame: &Frame, action: &str, outcome: Outcome) -> Result<()> {
        let ran = self.run(frame)?;
        expect(&ran, action, self.service, outcome)
    }

    /// Active flows of both servers.
    pub(in crate::packet) fn active(&self) -> [i64; 2] {
        [self.world.active(self.backends[0]), self.world.active(self.backends[1])]
    }

    pub(in crate::packet) fn flows(&self) -> Result<[u64; 2]> {
        Ok([self.world.flows(self.backends[0])?, self.world.flows(self.backends[1])?])
    }

    pub(in crate::packet) fn packets(&self) -> Result<[u64; 2]> {
        Ok([self.world.packets(self.backends[0])?, self.world.packets(self.backends[1])?])
    }

    /// What the controller must be told of a frame; its time is left out.
    pub(in crate::packet) fn held(&self, frame: &Frame) -> Held {
        let family = Family { client: frame.src.to_string().leak(), ..self.family };
        Held {
            hash: flow_hash(&family, frame.protocol(), frame.sport),
            src: AnyAddr::from(frame.src),
            ifindex: INGRESS,
            sequence: match &frame.transport {
                Transport::Tcp { sequence, .. } => *sequence,
                _ => 0,
            },
            service: self.service,
            length: frame.bytes().len() as u16,
            dport: Be16::new(80),
            kind: kind::FLOW,
            protocol: frame.protocol(),
            tos: frame.tos,
            ipv6: u8::from(frame.is_v6()),
            ..Held::default()
        }
    }

    /// Runs a frame, which must be handed over.
    pub(super) fn expect_held(&mut self, frame: &Frame, change: impl FnOnce(&mut Held)) -> Result<()> {
        let before = now_ns();
        self.expect(frame, "DROP", Outcome::Queued)?;
        let time = before..=now_ns();
        let mut expected = self.held(frame);
        change(&mut expected);
        let held = only_flow(&self.world, expected, &frame.bytes())?;
        ensure!(time.contains(&held.time), "it came at {}, not in {time:?}", held.time);
        Ok(())
    }

    /// Runs a reset, of which the controller must be told.
    pub(super) fn expect_reset(&mut self, frame: &Frame, kind: u8) -> Result<()> {
        self.expect(frame, "DROP", Outcome::QueueReset)?;
        let expected = Held { kind, length: 0, ..self.held(frame) };
        only_flow(&self.world, expected, &[])?;
        Ok(())
    }

    pub(in crate::packet) fn expect_no_record(&self) -> Result<()> {
        let records = self.world.records()?;
        ensure!(records.is_empty(), "{} records, the first of {} bytes", records.len(), records[0].len());
        Ok(())
    }

    /// The table of flows, and those that `nat` tracks, are empty.
    pub(in crate::packet) fn expect_no_entry(&self) -> Result<()> {
        let maps = &self.world.kernel().maps;
        let words = maps.affinity.words().iter();
        let mut entries = words.filter(|word| !Entry(word.load(Ordering::Relaxed)).is_free()).count();
        maps.conntrack4.for_each(|_, _| entries += 1)?;
        maps.conntrack6.for_each(|_, _| entries += 1)?;
        maps.last_hops4.for_each(|_, _| entries += 1)?;
        maps.last_hops6.for_each(|_, _| entries += 1)?;
        ensure!(entries == 0, "{entries} entries");
        Ok(())
    }

    pub(super) fn set_verified(&self, ago: u32) -> Result<()> {
        let client = AnyAddr::from(self.family.client.parse::<IpAddr>()?).0;
        Ok(self.world.kernel().maps.verified.set(&client, &entries::now().wrapping_sub(ago))?)
    }

    pub(super) fn is_verified(&self) -> Result<bool> {
        let client = AnyAddr::from(self.family.client.parse::<IpAddr>()?).0;
        Ok(self.world.kernel().maps.verified.get(&client)? == Some(entries::now()))
    }
}

/// The ring buffer's only record, which must be this; gives it with its time.
pub(in crate::packet) fn only_flow(world: &World, expected: Held, frame: &[u8]) -> Result<Held> {
    let records = world.records()?;
    ensure!(records.len() == 1, "{} records: {records:02x?}", records.len());
    let room = match frame.len() {
        0 => 0,
        length if length <= SMALL_FRAME => SMALL_FRAME,
        _ => LARGE_FRAME,
    };
    ensure!(records[0].len() == size_of::<Held>() + room, "a record of {} bytes", records[0].len());
    let (held, rest) = records[0].split_at(size_of::<Held>());
    let held: Held = bytemuck::pod_read_unaligned(held);
    ensure!(Held { time: 0, ..held } == expected, "expected {expected:?}, got {held:?}");
    same(&rest[..frame.len()], frame).context("the frame that is handed over")?;
    Ok(held)
}
