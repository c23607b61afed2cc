//! Robustness: mutated and random frames through the loaded program.
//!
//! What must hold: every frame is counted in exactly one outcome, and what is done with it is what that outcome says;
//! the program never aborts; what passes is as it came; what goes out has a sane length, and from a sound frame is sound, to
//! the last checksum; and flows that the frames do not belong to keep their entries, and are treated as if there were no
//! such frames.

mod corpus;
mod fields;
mod memory;
mod mutate;
mod random;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::programs::{TestRun, TestRunOptions};
use libtest_mimic::{Failed, Trial};
use loadbalancer::dataplane::sizes::Sizes;
use loadbalancer_common::outcome::{Class, Outcome};
use loadbalancer_tests::frames::verify::verify_frame;
use loadbalancer_tests::frames::world::{ACTIONS, World};

use corpus::{Corpus, Victim};
use memory::Memory;
use random::Random;

/// Of the frames, so that a run is as the one before; `--seed` makes others.
const SEED: u64 = 0x5eed;
/// Trials that share the frames, as each keeps a processor busy.
const PARTS: u64 = 4;
/// Frames between two looks at the counters.
const BATCH: u64 = 10_000;
/// Batches between two looks at the flows that must not be touched.
const VICTIMS_EVERY: u64 = 10;
/// Of so many frames, one whose output is looked at.
const LOOK: u64 = 8;
/// The most that a frame grows: IPv6 and UDP headers around it, or those of an ICMPv6 error.
const GROWTH: usize = 48;
/// The least that is sent: Ethernet and IPv4 headers.
const LEAST_SENT: usize = 34;

#[derive(clap::Args)]
#[command(next_help_heading = "Options of the fuzz suite")]
pub struct Options {
    /// Frames, over all trials
    #[arg(long, default_value_t = 20_000_000)]
    frames: u64,
    /// Makes other frames
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// Runs one frame instead, as a failure prints it, and tells what becomes of it
    #[arg(long, value_name = "HEX")]
    frame: Option<String>,
}

pub fn trials(options: &Options) -> Vec<Trial> {
    let (frames, seed) = (options.frames, options.seed);
    let trial = |name: String, run: Box<dyn FnOnce() -> Result<()> + Send>| {
        Trial::test(format!("fuzz::{name}"), || run().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    if let Some(frame) = options.frame.clone() {
        return vec![trial("one_frame".to_owned(), Box::new(move || single(&frame)))];
    }
    let each = frames.div_ceil(PARTS).next_multiple_of(BATCH);
    let part = |part: u64| {
        let run = move || {
            let counted = fuzz(seed ^ part << 56, each)
                .with_context(|| format!("repeat it with --seed {seed} --frames {frames}"))?;
            ensure!(counted >= each, "only {counted} of {each} frames were run");
            println!("fuzz: {counted} frames, seed {seed}, part {} of {PARTS}", part + 1);
            Ok(())
        };
        trial(format!("every_frame_has_one_outcome_and_harms_no_other_flow/{}", part + 1), Box::new(run))
    };
    fields::trials().into_iter().chain((0..PARTS).map(part)).collect()
}

/// Gives how many frames were counted.
fn fuzz(seed: u64, frames: u64) -> Result<u64> {
    ensure!(frames > 0, "no frame was asked for");
    let (mut fuzzer, corpus) = Fuzzer::new(seed)?;
    let victims = corpus.victims(&mut fuzzer.world)?;
    let memory = Memory::of(&fuzzer.world)?;
    ensure!(memory.sizes().iter().all(|size| *size > 0), "flows to watch: {:?}", memory.sizes());
    let mut counted = 0;
    for batch in 0..frames / BATCH {
        let before = fuzzer.random;
        let result = fuzzer.batch(&corpus);
        if let Err(error) = result {
            fuzzer.random = before;
            return Err(fuzzer.find(&corpus, error).context(format!("batch {batch}")));
        }
        if batch % VICTIMS_EVERY == 0 || batch + 1 == frames / BATCH {
            // The entries first: a packet of the flow may mend what is wrong.
            memory.is_unchanged(&fuzzer.world).with_context(|| format!("after batch {batch}"))?;
            let untouched = victims.iter().try_for_each(|victim| fuzzer.is_untouched(victim));
            untouched.with_context(|| format!("after batch {batch}"))?;
        }
        counted += BATCH;
    }
    Ok(counted)
}

/// Runs a frame on its own, with flows set up as for all others.
fn single(text: &str) -> Result<()> {
    let frame = text.as_bytes().chunks(2).map(|pair| {
        let digits = std::str::from_utf8(pair).ok().filter(|digits| digits.len() == 2);
        digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())
    });
    let frame: Vec<u8> = frame.collect::<Option<_>>().context("--frame takes hexadecimal digits, two a byte")?;
    let (mut fuzzer, corpus) = Fuzzer::new(0)?;
    corpus.victims(&mut fuzzer.world)?;
    let memory = Memory::of(&fuzzer.world)?;
    let ran = fuzzer.world.run(&frame)?;
    println!("{}  {}", ran.action, hex(&ran.frame));
    for (service, outcome, times) in &ran.counted {
        let name = Outcome::ALL.iter().find(|it| **it as usize == *outcome);
        println!("service {service}: {name:?}, {times} times");
    }
    memory.is_unchanged(&fuzzer.world)?;
    fuzzer.check_one(&frame)
}

struct Fuzzer {
    world: World,
    output: Vec<u8>,
    random: Random,
}

/// Frames by what was done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    sent: u64,
    dropped: u64,
}

