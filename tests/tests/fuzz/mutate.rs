//! Frames from frames.

use super::corpus::Corpus;
use super::fields;
use super::random::Random;

/// Values at which lengths, offsets and numbers go wrong.
const INTERESTING: [u16; 24] =
    [0, 1, 2, 4, 5, 6, 7, 8, 15, 16, 17, 20, 40, 44, 58, 60, 64, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff];
/// Bytes of headers, where mutations do the most.
const HEADERS: usize = 96;
const LONGEST: usize = 9_000;
/// The kernel takes no frame without an Ethernet header.
const SHORTEST: usize = 14;

/// The next frame: one of the corpus, mostly with something wrong.
pub fn frame(random: &mut Random, corpus: &Corpus) -> Vec<u8> {
    if random.below(64) == 0 {
        return noise(random);
    }
    let mut frame = corpus.pick(random);
    // One in eight is left as it is, so that flows begin and go on.
    if random.below(8) > 0 {
        for _ in 0..=random.below(4) {
            mutate(random, corpus, &mut frame);
        }
        // Half of them right again in lengths and sums, so that what goes out can be checked.
        if random.below(2) == 0 {
            fields::repair(&mut frame);
        }
    }
    frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    frame
}

fn noise(random: &mut Random) -> Vec<u8> {
    let length = SHORTEST + random.below(200);
    let mut frame: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    let ethertype: [u8; 2] = [[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]][random.below(4)];
    frame[12..14].copy_from_slice(&ethertype);
    frame
}

fn mutate(random: &mut Random, corpus: &Corpus, frame: &mut Vec<u8>) {
    if frame.is_empty() {
        return;
    }
    let place = |random: &mut Random, frame: &[u8]| random.below(frame.len().min(HEADERS));
    match random.below(13) {
        0 => {
            let at = place(random, frame);
            frame[at] ^= 1 << random.below(8);
        }
        1 => {
            let at = place(random, frame);
            frame[at] = random.next() as u8;
        }
        2 => {
            let at = place(random, frame);
            frame[at] = INTERESTING[random.below(INTERESTING.len())] as u8;
        }
        3 => {
            let at = place(random, frame).min(frame.len().saturating_sub(2));
            let value = INTERESTING[random.below(INTERESTING.len())].to_be_bytes();
            if let Some(bytes) = frame.get_mut(at..at + 2) {
                bytes.copy_from_slice(&value);
            }
        }
        4 => frame.truncate(random.below(frame.len() + 1)),
        5 => frame.extend(std::iter::repeat_n(random.next() as u8, random.below(64))),
        6 => {
            // The beginning of one, the end of another.
            let other = corpus.pick(random);
            let at = place(random, frame);
            frame.truncate(at);
            frame.extend(other.iter().skip(at + random.below(5)));
        }
        7 => {
            // Another tag before the rest.
            let tag = [[0x81, 0, 0, 7], [0x88, 0xa8, 0, 9]][random.below(2)];
            if frame.len() >= 12 {
                frame.splice(12..12, tag);
            }
        }
        8 => {
            // Bytes taken out of the middle.
            let at = place(random, frame);
            let end = (at + random.below(12)).min(frame.len());
            frame.drain(at..end);
        }
        _ => {
            let places = fields::find(frame);
            if let Some(place) = places.get(random.below(places.len().max(1))) {
                let value = match random.below(4) {
                    0 => random.next() as u16,
                    1 => place.read(frame).wrapping_add(1),
                    2 => place.read(frame).wrapping_sub(1),
                    _ => place.likely[random.below(place.likely.len())],
                };
                place.write(frame, value);
            }
        }
    }
}
