//! Channels on a clock of their own: what happens to them, and where flows go.

use std::time::Duration;

use proptest::prelude::*;

use super::explain::State;
use super::*;

const A: ChannelKey = ChannelKey(1);
const B: ChannelKey = ChannelKey(2);
const MS: Duration = Duration::from_millis(1);

/// Channels that are probed every 100 ms.
struct Lab {
    channels: Channels,
    now: Duration,
    /// Slots that moved, and when.
    moves: Vec<Duration>,
    events: Vec<Event>,
    /// State of a pseudorandom sequence.
    random: u64,
}

/// How a channel is: the time of a probe, its jitter, what it loses, and retransmissions of its traffic.
#[derive(Clone, Copy)]
struct Way {
    rtt: Duration,
    jitter: Duration,
    loss: f64,
    traffic: u32,
}

const GOOD: Way = Way { rtt: Duration::from_micros(200), jitter: Duration::from_micros(50), loss: 0.0, traffic: 0 };
const DEAD: Way = Way { loss: 1.0, ..GOOD };

impl Lab {
    fn new(capacities: &[u32]) -> Self {
        let mut channels = Channels::new(Settings::default(), Duration::ZERO);
        for (number, capacity) in (1u16..).zip(capacities) {
            channels.set_channel(ChannelKey(number), *capacity, Duration::ZERO);
        }
        Self { channels, now: Duration::ZERO, moves: Vec::new(), events: Vec::new(), random: 1 }
    }