impl Fuzzer {
    fn new(seed: u64) -> Result<(Self, Corpus)> {
        let sizes = Sizes { services: 32, backends: 128, rings: 64, flows: 1_000_000, nat_flows: 500_000, vips: 256 };
        let mut world = World::with_sizes(sizes)?;
        let corpus = Corpus::new(&mut world)?;
        Ok((Self { world, output: vec![0; 16_384], random: Random(seed) }, corpus))
    }

    fn batch(&mut self, corpus: &Corpus) -> Result<()> {
        let before = self.world.totals()?;
        let mut actions = Tally::default();
        for number in 0..BATCH {
            let frame = mutate::frame(&mut self.random, corpus);
            let action = self.run(&frame, number % LOOK == 0)?;
            match ACTIONS.get(action as usize).copied() {
                Some("PASS") => actions.passed += 1,
                Some("TX" | "REDIRECT") => actions.sent += 1,
                Some("DROP") => actions.dropped += 1,
                other => bail!("action {action} ({other:?}) for {}", hex(&frame)),
            }
        }
        let after = self.world.totals()?;
        compare(&before, &after, &actions)
    }

    /// Runs one frame. Gives the action.
    fn run(&mut self, frame: &[u8], look: bool) -> Result<u32> {
        let output = look.then_some(&mut self.output[..]);
        let run = TestRunOptions { data_in: Some(frame), data_out: output, ..TestRunOptions::default() };
        let result = self.world.kernel_mut().program()?.test_run(run).with_context(|| hex(frame))?;
        let action = ACTIONS.get(result.return_value as usize).copied();
        if look && let Some(kind @ ("PASS" | "TX" | "REDIRECT")) = action {
            let length = result.data_size_out as usize;
            let least = if kind == "PASS" { frame.len() } else { LEAST_SENT };
            if !(least..=frame.len() + GROWTH).contains(&length) {
                bail!("{kind}: a frame of {} bytes became one of {length}:\n  {}", frame.len(), hex(frame));
            }
            let output = &self.output[..length];
            if kind == "PASS" && output != frame {
                bail!("a frame was changed and passed:\n  {}\n  {}", hex(frame), hex(output));
            }
            if kind != "PASS" && verify_frame(frame).is_ok() && verify_frame(output).is_err() {
                bail!("a sound frame became an unsound one:\n  {}\n  {}", hex(frame), hex(output));
            }
        }
        Ok(result.return_value)
    }

    /// Looks for the frame of a batch that is to blame, by running it again frame by frame.
    fn find(&mut self, corpus: &Corpus, error: anyhow::Error) -> anyhow::Error {
        for number in 0..BATCH {
            let frame = mutate::frame(&mut self.random, corpus);
            let result = self.check_one(&frame);
            if let Err(single) = result {
                return anyhow!("{error:#}; frame {number} of the batch: {single:#}\n  {}", hex(&frame));
            }
        }
        anyhow!("{error:#}; no single frame shows it")
    }

    /// Runs one frame and looks at all that can be seen of it.
    fn check_one(&mut self, frame: &[u8]) -> Result<()> {
        let before = self.world.totals()?;
        let action = self.run(frame, true)?;
        let after = self.world.totals()?;
        let mut tally = Tally::default();
        match ACTIONS.get(action as usize).copied() {
            Some("PASS") => tally.passed = 1,
            Some("TX" | "REDIRECT") => tally.sent = 1,
            Some("DROP") => tally.dropped = 1,
            other => bail!("action {action} ({other:?})"),
        }
        compare(&before, &after, &tally)
    }

    /// The flow's packets become what they became before.
    fn is_untouched(&mut self, victim: &Victim) -> Result<()> {
        for (frame, expected) in &victim.packets {
            let ran = self.world.run(frame)?;
            ensure!(
                ran.frame == *expected,
                "the flow {} was touched: its packet became\n  {}\ninstead of\n  {}",
                victim.name,
                hex(&ran.frame),
                hex(expected)
            );
        }
        Ok(())
    }
}

/// Whether outcomes rose by one per frame, in the class of what was done with it.
fn compare(before: &[u64], after: &[u64], actions: &Tally) -> Result<()> {
    let rose = |class: Class| -> u64 {
        let of_class = Outcome::ALL.iter().filter(|outcome| outcome.class() == class);
        of_class.map(|outcome| after[*outcome as usize] - before[*outcome as usize]).sum()
    };
    let [passed, forwarded, answered, refused, dropped] =
        [Class::Passed, Class::Forwarded, Class::Answered, Class::Refused, Class::Dropped].map(rose);
    let frames = actions.passed + actions.sent + actions.dropped;
    let counted = passed + forwarded + answered + refused + dropped;
    ensure!(counted == frames, "{counted} outcomes were counted for {frames} frames");
    ensure!(passed == actions.passed, "{passed} frames were counted as passed, {} were", actions.passed);
    // What is refused is answered or dropped.
    ensure!(
        (forwarded + answered..=forwarded + answered + refused).contains(&actions.sent),
        "{} frames were sent; counted: {forwarded} forwarded, {answered} answered, {refused} refused",
        actions.sent
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
