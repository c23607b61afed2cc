//! From slowness to weights. See the module above for what it aims at.
//!
//! ```text
//! badness = slowness * max(1, slowness / tolerated)^beyond * (1 + failure_gain * failures)
//! burden  = factor * badness                          weight = nominal weight * factor
//! error   = ln(median burden / burden)     corrected if it, or its mean of half a minute, is beyond deadband and noise
//! step    = error * dt / correction + far * dt / far_correction         far = how much error < -(ln far_off + noise)
//! factor  = factor * e^clamp(step, ln fall, ln rise), then all factors are scaled to keep the sum of the weights
//! ```

use std::time::Duration;

/// Constants of the law. Where no source is named, the simulator is it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Time between steps.
    pub interval: Duration,
    /// Slowness added by failures: with 10, one failure in ten makes a server as bad as one that is twice as slow.
    pub failure_gain: f64,
    /// Up to this slowness the share shrinks in proportion.
    pub tolerated: f64,
    /// By which power it shrinks in addition beyond that.
    pub beyond: f64,
    /// Error (natural logarithm) within which nothing is changed: about 10 %.
    pub deadband: f64,
    /// Error down to which a correction that has begun goes on.
    pub settled: f64,
    /// Standard errors down to which it goes on: with 1, servers of different speed stay 15 % off from their shares at half
    /// load; with none, checks alone move weights for nothing.
    pub settled_sure: f64,
    /// Standard errors within which an error is noise, among up to four servers. Of more servers some are farther off by
    /// chance, so the square of the bound grows by 2 ln(n / few), as that of the largest of n errors does (the universal
    /// threshold of Donoho and Johnstone, Biometrika 81(3), 1994): 3 becomes 4.5 with 1,000.
    pub sure: f64,
    /// Time constant over which smaller errors are averaged: what lasts is no noise.
    pub patience: Duration,
    /// Standard errors within which such an average is noise: that of 30 s varies by 0.37 of what one of 4 s does. The bound
    /// grows with the number of servers as that of `sure` does, by 0.37 of it.
    pub lasting_sure: f64,
    /// Time constant of corrections. As slow as Finagle's peak EWMA forgets (10 s): below 8 s, servers near their limit
    /// begin to swing in the simulator, above 15 s servers of different speed have not settled after 30 s.
    pub correction: Duration,
    /// Beyond this many times the median burden a server is far off.
    pub far_off: f64,
    /// Time constant for what is beyond that.
    pub far_correction: Duration,
    /// Least factor of a step: in a second a quarter is left. (Netflix's Gradient2 limit lets one window halve it.)
    pub fall: f64,
    /// Greatest factor of a step: ten times in 30 s, as slow start.
    pub rise: f64,
    /// Least factor: as much traffic explores a bad server.
    pub floor: f64,
    /// Greatest factor.
    pub ceiling: f64,
    /// A new ring is looked at if a share changed by so much of itself ...
    pub publish_change: f64,
    /// ... or of so much of its nominal share, if it is smaller than that.
    pub publish_floor: f64,
    /// It is published at once if some share changed by so much of it, as that of a server that is really slow does
    /// within a second ...
    pub publish_large: f64,
    /// ... else when it gains so much: the share of all new flows that it would send elsewhere, times the seconds since
    /// the last ring. With a few servers that is the first second; the noise of one of a thousand waits for minutes.
    pub publish_gain: f64,
    /// Time between rings at least.
    pub publish_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(250),
            failure_gain: 10.0,
            tolerated: 4.0,
            beyond: 2.0,
            deadband: 0.1,
            settled: 0.03,
            settled_sure: 0.3,
            sure: 3.0,
            patience: Duration::from_secs(30),
            lasting_sure: 1.1,
            correction: Duration::from_secs(10),
            far_off: 2.0,
            far_correction: Duration::from_secs(1),
            fall: 0.7,
            rise: 1.02,
            floor: 0.01,
            ceiling: 10.0,
            publish_change: 0.05,
            publish_floor: 0.1,
            publish_large: 0.25,
            publish_gain: 0.01,
            publish_every: Duration::from_secs(1),
        }
    }
}

/// Servers up to which [`Settings::sure`] holds as it is: so many the simulator has.
const FEW: f64 = 4.0;

/// How much a mean over [`Settings::patience`] varies, of what one over 4 s does: the root of 4 / 30.
const LASTING_NOISE: f64 = 0.37;