    fn random(&mut self) -> f64 {
        self.random = loadbalancer_common::hash::mix(self.random);
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    fn note(&mut self, events: Vec<Event>) {
        self.moves.extend(events.iter().filter(|event| **event == Event::Moved).map(|_| self.now));
        self.events.extend(events);
    }

    /// Probes for some seconds, with channels numbered from 1.
    fn run(&mut self, seconds: f64, ways: &[Way]) -> &mut Self {
        for _ in 0..(seconds * 10.0).round() as u32 {
            self.now += 100 * MS;
            for (number, way) in (1u16..).zip(ways) {
                let lost = self.random() < way.loss;
                let rtt = way.rtt + way.jitter.mul_f64(self.random());
                let resent = (0..way.traffic).filter(|_| self.random() < way.loss).count() as u32;
                let result = if lost { Err(Failure::Loss) } else { Ok(rtt) };
                let events = self.channels.probe(ChannelKey(number), result, self.now);
                self.note(events);
                let passive = Passive { sent: way.traffic, resent, ..Passive::default() };
                self.channels.passive(ChannelKey(number), &passive, self.now);
            }
            let events = self.channels.step(self.now);
            self.note(events);
        }
        self
    }

    fn slots(&self, key: ChannelKey) -> usize {
        self.channels.slots().iter().filter(|slot| **slot == Some(key)).count()
    }
}

fn far(ms: u32) -> Way {
    Way { rtt: GOOD.rtt + ms * MS, ..GOOD }
}

#[test]
fn flows_that_are_to_leave_dead_channels_only_stay_on_worse_ones_and_slots_wait_until_there_are_none() {
    let mut lab = Lab::new(&[1, 1]);
    lab.channels.set_settings(Settings { leave: Leave::Dead, ..Settings::default() });
    lab.channels.set_in_use(true);
    lab.run(30.0, &[far(70), GOOD]).run(30.0, &[Way { loss: 0.05, ..GOOD }, GOOD]);
    assert_eq!((lab.slots(A), lab.moves.len()), (4, 0), "a worse channel keeps its slots");
    lab.run(1.0, &[DEAD, GOOD]);
    assert_eq!((lab.slots(A), lab.moves.len()), (0, 1), "a dead one loses them at once");
    lab.run(60.0, &[GOOD, GOOD]);
    assert_eq!((lab.slots(A), lab.moves.len()), (0, 1), "back it gets none while the server has flows");
    lab.channels.set_in_use(false);
    lab.run(5.0, &[GOOD, GOOD]);
    assert_eq!(lab.slots(A), 4, "without flows slots are shared anew");
}

#[test]
fn slots_follow_capacity_while_all_are_good() {
    for (capacities, wanted) in
        [(&[1, 1][..], &[4, 4][..]), (&[300, 100], &[6, 2]), (&[1], &[8]), (&[1, 1, 2], &[2, 2, 4])]
    {
        let mut lab = Lab::new(capacities);
        lab.run(60.0, &vec![GOOD; capacities.len()]);
        let slots: Vec<usize> = (1u16..).take(capacities.len()).map(|key| lab.slots(ChannelKey(key))).collect();
        assert_eq!(slots, wanted, "{capacities:?}");
        assert!(lab.moves.is_empty(), "{capacities:?}");
    }
}

#[test]
fn small_differences_and_jitter_move_nothing() {
    let spiky = Way { jitter: 4 * MS, ..far(5) };
    for (name, ways, most) in [
        ("0.1 and 0.12 ms", [Way { rtt: MS / 10, ..GOOD }, Way { rtt: MS * 12 / 100, ..GOOD }], 0),
        ("20 and 22 ms", [far(20), far(22)], 0),
        ("5 to 9 ms on both", [spiky; 2], 6),
    ] {
        let mut lab = Lab::new(&[1, 1]);
        lab.run(600.0, &ways);
        assert!(lab.moves.len() <= most, "{name}: {} moves in 10 minutes", lab.moves.len());
        assert!((3..=5).contains(&lab.slots(A)), "{name}");
    }
}

#[test]
fn one_late_answer_moves_nothing() {
    let mut lab = Lab::new(&[1, 1]);
    for _ in 0..20 {
        lab.run(5.0, &[GOOD; 2]).run(0.1, &[far(200), GOOD]);
    }
    assert!(lab.moves.is_empty(), "{:?}", lab.moves);
}

#[test]
fn losses_that_both_have_do_not_make_flows_swing() {
    for (loss, traffic, most_a_minute) in
        [(0.001, 0, 0.2), (0.01, 0, 3.0), (0.05, 0, 4.0), (0.01, 100, 3.0), (0.05, 100, 1.0)]
    {
        let mut lab = Lab::new(&[1, 1]);
        lab.run(3600.0, &[Way { loss, traffic, ..GOOD }; 2]);
        let a_minute = lab.moves.len() as f64 / 60.0;
        assert!(a_minute <= most_a_minute, "{loss} with {traffic}: {a_minute} moves a minute");
    }
}

#[test]
fn four_fifths_are_on_the_good_channel_within_three_seconds_and_come_back() {
    let lossy = |traffic| Way { loss: 0.05, traffic, ..GOOD };
    let with = |base: u32, way: Way| (Way { rtt: way.rtt + base * MS, ..way }, far(base));
    for (name, (bad, good)) in [
        ("50 ms more", with(0, far(50))),
        ("50 ms more on 20 ms", with(20, far(50))),
        ("5 % loss seen by traffic", with(0, lossy(20))),
        ("5 % loss on 5 ms", with(5, lossy(100))),
    ] {
        let mut lab = Lab::new(&[1, 1]);
        lab.run(20.0, &[Way { loss: 0.0, rtt: good.rtt, ..bad }, good]);
        assert_eq!(lab.slots(A), 4, "{name}");
        lab.run(3.0, &[bad, good]);
        assert!(lab.slots(B) >= 7, "{name}: {:?}", lab.channels.slots());
        lab.run(30.0, &[bad, good]);
        assert!(lab.slots(B) >= 7, "{name}: it stays there");
        lab.moves.clear();
        lab.run(30.0, &[Way { loss: 0.0, rtt: good.rtt, ..bad }, good]);
        assert_eq!(lab.slots(A), 4, "{name}: it recovered");
        assert!(lab.moves.len() <= 4, "{name}: {:?}", lab.moves);
        lab.moves.clear();
        lab.run(60.0, &[good; 2]);
        assert!(lab.moves.is_empty(), "{name}");
    }
}

/// Servers behind the same channels.
struct Labs {
    labs: Vec<Lab>,
}

impl Labs {
    /// Servers with so many channels each.
    fn new(channels: &[u16], seed: u64) -> Self {
        let lab = |(number, channels): (u64, &u16)| {
            let mut lab = Lab::new(&vec![1; usize::from(*channels)]);
            lab.random = seed << 8 | number;
            lab
        };
        Self { labs: (1..).zip(channels).map(lab).collect() }
    }

