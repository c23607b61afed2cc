//! What the probes of all servers tell of a channel that they share.
//!
//! A channel that begins to lose loses for every server behind it. Each server's probes alone are few; together they are
//! sure sooner. It counts for a server as far as its own probes and traffic do not say otherwise, and no server's losses
//! count for more than about twice those of the others, so that what one server loses is not taken for the channel's.
//! Probes missed on end count once, and not at all once they mean a death: a server that goes down says nothing of the way
//! to it.

use super::loss::Counts;
use super::settings::Settings;

/// Spans that are looked at, in the least one: 2 s, 4 s and 10 s of ten probes a second.
pub const SPANS: [usize; 3] = [1, 2, 5];

/// What is surely lost on a channel, from the counts of its servers over each of the [`SPANS`].
pub fn sure_rate(servers: &[[Counts; SPANS.len()]], settings: &Settings) -> f64 {
    let Some(peers) = servers.len().checked_sub(1).filter(|peers| *peers > 0) else { return 0.0 };
    let least = (settings.least_intervals * servers.len()) as f64;
    let rate = |span: usize| {
        let of_span = || servers.iter().map(|counts| counts[span]);
        let attempts: u64 = of_span().map(|counts| counts.attempts).sum();
        let all: u64 = of_span().map(|counts| counts.losses).sum();
        let bounded = |counts: Counts| {
            let mean_of_others = (all - counts.losses) as f64 / peers as f64;
            (counts.losses as f64).min(1.0 + 2.0 * mean_of_others)
        };
        let losses: f64 = of_span().map(bounded).sum();
        if losses > 1.0 { (losses - settings.sure * losses.sqrt()) / (attempts as f64).max(least) } else { 0.0 }
    };
    (0..SPANS.len()).map(rate).fold(0.0, f64::max)
}