/// A server as the law sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Weight in the configuration.
    pub nominal: f64,
    /// What the law makes of it.
    pub factor: f64,
    /// A correction is under way.
    pub correcting: bool,
    /// Mean error of the last while, in which nothing was corrected.
    pub lasting: f64,
    /// None: not known well enough; the factor is frozen.
    pub seen: Option<Seen>,
    /// Something else holds its share back, which would look like a reason to raise it.
    pub held_back: bool,
}

/// What is known of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Mean latency over that of the server in the middle.
    pub slowness: f64,
    /// Standard error of its logarithm.
    pub noise: f64,
    /// Share of requests that fail.
    pub failures: f64,
}

/// How bad a server is: its slowness with failures counted in.
pub fn badness(settings: &Settings, seen: &Seen) -> f64 {
    let beyond = (seen.slowness / settings.tolerated).max(1.0).powf(settings.beyond);
    seen.slowness * beyond * (1.0 + settings.failure_gain * seen.failures)
}

/// Moves the factors for the time that passed since the last step.
///
/// The sum of the weights of the servers that are not frozen is kept, as far as floor and ceiling allow.
pub fn step(settings: &Settings, members: &mut [Member], elapsed: Duration) {
    let burden = |member: &Member| Some((member.factor * badness(settings, member.seen.as_ref()?)).ln());
    let Some(median) = median(members.iter().filter_map(burden)) else { return };
    let before = weight(members);
    let bounds = Bounds::among(settings, members.iter().filter(|member| member.seen.is_some()).count());
    for member in members.iter_mut() {
        if let (Some(burden), Some(seen)) = (burden(member), member.seen) {
            correct(settings, member, median - burden, seen.noise, bounds, elapsed);
        }
    }
    rescale(settings, members, before);
}

/// Standard errors beyond which an error is no noise.
#[derive(Clone, Copy)]
struct Bounds {
    sure: f64,
    lasting: f64,
}

impl Bounds {
    fn among(settings: &Settings, servers: usize) -> Self {
        let more = 2.0 * (servers as f64 / FEW).max(1.0).ln();
        let bound = |few: f64, deviation: f64| (few * few + deviation * deviation * more).sqrt();
        Self { sure: bound(settings.sure, 1.0), lasting: bound(settings.lasting_sure, LASTING_NOISE) }
    }
}

fn correct(settings: &Settings, member: &mut Member, error: f64, noise: f64, bounds: Bounds, elapsed: Duration) {
    let elapsed_s = elapsed.as_secs_f64();
    if member.correcting {
        member.correcting = error.abs() > settings.settled.max(settings.settled_sure * noise);
    } else {
        member.lasting += (error - member.lasting) * (elapsed_s / settings.patience.as_secs_f64()).min(1.0);
        member.correcting = error.abs() > settings.deadband.max(bounds.sure * noise)
            || member.lasting.abs() > settings.deadband.max(bounds.lasting * noise);
    }
    if !member.correcting {
        return;
    }
    member.lasting = 0.0;
    let intervals = elapsed_s / settings.interval.as_secs_f64();
    let far = (error + settings.far_off.ln() + bounds.sure * noise).min(0.0);
    let step =
        error * elapsed_s / settings.correction.as_secs_f64() + far * elapsed_s / settings.far_correction.as_secs_f64();
    let rise = if member.held_back { 0.0 } else { settings.rise.ln() * intervals };
    let step = step.clamp(settings.fall.ln() * intervals, rise);
    member.factor = (member.factor * step.exp()).clamp(settings.floor, settings.ceiling);
}

/// Scales the factors of the servers that are not frozen to a sum of weights; what floor and ceiling take or give is
/// shared by the others.
fn rescale(settings: &Settings, members: &mut [Member], wanted: f64) {
    let bounds = settings.floor..=settings.ceiling;
    let mut bound = vec![false; members.len()];
    for _ in 0..members.len() {
        let part = |is_bound: bool| -> f64 {
            let seen = members.iter().zip(&bound).filter(|(member, at)| member.seen.is_some() && **at == is_bound);
            seen.map(|(member, _)| member.nominal * member.factor).sum()
        };
        let (free, fixed) = (part(false), part(true));
        if free <= 0.0 {
            return;
        }
        let scale = ((wanted - fixed) / free).max(0.0);
        let mut all_within = true;
        for (member, bound) in members.iter_mut().zip(&mut bound).filter(|(member, _)| member.seen.is_some()) {
            if *bound {
                continue;
            }
            member.factor *= scale;
            if !bounds.contains(&member.factor) {
                member.factor = member.factor.clamp(settings.floor, settings.ceiling);
                *bound = true;
                all_within = false;
            }
        }
        if all_within {
            return;
        }
    }
}