    /// As `ways` are for each server.
    fn run(&mut self, seconds: f64, ways: &[&[Way]]) -> &mut Self {
        for _ in 0..(seconds * 10.0).round() as u32 {
            for (lab, ways) in self.labs.iter_mut().zip(ways) {
                lab.run(0.1, ways);
            }
            for key in [A, B] {
                let probes = self.labs.iter().filter_map(|lab| lab.channels.probes(lab.now).find(|(of, _)| *of == key));
                let counts: Vec<_> = probes.map(|(_, counts)| counts).collect();
                let rate = pool::sure_rate(&counts, &Settings::default());
                self.labs.iter_mut().for_each(|lab| lab.channels.set_shared(key, rate));
            }
        }
        self
    }

    /// Slots of all servers on a channel.
    fn slots(&self, key: ChannelKey) -> usize {
        self.labs.iter().map(|lab| lab.slots(key)).sum()
    }
}

#[test]
fn what_is_lost_of_all_servers_probes_tells_of_their_channel_sooner() {
    let lossy = [Way { loss: 0.0975, ..GOOD }, GOOD];
    for (servers, least) in [(1, 50), (2, 70), (4, 90)] {
        let in_time = |seed: &u64| {
            let mut labs = Labs::new(&vec![2; servers], *seed);
            labs.run(20.0, &vec![&[GOOD; 2][..]; servers]).run(3.0, &vec![&lossy[..]; servers]);
            labs.slots(B) * 10 >= 8 * servers * PATH_SLOTS
        };
        let count = (1..=100).filter(in_time).count();
        assert!(count >= least, "{servers} servers: {count} of 100");
    }
}

#[test]
fn what_one_server_loses_is_not_lost_by_others() {
    let lossy = [Way { loss: 0.1, ..GOOD }; 2];
    for (name, channels, first) in [
        ("it loses on both", [2, 2, 2, 2], &lossy[..]),
        ("it has one channel and loses", [1, 2, 2, 2], &lossy[..1]),
        ("it is dead", [2, 2, 2, 2], &[DEAD; 2]),
        ("it has one channel and is dead", [1, 2, 2, 2], &[DEAD]),
    ] {
        let mut labs = Labs::new(&channels, 7);
        let good: &[Way] = &[GOOD; 2];
        labs.run(20.0, &[&good[..usize::from(channels[0])], good, good, good]);
        labs.labs.iter_mut().for_each(|lab| lab.moves.clear());
        labs.run(120.0, &[first, good, good, good]);
        for lab in &labs.labs[1..] {
            assert!(lab.moves.is_empty(), "{name}: {:?}", lab.moves);
        }
    }
}

#[test]
fn losses_that_all_servers_have_on_both_channels_do_not_make_flows_swing() {
    for (loss, most_a_minute) in [(0.001, 0.6), (0.01, 4.0), (0.05, 4.0)] {
        let ways = [Way { loss, ..GOOD }; 2];
        let mut labs = Labs::new(&[2; 8], 3);
        labs.run(600.0, &[&ways[..]; 8]);
        let a_minute = labs.labs.iter().map(|lab| lab.moves.len()).sum::<usize>() as f64 / 8.0 / 10.0;
        assert!(a_minute <= most_a_minute, "{loss}: {a_minute} moves a minute of each server");
    }
}

#[test]
fn a_channel_that_loses_and_recovers_in_turn_moves_flows_at_most_every_hold_time() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(10.0, &[GOOD; 2]);
    for _ in 0..60 {
        lab.run(0.5, &[far(50), GOOD]).run(0.5, &[GOOD; 2]);
    }
    assert!(lab.moves.len() <= 3, "it stays off a channel that swings: {:?}", lab.moves);
}

#[test]
fn the_third_missed_probe_moves_all_slots_of_a_channel_and_no_other() {
    let mut lab = Lab::new(&[1, 1, 1]);
    lab.run(5.0, &[GOOD; 3]);
    let before = *lab.channels.slots();
    lab.run(0.2, &[DEAD, GOOD, GOOD]);
    assert_eq!(*lab.channels.slots(), before, "two are not enough");
    let events = lab.channels.probe(A, Err(Failure::Loss), lab.now + 100 * MS);
    assert_eq!(events, [Event::Died { channel: A, cause: Death::ProbesMissed }, Event::Moved]);
    assert_eq!(lab.slots(A), 0);
    for (before, after) in before.iter().zip(lab.channels.slots()) {
        assert!(*before == Some(A) || before == after, "{before:?} became {after:?}");
    }
}

