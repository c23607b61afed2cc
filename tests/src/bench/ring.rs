//! Time to build a ring and to publish it to the kernel.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use loadbalancer::dataplane::kernel::{Kernel, Sizes};
use loadbalancer::ring::{self, Member, Ring};
use loadbalancer_common::hash::mix;
use loadbalancer_common::ring::{RingBlock, RingRef, SLOTS};
use loadbalancer_common::service::{Service, mode};

use super::report::{self, Bar, Figure};

/// Measures how long a ring takes to build, and to publish to the kernel.
#[derive(Parser)]
#[command(name = "cargo xtask bench ring", bin_name = "cargo xtask bench ring")]
struct Arguments {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn main() -> ExitCode {
    report::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<bool> {
    let kernel = Kernel::load(Sizes::default(), None)?;
    let mut figures = Vec::new();
    println!("{} slots; medians of {} rounds\n", SLOTS, arguments.rounds);
    println!("{:>8} {:>10} {:>18} {:>12}  bars", "servers", "build ms", "plain Maglev ms", "publish ms");
    for servers in [10, 100, 655, 1_000] {
        let members = members(servers);
        let (mut build, mut plain, mut publish) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            let begun = Instant::now();
            let ring = ring::build(&members);
            build.push(milliseconds(begun));
            let begun = Instant::now();
            let baseline = maglev(&members);
            plain.push(milliseconds(begun));
            assert!(baseline.iter().all(|slot| *slot != 0), "every slot has a server");
            let begun = Instant::now();
            publish_to(&kernel, &ring, (round % 2) as u32)?;
            publish.push(milliseconds(begun));
        }
        let mut build = Figure::new(format!("build, {servers} servers"), "ms", build);
        let plain = Figure::new(format!("plain Maglev, {servers} servers"), "ms", plain);
        let mut publish = Figure::new(format!("publish, {servers} servers"), "ms", publish);
        if servers == 1_000 {
            build = build.with_bar(Bar::AtMost(100.0));
            publish = publish.with_bar(Bar::AtMost(5.0));
        }
        println!(
            "{servers:>8} {:>10.2} {:>18.2} {:>12.3}  {} {}",
            build.value,
            plain.value,
            publish.value,
            build.bar_text(),
            publish.bar_text()
        );
        figures.extend([build, plain, publish]);
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

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Writes a ring to one of two regions through memory, and switches a service to it.
fn publish_to(kernel: &Kernel, ring: &Ring, region: u32) -> Result<()> {
    let mut blocks = vec![RingBlock::default(); ring::blocks(ring.members().len())];
    ring.write_blocks(&mut blocks);
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