/// Sum of the weights of the servers that are not frozen.
fn weight(members: &[Member]) -> f64 {
    members.iter().filter(|member| member.seen.is_some()).map(|member| member.nominal * member.factor).sum()
}

/// The middle one, of two their mean; None of fewer than two, of which none can be compared.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let count = values.len();
    (count >= 2).then(|| (values[(count - 1) / 2] + values[count / 2]) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    fn member(slowness: f64) -> Member {
        let seen = Some(Seen { slowness, noise: 0.0, failures: 0.0 });
        Member { nominal: 1.0, factor: 1.0, correcting: false, lasting: 0.0, seen, held_back: false }
    }

    /// Factors after some seconds in which nothing but the weights changes.
    fn after(members: &[Member], seconds: u32) -> Vec<f64> {
        let mut members = members.to_vec();
        for _ in 0..seconds * 4 {
            step(&Settings::default(), &mut members, TICK);
        }
        members.iter().map(|member| member.factor).collect()
    }

    #[test]
    fn shares_end_in_proportion_to_speed() {
        let factors = after(&[4.0, 2.0, 1.0].map(member), 60);
        for (factor, wanted) in factors.iter().zip([3.0 / 7.0, 6.0 / 7.0, 12.0 / 7.0]) {
            assert!((factor / wanted - 1.0).abs() < 0.05, "{factors:?}");
        }
    }

    #[test]
    fn beyond_what_is_tolerated_a_share_shrinks_more_than_in_proportion() {
        let factors = after(&[10.0, 1.0, 1.0, 1.0].map(member), 60);
        let share = factors[0] / 4.0;
        // 1/31 in proportion; here 1/10 * (4/10)^2 of the others'.
        assert!((0.004..0.007).contains(&share), "{factors:?}");
    }

    #[test]
    fn a_server_that_is_much_too_slow_falls_within_seconds_and_comes_back_within_a_minute() {
        let slow = [30.0, 1.0, 1.0, 1.0].map(member);
        let factors = after(&slow, 5);
        assert!(factors[0] < 0.02, "{factors:?}");
        let mut back = [1.0; 4].map(member);
        back[0].factor = factors[0];
        let (soon, late) = (after(&back, 5)[0], after(&back, 75)[0]);
        assert!(soon < 0.04 && late > 0.7, "after 5 s {soon}, after 75 s {late}");
    }

    #[test]
    fn one_in_ten_failures_halves_a_share() {
        let mut members = [1.0; 3].map(member);
        members[0].seen = Some(Seen { slowness: 1.0, noise: 0.0, failures: 0.1 });
        let factors = after(&members, 60);
        assert!((factors[0] / factors[1] - 0.5).abs() < 0.03, "{factors:?}");
    }

    #[test]
    fn small_differences_noise_and_what_is_not_known_move_nothing() {
        let noisy = |slowness, noise| Member { seen: Some(Seen { slowness, noise, failures: 0.0 }), ..member(1.0) };
        let blind = Member { seen: None, ..member(1.0) };
        let cases: [(&str, Vec<Member>); 5] = [
            ("within a tenth", [1.0, 1.09, 0.92].map(member).to_vec()),
            ("within a standard error", vec![noisy(1.0, 0.15), noisy(1.3, 0.15)]),
            ("all of them slow", [1.0; 4].map(member).to_vec()),
            ("nothing to compare with", vec![member(1.0), blind]),
            ("nothing known", vec![blind; 3]),
        ];
        for (name, members) in cases {
            assert!(after(&members, 60).iter().all(|factor| *factor == 1.0), "{name}");
        }
    }

    #[test]
    fn what_noise_may_explain_is_corrected_only_if_it_lasts() {
        let noisy = |slowness| Member { seen: Some(Seen { slowness, noise: 0.15, failures: 0.0 }), ..member(1.0) };
        let (soon, late) = (after(&[1.0, 1.5].map(noisy), 20)[1], after(&[1.0, 1.5].map(noisy), 120)[1]);
        assert!(soon == 1.0 && (late - 0.8).abs() < 0.05, "after 20 s {soon}, after 120 s {late}");
        let mut members = [1.0; 2].map(noisy);
        for tick in 0..1_000 {
            let high = if tick % 80 < 40 { 1.5 } else { 1.0 / 1.5 };
            members[1].seen = Some(Seen { slowness: high, noise: 0.15, failures: 0.0 });
            step(&Settings::default(), &mut members, TICK);
        }
        assert_eq!(members[1].factor, 1.0, "it goes up and down");
    }

    #[test]
    fn among_many_servers_one_is_farther_off_by_chance() {
        let noisy = |slowness| Member { seen: Some(Seen { slowness, noise: 0.1, failures: 0.0 }), ..member(1.0) };
        let corrected = |servers: usize, standard_errors: f64| {
            let mut members = vec![noisy(1.0); servers];
            members[0] = noisy((0.1 * standard_errors).exp());
            after(&members, 5)[0] < 1.0
        };
        let cases = [(4, 2.9, false), (4, 3.1, true), (1_000, 4.3, false), (1_000, 4.6, true), (1_000, 23.0, true)];
        for (servers, standard_errors, wanted) in cases {
            assert_eq!(corrected(servers, standard_errors), wanted, "{standard_errors} of {servers}");
        }
        let few = Bounds::among(&Settings::default(), 4);
        assert_eq!((few.sure, few.lasting), (3.0, 1.1));
        let many = Bounds::among(&Settings::default(), 1_000);
        assert!(
            (many.sure - 4.48).abs() < 0.01 && (many.lasting - 1.65).abs() < 0.01,
            "{} {}",
            many.sure,
            many.lasting
        );
    }

    #[test]
    fn of_two_servers_the_slower_gives_to_the_faster() {
        let factors = after(&[1.0, 3.0].map(member), 60);
        assert!((factors[0] - 1.5).abs() < 0.06 && (factors[1] - 0.5).abs() < 0.06, "{factors:?}");
    }

    #[test]
    fn a_server_that_is_held_back_does_not_rise_by_itself() {
        let mut members = [1.0; 3].map(member);
        members[0].factor = 0.1;
        members[0].held_back = true;
        members[1].factor = 1.45;
        members[2].factor = 1.45;
        let factors = after(&members, 30);
        assert!(factors[0] <= 0.1 + 1e-9, "{factors:?}");
    }

    fn any_member() -> impl Strategy<Value = Member> {
        let seen = prop::option::weighted(
            0.8,
            (0.01..100.0f64, 0.0..0.5f64, 0.0..1.0f64).prop_map(|(slowness, noise, failures)| Seen {
                slowness,
                noise,
                failures,
            }),
        );
        (1u32..1000, 0.01..10.0f64, any::<bool>(), seen, any::<bool>()).prop_map(
            |(nominal, factor, correcting, seen, held_back)| Member {
                nominal: f64::from(nominal),
                factor,
                correcting,
                lasting: 0.0,
                seen,
                held_back,
            },
        )
    }

    proptest! {
        #[test]
        fn factors_stay_within_bounds_and_frozen_ones_stay(
            members in prop::collection::vec(any_member(), 0..20),
            steps in 1u32..40,
        ) {
            let settings = Settings::default();
            let mut after = members.clone();
            for _ in 0..steps {
                step(&settings, &mut after, TICK);
            }
            for (before, after) in members.iter().zip(&after) {
                prop_assert!((settings.floor..=settings.ceiling).contains(&after.factor), "{}", after.factor);
                if before.seen.is_none() {
                    prop_assert_eq!(before.factor, after.factor);
                }
            }
        }

        #[test]
        fn the_sum_of_weights_is_kept_unless_bounds_forbid_it(members in prop::collection::vec(any_member(), 2..20)) {
            let settings = Settings::default();
            let mut after = members.clone();
            step(&settings, &mut after, TICK);
            let (before, now) = (weight(&members), weight(&after));
            let some_is_free = after.iter().any(|member| {
                member.seen.is_some() && member.factor > settings.floor && member.factor < settings.ceiling
            });
            prop_assert!(!some_is_free || (now - before).abs() <= 1e-6 * before, "{before} became {now}");
        }

        /// Beside the common scale, which the fastest fall of one of them sets.
        #[test]
        fn no_factor_moves_faster_than_allowed(members in prop::collection::vec(any_member(), 2..20)) {
            let settings = Settings::default();
            let mut after = members.clone();
            step(&settings, &mut after, TICK);
            let moves: Vec<f64> = members
                .iter()
                .zip(&after)
                .filter(|(_, after)| {
                    after.seen.is_some() && after.factor > settings.floor && after.factor < settings.ceiling
                })
                .map(|(before, after)| after.factor / before.factor)
                .collect();
            let most = moves.iter().copied().fold(0.0, f64::max);
            let least = moves.iter().copied().fold(f64::INFINITY, f64::min);
            if moves.len() >= 2 {
                prop_assert!(most / least <= settings.rise / settings.fall + 1e-9, "{moves:?}");
            }
        }
    }
}