#[test]
fn a_link_that_goes_down_moves_slots_at_once_and_good_probes_bring_them_back() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(5.0, &[GOOD; 2]);
    let events = lab.channels.set_link(A, false, lab.now);
    assert_eq!(events, [Event::Died { channel: A, cause: Death::LinkDown }, Event::Moved]);
    lab.run(10.0, &[GOOD; 2]);
    assert_eq!(lab.slots(A), 0, "probes that get through another way do not count");
    lab.channels.set_link(A, true, lab.now);
    lab.run(1.5, &[GOOD; 2]);
    assert_eq!(lab.slots(A), 0);
    lab.run(3.0, &[GOOD; 2]);
    assert_eq!(lab.slots(A), 4);
}

#[test]
fn a_channel_that_dies_again_and_again_has_to_be_good_for_longer() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(5.0, &[GOOD; 2]);
    let mut waited = Vec::new();
    for _ in 0..3 {
        lab.run(0.3, &[DEAD, GOOD]);
        let died = lab.now;
        while lab.slots(A) == 0 {
            lab.run(0.1, &[GOOD; 2]);
        }
        waited.push((lab.now - died).as_secs_f64());
        lab.run(5.0, &[GOOD; 2]);
    }
    let wanted = [2.0, 4.0, 6.0];
    for (waited, good) in waited.iter().zip(wanted) {
        assert!((good..=good + 1.3).contains(waited), "{waited} s for {good} s of good probes");
    }
    lab.run(200.0, &[GOOD; 2]);
    assert_eq!(lab.channels.explain(lab.now).channels[0].deaths, 0, "it is forgotten");
}

#[test]
fn with_all_dead_the_server_is_unreachable_until_any_channel_works() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(5.0, &[GOOD; 2]).run(1.0, &[DEAD; 2]);
    assert!(!lab.channels.is_reachable());
    assert!(lab.events.contains(&Event::Unreachable));
    assert!(lab.channels.slots().iter().all(Option::is_some), "slots stay as they are");
    lab.run(0.2, &[DEAD, GOOD]);
    assert!(!lab.channels.is_reachable());
    lab.run(0.1, &[DEAD, GOOD]);
    assert!(lab.channels.is_reachable());
    assert_eq!(lab.slots(B), 8);
    assert_eq!(lab.events.last(), Some(&Event::Reachable));
}

#[test]
fn a_single_channel_has_all_slots_however_bad_it_is() {
    let mut lab = Lab::new(&[1]);
    lab.run(30.0, &[Way { loss: 0.2, ..far(300) }]);
    if lab.channels.is_reachable() {
        assert_eq!(lab.slots(A), 8);
    }
    lab.run(1.0, &[DEAD]);
    assert!(!lab.channels.is_reachable());
    lab.run(1.0, &[GOOD]);
    assert_eq!((lab.channels.is_reachable(), lab.slots(A)), (true, 8));
}

#[test]
fn silence_freezes_slots() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(5.0, &[GOOD; 2]);
    lab.channels.channels.get_mut(&A).expect("it is there").heard = Some(Duration::ZERO);
    for _ in 0..100 {
        lab.now += 100 * MS;
        let probed = lab.channels.probe(B, Ok(80 * MS), lab.now);
        let stepped = lab.channels.step(lab.now);
        assert_eq!((probed, stepped), (vec![], vec![]));
    }
    assert_eq!(lab.channels.explain(lab.now).channels[0].state, State::Stale);
}

#[test]
fn a_new_channel_gets_slots_when_it_is_known_to_be_good_and_a_removed_one_leaves_them() {
    let mut lab = Lab::new(&[1]);
    lab.run(5.0, &[GOOD]);
    assert_eq!(lab.channels.set_channel(B, 1, lab.now), []);
    assert_eq!(lab.slots(B), 0);
    lab.run(2.0, &[GOOD; 2]);
    assert_eq!(lab.slots(B), 4);
    assert_eq!(lab.channels.remove_channel(B, lab.now), [Event::Moved]);
    assert_eq!(lab.slots(A), 8);
    lab.channels.remove_channel(A, lab.now);
    assert_eq!(lab.channels.slots(), &[None; PATH_SLOTS]);
}

