//! Time to build a ring and to publish it to the kernel.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use decide::ring::{self, Ring, member::Member};
use loadbalancer::dataplane::load::Kernel;
use loadbalancer::dataplane::sizes::Sizes;
use loadbalancer_common::hash::mix;
use loadbalancer_common::ring::{RingBlock, RingRef, SLOTS};
use loadbalancer_common::service::{Service, mode};
use loadbalancer_tests::report::{self, Bar, Figure};

/// The most that a ring may take to build, against plain Maglev, which moves more slots when weights change.
const BUILD_TO_MAGLEV: f64 = 10.0;
/// The most that it may take to publish, against a copy of it.
const PUBLISH_TO_COPY: f64 = 10.0;

/// Measures how long a ring takes to build, and to publish to the kernel.
#[derive(Parser)]
pub struct Arguments {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<bool> {
    let kernel = Kernel::load(Sizes::default(), None)?;
    let mut figures = Vec::new();
    println!("{} slots; medians of {} rounds\n", SLOTS, arguments.rounds);
    println!("{:>8} {:>10} {:>10} {:>12} {:>10}  bars", "servers", "build ms", "/ Maglev", "publish ms", "/ a copy");
    for servers in [10, 100, 655, 1_000] {
        let members = members(servers);
        let mut rounds = [const { Vec::new() }; 4];
        for round in 0..arguments.rounds {
            let (build, ring) = milliseconds(|| ring::build(&members));
            let (maglev, baseline) = milliseconds(|| maglev(&members));
            assert!(baseline.iter().all(|slot| *slot != 0), "every slot has a server");
            let (publish, published) = milliseconds(|| publish_to(&kernel, &ring, (round % 2) as u32));
            published?;
            let copy = milliseconds(|| black_box(copy_of(&ring))).0;
            for (values, value) in rounds.iter_mut().zip([build, build / maglev, publish, publish / copy]) {
                values.push(value);
            }
        }
        let [build, to_maglev, publish, to_copy] = rounds;
        let build = Figure::new(format!("build, {servers} servers"), "ms", build);
        let mut to_maglev = Figure::new(format!("build / plain Maglev, {servers} servers"), "", to_maglev);
        let publish = Figure::new(format!("publish, {servers} servers"), "ms", publish);
        let mut to_copy = Figure::new(format!("publish / a copy in memory, {servers} servers"), "", to_copy);
        if servers == 1_000 {
            to_maglev = to_maglev.with_bar(Bar::AtMost(BUILD_TO_MAGLEV));
            to_copy = to_copy.with_bar(Bar::AtMost(PUBLISH_TO_COPY));
        }
        println!(
            "{servers:>8} {:>10.2} {:>10.2} {:>12.3} {:>10.2}  {} {}",
            build.value,
            to_maglev.value,
            publish.value,
            to_copy.value,
            to_maglev.bar_text(),
            to_copy.bar_text()
        );
        figures.extend([build, to_maglev, publish, to_copy]);
    }
    if let Some(path) = &arguments.json {
        report::write_json(path, &figures)?;
    }
    Ok(report::verdict(&figures))
}

fn members(count: u16) -> Vec<Member> {
    let member = |number: u16| {
        let weight = 1 + (mix(u64::from(number)) % 100) as u32;
        Member { backend: number, id: mix(u64::from(number) << 32), nominal: weight, weight }
    };
    (1..=count).map(member).collect()
}

/// How long something takes, and what it gives.
fn milliseconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begun = Instant::now();
    let result = work();
    (begun.elapsed().as_secs_f64() * 1e3, result)
}

/// What is published, in ordinary memory: the least that publishing can be.
fn copy_of(ring: &Ring) -> Vec<RingBlock> {
    let mut blocks = vec![RingBlock::default(); ring::blocks(ring.members().len())];
    ring.write_blocks(&mut blocks);
    blocks
}

/// Writes a ring to one of two regions through memory, and switches a service to it.
fn publish_to(kernel: &Kernel, ring: &Ring, region: u32) -> Result<()> {
    let blocks = copy_of(ring);
    let first = region * kernel.sizes.ring_blocks();
    let words = &kernel.maps.rings.words()[first as usize * 8..];
    for (target, block) in words.chunks(8).zip(&blocks) {
        for (target, word) in target.iter().zip(bytemuck::cast::<_, [u64; 8]>(block.0)) {
            target.store(word, Ordering::Relaxed);
        }
    }
    let tiers = [RingRef::new(first, ring.members().len() as u32).0, 0, 0, 0];
    Ok(kernel.maps.services.set(&1, &Service { mode: mode::DSR, tier_count: 1, tiers, ..Service::default() })?)
}

/// Maglev as published (Eisenbud et al., NSDI 2016, section 3.4), with turns in proportion to the weights: the baseline.
fn maglev(members: &[Member]) -> Vec<u16> {
    let slots = u64::from(SLOTS);
    let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(1);
    let mut walks: Vec<(u64, u64, u32)> = members
        .iter()
        .map(|member| (mix(member.id) % slots, mix(member.id ^ 0x5bd1_e995) % (slots - 1) + 1, 0))
        .collect();
    let mut table = vec![0u16; SLOTS as usize];
    let mut filled = 0;
    loop {
        for (member, (position, skip, credit)) in members.iter().zip(&mut walks) {
            *credit += member.weight;
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            while table[*position as usize] != 0 {
                *position = (*position + *skip) % slots;
            }
            table[*position as usize] = member.backend;
            filled += 1;
            if filled == SLOTS {
                return table;
            }
        }
    }
}
