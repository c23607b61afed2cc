//! How many flows of a service are sampled for passive signals, where the configuration leaves it open: all of them while
//! that costs next to nothing, fewer the more packets there are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use loadbalancer_common::signal::MOST_FLOWS_PER_SAMPLE;

use model::ids::ServiceId;

/// How many flows are sampled for passive signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassiveShare {
    /// All while there are few packets, fewer the more there are.
    Auto,
    /// One in so many, a power of two; zero: none.
    OneIn(u16),
}

/// Time between looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Packets of sampled flows a second, at most: at 25 ns each, of a first packet 100 ns (see docs/benchmarks.md), that is
/// a thousandth of a core, or half of a hundredth. Half as many responses a second are more than any mean needs.
const MOST_PACKETS_PER_S: f64 = 50_000.0;
/// Sampled flows that are active, at most, of the places for them: one that finds its place taken tells nothing.
const MOST_OF_PLACES: f64 = 0.5;
/// The next greater share is taken where it would bring less than this part of the most, so that shares do not flap.
const ROOM: f64 = 0.5;
/// Where a service begins, until its packets have been counted for a while.
const FIRST_FLOWS_PER_SAMPLE: u16 = 16;

/// What a service does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub service: ServiceId,
    /// Forwarded ever; None: that cannot be told now.
    pub packets: Option<u64>,
    /// Active flows.
    pub active: u64,
}

/// The services that leave it open, by service.
#[derive(Debug, Default)]
pub struct Sampling {
    services: HashMap<ServiceId, Sampled>,
    looked_at: Option<Instant>,
}

#[derive(Debug)]
struct Sampled {
    flows_per_sample: u16,
    /// Packets forwarded when it was last looked at.
    packets: Option<u64>,
}