#[test]
fn what_another_controller_left_is_kept() {
    let mut lab = Lab::new(&[1, 1]);
    let left = [Some(B), Some(B), Some(A), Some(A), Some(A), Some(B), Some(B), Some(A)];
    lab.channels.adopt(&left);
    lab.run(10.0, &[GOOD; 2]);
    assert_eq!(*lab.channels.slots(), left);
}

#[test]
fn handshakes_stand_in_for_probes_that_are_not_made() {
    let mut lab = Lab::new(&[1, 1]);
    for _ in 0..30 {
        lab.now += 100 * MS;
        for (key, ms) in [(A, 60), (B, 2)] {
            let mut handshakes = Histogram::default();
            handshakes.record(ms * MS);
            lab.channels.passive(key, &Passive { sent: 10, resent: 0, handshakes }, lab.now);
        }
        lab.channels.step(lab.now);
    }
    assert_eq!(lab.slots(B), 8);
}

#[test]
fn the_report_says_why_and_keeps_a_minute() {
    let mut lab = Lab::new(&[1, 1]);
    lab.run(100.0, &[GOOD; 2]).run(3.0, &[far(50), GOOD]);
    let report = lab.channels.explain(lab.now);
    let change = report.channels[0].last_change.expect("it lost slots");
    assert!(matches!(change.reason, Reason::Worse { score } if score > 40 * MS), "{change:?}");
    assert_eq!((change.from, change.to, report.channels[0].slots), (4, 0, 0));
    assert_eq!(report.channels[0].history.len(), 60);
    assert!(report.channels[1].share > 0.99);
    lab.run(10.0, &[GOOD; 2]).run(20.0, &[Way { loss: 0.05, traffic: 50, ..GOOD }, GOOD]);
    let change = lab.channels.explain(lab.now).channels[0].last_change.expect("it lost slots");
    assert!(matches!(change.reason, Reason::Loses { .. }), "{change:?}");
    lab.run(1.0, &[DEAD, GOOD]);
    let state = lab.channels.explain(lab.now).channels[0].state;
    assert!(matches!(state, State::Dead { cause: Death::ProbesMissed, .. }), "{state:?}");
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Good(u16, u64),
    Lost(u16),
    Link(u16, bool),
    Capacity(u16, u32),
    Removed(u16),
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let key = 1u16..4;
    prop_oneof![
        8 => (key.clone(), 1u64..200).prop_map(|(key, ms)| Happening::Good(key, ms)),
        6 => key.clone().prop_map(Happening::Lost),
        1 => (key.clone(), any::<bool>()).prop_map(|(key, up)| Happening::Link(key, up)),
        1 => (key.clone(), 0u32..5).prop_map(|(key, capacity)| Happening::Capacity(key, capacity)),
        1 => key.prop_map(Happening::Removed),
        6 => (1u64..1000).prop_map(Happening::Pass),
    ]
}

proptest! {
    #[test]
    fn no_slot_is_ever_on_a_dead_channel_or_without_one_while_another_lives(
        happenings in prop::collection::vec(happening(), 1..300),
    ) {
        let mut channels = Channels::new(Settings::default(), Duration::ZERO);
        let mut now = Duration::ZERO;
        for happening in happenings {
            let before = *channels.slots();
            let events = match happening {
                Happening::Good(key, ms) => channels.probe(ChannelKey(key), Ok(Duration::from_millis(ms)), now),
                Happening::Lost(key) => channels.probe(ChannelKey(key), Err(Failure::Loss), now),
                Happening::Link(key, up) => channels.set_link(ChannelKey(key), up, now),
                Happening::Capacity(key, capacity) => channels.set_channel(ChannelKey(key), capacity, now),
                Happening::Removed(key) => channels.remove_channel(ChannelKey(key), now),
                Happening::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    channels.step(now)
                }
            };
            let moved = before != *channels.slots();
            prop_assert_eq!(moved, events.contains(&Event::Moved));
            let alive = |key: &ChannelKey| channels.channels.get(key).is_some_and(|channel| channel.dead.is_none());
            let usable = channels.channels.values().any(|channel| channel.dead.is_none());
            if usable {
                for slot in channels.slots() {
                    prop_assert!(slot.as_ref().is_some_and(alive), "{:?} after {:?}", channels.slots(), happening);
                }
            }
            prop_assert_eq!(
                channels.is_reachable(),
                channels.channels.is_empty() || channels.channels.values().any(|channel| channel.dead.is_none())
            );
        }
    }
}