impl Sampling {
    /// Whether an interval has passed since the last look.
    pub fn is_due(&self, now: Instant) -> bool {
        self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// Takes what the services do, where there are so many places for sampled flows. Gives whether a share has changed.
    pub fn look(&mut self, loads: impl IntoIterator<Item = Load>, places: u32, now: Instant) -> bool {
        let elapsed = self.looked_at.replace(now).map(|at| now.saturating_duration_since(at).as_secs_f64());
        let mut before = std::mem::take(&mut self.services);
        let mut changed = false;
        for Load { service, packets, active } in loads {
            let mut flows_per_sample = FIRST_FLOWS_PER_SAMPLE;
            if let Some(known) = before.remove(&service) {
                flows_per_sample = known.flows_per_sample;
                if let (Some(elapsed), Some(last), Some(packets)) = (elapsed, known.packets, packets) {
                    let of_packets = packets.saturating_sub(last) as f64 / elapsed / MOST_PACKETS_PER_S;
                    let of_places = active as f64 / (MOST_OF_PLACES * f64::from(places));
                    flows_per_sample = next(flows_per_sample, of_packets.max(of_places));
                    changed |= flows_per_sample != known.flows_per_sample;
                }
            }
            self.services.insert(service, Sampled { flows_per_sample, packets });
        }
        changed
    }

    /// One flow of a service in so many is sampled; zero: none.
    pub fn flows_per_sample(&self, share: PassiveShare, service: ServiceId) -> u16 {
        match share {
            PassiveShare::OneIn(flows) => flows,
            PassiveShare::Auto => {
                self.services.get(&service).map_or(FIRST_FLOWS_PER_SAMPLE, |sampled| sampled.flows_per_sample)
            }
        }
    }
}

/// What to do where sampling all flows would be so many times the most: down at once, up one step at a time.
fn next(flows_per_sample: u16, all: f64) -> u16 {
    let sampled = |flows_per_sample: u16| all / f64::from(flows_per_sample);
    let mut next = flows_per_sample;
    while sampled(next) > 1.0 && next < MOST_FLOWS_PER_SAMPLE {
        next *= 2;
    }
    if next == flows_per_sample && next > 1 && sampled(next / 2) <= ROOM {
        next /= 2;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: u32 = 16_384;

    fn load(service: u64, packets: u64) -> Load {
        Load { service: ServiceId(service), packets: Some(packets), active: 0 }
    }

    /// Shares after some seconds with so many packets in each.
    fn after(sampling: &mut Sampling, start: Instant, seconds: std::ops::Range<u64>, per_s: u64, sum: &mut u64) -> u16 {
        for second in seconds {
            *sum += per_s;
            sampling.look([load(7, *sum)], PLACES, start + Duration::from_secs(second));
        }
        sampling.flows_per_sample(PassiveShare::Auto, ServiceId(7))
    }

    #[test]
    fn all_flows_of_a_quiet_service_are_sampled_and_few_of_a_busy_one() {
        for (per_s, flows) in [(0, 1), (240, 1), (25_000, 1), (80_000, 4), (1_000_000, 32), (1_000_000_000, 4096)] {
            let (mut sampling, mut sum, start) = (Sampling::default(), 0, Instant::now());
            assert_eq!(after(&mut sampling, start, 0..1, per_s, &mut sum), FIRST_FLOWS_PER_SAMPLE, "not counted yet");
            assert_eq!(after(&mut sampling, start, 1..20, per_s, &mut sum), flows, "{per_s} packets a second");
        }
    }

    #[test]
    fn a_burst_is_met_at_once_and_left_step_by_step() {
        let (mut sampling, mut sum, start) = (Sampling::default(), 0, Instant::now());
        assert_eq!(after(&mut sampling, start, 0..20, 100, &mut sum), 1);
        assert_eq!(after(&mut sampling, start, 20..21, 1_000_000, &mut sum), 32);
        assert_eq!(after(&mut sampling, start, 21..23, 100, &mut sum), 8);
        assert_eq!(after(&mut sampling, start, 23..30, 100, &mut sum), 1);
    }

    #[test]
    fn a_rate_that_varies_by_a_third_changes_nothing() {
        for per_s in (1_000..2_000_000).step_by(7_919) {
            let (mut sampling, mut sum, start) = (Sampling::default(), 0, Instant::now());
            after(&mut sampling, start, 0..20, per_s, &mut sum);
            let settled = after(&mut sampling, start, 20..21, per_s * 4 / 3, &mut sum);
            for second in 21..40 {
                let per_s = if second % 2 == 0 { per_s } else { per_s * 4 / 3 };
                assert_eq!(after(&mut sampling, start, second..second + 1, per_s, &mut sum), settled, "{per_s}");
            }
        }
    }

    #[test]
    fn a_service_that_is_gone_is_forgotten_and_counters_may_begin_anew() {
        let (mut sampling, mut sum, start) = (Sampling::default(), 1_000, Instant::now());
        after(&mut sampling, start, 0..20, 100, &mut sum);
        assert!(!sampling.look([load(7, 3), load(8, 0)], PLACES, start + Duration::from_secs(20)));
        let share = |sampling: &Sampling, service| sampling.flows_per_sample(PassiveShare::Auto, ServiceId(service));
        assert_eq!((share(&sampling, 7), share(&sampling, 8)), (1, FIRST_FLOWS_PER_SAMPLE));
        sampling.look([load(8, 0)], PLACES, start + Duration::from_secs(21));
        assert_eq!((share(&sampling, 7), share(&sampling, 8)), (FIRST_FLOWS_PER_SAMPLE, 8));
        assert!(
            !sampling.is_due(start + Duration::from_millis(21_900)) && sampling.is_due(start + Duration::from_secs(22))
        );
    }

    #[test]
    fn no_more_flows_are_sampled_than_find_a_place() {
        for (active, flows) in [(4_096, 1), (200_000, 32), (10_000_000, 2_048)] {
            let (mut sampling, start) = (Sampling::default(), Instant::now());
            for second in 0..20 {
                let load = Load { active, ..load(7, 100 * second) };
                sampling.look([load], PLACES, start + Duration::from_secs(second));
            }
            assert_eq!(sampling.flows_per_sample(PassiveShare::Auto, ServiceId(7)), flows, "{active} active flows");
        }
    }

    #[test]
    fn what_cannot_be_counted_changes_nothing() {
        let (mut sampling, mut sum, start) = (Sampling::default(), 1_000_000_000, Instant::now());
        after(&mut sampling, start, 0..20, 100, &mut sum);
        let blind = Load { packets: None, ..load(7, 0) };
        assert!(!sampling.look([blind], PLACES, start + Duration::from_secs(20)));
        assert_eq!(after(&mut sampling, start, 21..23, 100, &mut sum), 1);
    }
}
