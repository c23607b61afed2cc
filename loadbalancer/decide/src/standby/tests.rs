//! Services and standby servers on a clock of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::explain::Phase;
use super::need::{Breach, Levels, Quantity};
use super::*;

const S: Duration = Duration::from_secs(1);
const WEB: ServiceKey = ServiceKey(1);
const MAIL: ServiceKey = ServiceKey(2);
const ONE: StandbyKey = StandbyKey(11);
const TWO: StandbyKey = StandbyKey(12);

fn settings() -> ServiceSettings {
    ServiceSettings { levels: Levels { load: Some(100.0), ..Levels::default() }, ..ServiceSettings::default() }
}

fn is_failure(event: &Event) -> bool {
    matches!(event, Event::Failed { .. })
}

/// The pool, and a world in which hooks succeed at once, checks pass after a second and drained servers have so many
/// flows.
struct Lab {
    standby: Standby,
    now: Duration,
    /// Active flows and weight without standby servers.
    load: BTreeMap<ServiceKey, (u64, u64)>,
    hook: Result<(), String>,
    checks_pass: bool,
    flows: u64,
    serving: BTreeMap<StandbyKey, ServiceKey>,
    actions: Vec<(u64, Action)>,
    events: Vec<(u64, Event)>,
}

impl Lab {
    fn new(pool: &[StandbyKey], services: &[(ServiceKey, ServiceSettings)]) -> Self {
        let mut standby = Standby::new(Settings::default());
        for key in pool {
            standby.set_server(*key, 1, Duration::ZERO);
        }
        for (key, settings) in services {
            standby.set_service(*key, settings.clone());
        }
        let load = services.iter().map(|(key, _)| (*key, (0, 1))).collect();
        Self {
            standby,
            now: Duration::ZERO,
            load,
            hook: Ok(()),
            checks_pass: true,
            flows: 0,
            serving: BTreeMap::new(),
            actions: Vec::new(),
            events: Vec::new(),
        }
    }

    fn active(&mut self, key: ServiceKey, active: u64) -> &mut Self {
        self.load.get_mut(&key).expect("it is there").0 = active;
        self
    }

    fn take(&mut self, step: Step) {
        let now_s = self.now.as_secs();
        self.events.extend(step.events.into_iter().map(|event| (now_s, event)));
        for action in step.actions {
            self.actions.push((now_s, action));
            match action {
                Action::RunStartHook { server, .. } => {
                    let step = self.standby.hook_done(server, Hook::Start, self.hook.clone(), self.now);
                    self.take(step);
                }
                Action::RunStopHook { server, .. } => {
                    let step = self.standby.hook_done(server, Hook::Stop, self.hook.clone(), self.now);
                    self.take(step);
                }
                Action::AddToService { server, service } => {
                    self.serving.insert(server, service);
                }
                Action::DrainFromService { server, .. } | Action::RemoveFromService { server, .. } => {
                    self.serving.remove(&server);
                }
                Action::BeginChecks { .. } => {}
            }
        }
    }

    fn run(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.now += S;
            for server in self.standby.servers.keys().copied().collect::<Vec<_>>() {
                let step = self.standby.checked(server, self.checks_pass, self.now);
                self.take(step);
                self.standby.set_flows(server, self.flows);
            }
            let level = |(key, (active, weight)): (&ServiceKey, &(u64, u64))| {
                let more = self.serving.values().filter(|service| *service == key).count() as u64;
                (*key, Level { active: *active, weight: weight + more, ..Level::default() })
            };
            let levels = self.load.iter().map(level).collect();
            let step = self.standby.step(&levels, self.now);
            self.take(step);
        }
        self
    }

    fn leased(&self) -> Vec<(u64, StandbyKey, ServiceKey)> {
        let leased = |(at, event): &(u64, Event)| match event {
            Event::Leased { server, service, .. } => Some((*at, *server, *service)),
            _ => None,
        };
        self.events.iter().filter_map(leased).collect()
    }

    fn phase(&self, key: StandbyKey) -> Phase {
        let report = self.standby.explain(self.now);
        report.servers.iter().find(|server| server.server == key).expect("it is in the pool").state
    }
}

#[test]
fn a_service_in_need_gets_a_server_that_serves_within_two_seconds_of_the_decision_and_gives_it_back() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    lab.active(WEB, 101).run(60);
    let [(decided, ONE, WEB)] = lab.leased()[..] else { panic!("{:?}", lab.events) };
    assert_eq!(decided, 11, "10 s above the level");
    assert!(lab.events.contains(&(decided + 1, Event::Serves { server: ONE, service: WEB })), "{:?}", lab.events);
    lab.active(WEB, 40).run(300);
    let told: Vec<Event> = lab.events.iter().map(|(_, event)| event.clone()).skip(2).collect();
    let drains = Event::Drains { server: ONE, service: WEB, why: Release::Recovered };
    assert_eq!(told, [drains, Event::Returned { server: ONE }]);
    let actions: Vec<Action> = lab.actions.iter().map(|(_, action)| *action).collect();
    let (server, service) = (ONE, WEB);
    assert_eq!(
        actions,
        [
            Action::RunStartHook { server, service },
            Action::BeginChecks { server, service },
            Action::AddToService { server, service },
            Action::DrainFromService { server, service },
            Action::RemoveFromService { server, service },
            Action::RunStopHook { server, service },
        ]
    );
}

#[test]
fn short_peaks_lease_nothing() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    for _ in 0..20 {
        lab.active(WEB, 500).run(9).active(WEB, 90).run(2);
    }
    assert_eq!(lab.leased(), []);
}

#[test]
fn every_quantity_leads_to_a_lease_with_its_reason() {
    let levels = Levels { p90: Some(Duration::from_millis(200)), failures: Some(0.05), load: Some(100.0) };
    let good = Level { p90: Some(Duration::from_millis(50)), failures: 0.0, active: 10, weight: 2 };
    for (level, of) in [
        (Level { p90: Some(Duration::from_millis(300)), ..good }, Quantity::P90),
        (Level { failures: 0.06, ..good }, Quantity::Failures),
        (Level { active: 201, ..good }, Quantity::Load),
        (Level { weight: 0, ..good }, Quantity::Servers),
    ] {
        let mut standby = Standby::new(Settings::default());
        standby.set_server(ONE, 1, Duration::ZERO);
        standby.set_service(WEB, ServiceSettings { levels, ..settings() });
        let mut events = Vec::new();
        for second in 0..12 {
            events.extend(standby.step(&BTreeMap::from([(WEB, level)]), S * second).events);
        }
        let [Event::Leased { why: Why::Need(breach), .. }] = events[..] else { panic!("{of:?}: {events:?}") };
        assert_eq!(breach.of, of);
    }
}

#[test]
fn between_recovery_and_level_nothing_happens() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, settings())]);
    lab.active(WEB, 150).run(30);
    let before = lab.events.len();
    lab.run(1000);
    assert_eq!(lab.events.len(), before, "75 is neither above 100 nor can one be spared");
}

#[test]
fn the_busier_of_two_services_comes_first_and_the_other_is_told_to_wait() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings()), (MAIL, settings())]);
    lab.active(WEB, 150).active(MAIL, 400).run(60);
    assert_eq!(lab.leased(), [(11, ONE, MAIL)]);
    let empty: Vec<_> = lab.events.iter().filter(|(_, event)| matches!(event, Event::PoolEmpty { .. })).collect();
    assert_eq!(empty.len(), 2, "each once: {empty:?}");
    let waits: Vec<_> = lab.standby.explain(lab.now).services.iter().map(|service| service.waits).collect();
    assert_eq!(waits, [Some(Waits::PoolEmpty); 2]);
    lab.active(MAIL, 10).run(120);
    assert_eq!(lab.leased().last(), Some(&(lab.leased()[1].0, ONE, WEB)), "it goes to who needs it");
    let given = lab.events.iter().find_map(|(_, event)| match event {
        Event::Drains { why, .. } => Some(*why),
        _ => None,
    });
    assert_eq!(given, Some(Release::NeededElsewhere));
}

#[test]
fn the_next_server_comes_when_the_last_one_had_time_to_act_and_not_above_the_maximum() {
    let pool = [ONE, TWO, StandbyKey(13), StandbyKey(14)];
    let mut lab = Lab::new(&pool, &[(WEB, ServiceSettings { max: 3, ..settings() })]);
    lab.active(WEB, 1000).run(400);
    let times: Vec<u64> = lab.leased().iter().map(|(at, ..)| *at).collect();
    assert_eq!(times, [11, 52, 93]);
    assert_eq!(lab.standby.explain(lab.now).services[0].waits, Some(Waits::AtMaximum));
}

#[test]
fn the_minimum_is_there_without_any_need_and_stays() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, ServiceSettings { min: 1, ..settings() })]);
    lab.run(1000);
    assert_eq!(lab.leased(), [(1, ONE, WEB)]);
    assert_eq!(lab.phase(ONE), Phase::Serving);
}

#[test]
fn a_hook_that_fails_or_hangs_stops_and_rests_the_server_and_another_one_is_taken() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, settings())]);
    lab.hook = Err("no such machine".to_owned());
    lab.active(WEB, 150).run(12);
    let failed: Vec<&Event> = lab.events.iter().map(|(_, event)| event).filter(|it| is_failure(it)).collect();
    let message = "no such machine".to_owned();
    let problems = [Problem::StartHook(message.clone()), Problem::StopHook(message)];
    for (event, problem) in failed.iter().zip(problems) {
        assert_eq!(**event, Event::Failed { server: ONE, problem });
    }
    assert_eq!((lab.leased().len(), lab.phase(ONE), lab.phase(TWO)), (2, Phase::Failed, Phase::Failed));
    lab.hook = Ok(());
    lab.run(600);
    assert!(lab.serving.values().any(|service| *service == WEB), "it is tried again");

    let mut standby = Standby::new(Settings::default());
    standby.set_server(ONE, 1, Duration::ZERO);
    standby.set_service(WEB, ServiceSettings { min: 1, ..settings() });
    let levels = BTreeMap::new();
    standby.step(&levels, Duration::ZERO);
    assert_eq!(standby.step(&levels, 59 * S).actions, []);
    let step = standby.step(&levels, 60 * S);
    assert!(step.actions.contains(&Action::RunStopHook { server: ONE, service: WEB }), "{step:?}");
    assert_eq!(standby.hook_done(ONE, Hook::Start, Ok(()), 61 * S), Step::default(), "its time is over");
    standby.hook_done(ONE, Hook::Stop, Ok(()), 62 * S);
    assert_eq!(standby.explain(62 * S).servers[0].state, Phase::Failed);
}

#[test]
fn a_server_whose_checks_do_not_pass_never_serves_and_waits_longer_each_time() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    lab.checks_pass = false;
    lab.active(WEB, 150).run(700);
    let failed: Vec<u64> = lab.events.iter().filter(|(_, it)| is_failure(it)).map(|(at, _)| *at).collect();
    assert_eq!(failed, [41, 131, 281, 491], "30 s of checks after 60, 120 and 180 s of rest");
    assert!(!lab.actions.iter().any(|(_, action)| matches!(action, Action::AddToService { .. })));
    lab.checks_pass = true;
    lab.run(300);
    assert_eq!(lab.phase(ONE), Phase::Serving);
}

#[test]
fn a_server_that_goes_down_while_it_serves_is_replaced() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, settings())]);
    lab.active(WEB, 150).run(60);
    assert_eq!(lab.phase(ONE), Phase::Serving);
    for _ in 0..31 {
        lab.standby.checked(ONE, false, lab.now);
        lab.now += S;
        let step = lab.standby.step(&BTreeMap::new(), lab.now);
        lab.take(step);
    }
    assert_eq!(lab.phase(ONE), Phase::Failed);
    lab.run(60);
    assert_eq!(lab.phase(TWO), Phase::Serving);
}

#[test]
fn live_flows_finish_before_a_server_goes_back_and_those_that_never_do_are_given_up() {
    for (flows_end, wanted) in [(Some(60), Phase::Idle), (None, Phase::Draining)] {
        let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
        lab.active(WEB, 150).run(60).active(WEB, 10);
        lab.flows = 3;
        while lab.phase(ONE) == Phase::Serving {
            lab.run(1);
        }
        lab.run(flows_end.unwrap_or(100));
        assert_eq!(lab.phase(ONE), Phase::Draining, "three flows live");
        lab.flows = if flows_end.is_some() { 0 } else { 3 };
        lab.run(2);
        assert_eq!(lab.phase(ONE), wanted);
        lab.run(300);
        assert_eq!(lab.phase(ONE), Phase::Idle);
        let timed_out = lab.events.iter().any(|(_, event)| matches!(event, Event::DrainTimedOut { flows: 3, .. }));
        assert_eq!(timed_out, flows_end.is_none());
    }
}

#[test]
fn a_server_that_is_still_being_drained_is_taken_back_first() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, settings())]);
    lab.flows = 3;
    lab.active(WEB, 150).run(60).active(WEB, 10).run(130);
    assert_eq!(lab.phase(ONE), Phase::Draining);
    lab.active(WEB, 150).run(12);
    assert_eq!((lab.phase(ONE), lab.phase(TWO)), (Phase::Serving, Phase::Idle));
    assert_eq!(lab.serving.get(&ONE), Some(&WEB));
}

#[test]
fn a_need_that_comes_and_goes_keeps_its_server_longer_each_time() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    let mut kept = Vec::new();
    for _ in 0..4 {
        lab.active(WEB, 150);
        while lab.phase(ONE) != Phase::Serving {
            lab.run(1);
        }
        lab.run(60).active(WEB, 10);
        let calm = lab.now;
        while lab.phase(ONE) == Phase::Serving {
            lab.run(1);
        }
        kept.push((lab.now - calm).as_secs());
        lab.run(40);
    }
    assert_eq!(kept, [121, 241, 481, 961]);
}

#[test]
fn a_load_that_only_the_standby_server_keeps_low_does_not_give_it_back() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    lab.active(WEB, 120).run(3600);
    assert_eq!((lab.leased().len(), lab.phase(ONE)), (1, Phase::Serving), "60 each, but 120 for one");
}

#[test]
fn what_is_not_configured_any_more_goes_back() {
    for case in ["service", "server", "maximum"] {
        let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
        lab.active(WEB, 150).run(60);
        match case {
            "service" => lab.standby.remove_service(WEB),
            "server" => lab.standby.remove_server(ONE),
            _ => lab.standby.set_service(WEB, ServiceSettings { max: 0, ..settings() }),
        }
        lab.run(3);
        assert!(lab.serving.is_empty(), "{case}");
        assert!(lab.events.iter().any(|(_, event)| *event == Event::Returned { server: ONE }), "{case}");
        assert_eq!(lab.standby.servers.is_empty(), case == "server");
    }
}

#[test]
fn a_new_controller_goes_on_with_the_leases_of_the_old_one() {
    let mut lab = Lab::new(&[ONE, TWO], &[(WEB, settings())]);
    assert!(lab.standby.adopt(ONE, WEB, false, lab.now));
    assert!(lab.standby.adopt(TWO, WEB, true, lab.now));
    assert!(!lab.standby.adopt(ONE, WEB, false, lab.now), "it is leased already");
    assert!(!lab.standby.adopt(StandbyKey(99), WEB, false, lab.now) && !lab.standby.adopt(TWO, MAIL, false, lab.now));
    lab.serving.insert(ONE, WEB);
    lab.active(WEB, 150).run(10);
    assert_eq!((lab.phase(ONE), lab.phase(TWO), lab.leased().len()), (Phase::Serving, Phase::Idle, 0));
    lab.active(WEB, 10).run(200);
    assert_eq!(lab.phase(ONE), Phase::Idle);
}

#[test]
fn the_report_says_why() {
    let mut lab = Lab::new(&[ONE], &[(WEB, settings())]);
    lab.active(WEB, 150).run(60);
    let report = lab.standby.explain(lab.now);
    let why = Why::Need(Breach { of: Quantity::Load, value: 150.0, level: 100.0 });
    assert_eq!((report.servers[0].state, report.servers[0].why), (Phase::Serving, Some(why)));
    assert_eq!(report.services[0].leases, [ONE]);
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Hook(u32, Hook, bool),
    Checked(u32, bool),
    Flows(u32, u64),
    Step(u64, u64, u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let key = 0u32..4;
    let hook = prop_oneof![Just(Hook::Start), Just(Hook::Stop)];
    prop_oneof![
        (key.clone(), hook, prop::bool::weighted(0.8)).prop_map(|(key, hook, good)| Happening::Hook(key, hook, good)),
        (key.clone(), prop::bool::weighted(0.8)).prop_map(|(key, up)| Happening::Checked(key, up)),
        (key, 0u64..3).prop_map(|(key, flows)| Happening::Flows(key, flows)),
        (1u64..100, 0u64..300, 0u64..300).prop_map(|(seconds, web, mail)| Happening::Step(seconds, web, mail)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_happens_the_pool_keeps_its_rules(happenings in prop::collection::vec(happening(), 1..400)) {
        let pool = 4u32;
        let mut standby = Standby::new(Settings::default());
        for key in 0..pool {
            standby.set_server(StandbyKey(key), 1, Duration::ZERO);
        }
        let limits = [(WEB, 1u32, 2u32), (MAIL, 1, 3)];
        for (key, min, max) in limits {
            standby.set_service(key, ServiceSettings { min, max, ..settings() });
        }
        let mut now = Duration::ZERO;
        // Who has which server by what was asked for, and when it was drained.
        let mut holders: BTreeMap<StandbyKey, ServiceKey> = BTreeMap::new();
        let mut drained: BTreeMap<StandbyKey, (Duration, Option<u64>)> = BTreeMap::new();
        for happening in happenings {
            let mut stepped = false;
            let step = match happening {
                Happening::Hook(key, hook, good) => {
                    standby.hook_done(StandbyKey(key), hook, good.then_some(()).ok_or("no".to_owned()), now)
                }
                Happening::Checked(key, up) => standby.checked(StandbyKey(key), up, now),
                Happening::Flows(key, flows) => {
                    if let Some((_, told)) = drained.get_mut(&StandbyKey(key)) {
                        *told = Some(flows);
                    }
                    standby.set_flows(StandbyKey(key), flows);
                    Step::default()
                }
                Happening::Step(seconds, web, mail) => {
                    now += S * seconds as u32;
                    stepped = true;
                    let level = |active| Level { active, weight: 1, ..Level::default() };
                    standby.step(&BTreeMap::from([(WEB, level(web)), (MAIL, level(mail))]), now)
                }
            };
            for action in step.actions {
                match action {
                    Action::RunStartHook { server, service } => {
                        prop_assert_eq!(holders.insert(server, service), None, "{:?} was leased twice", server);
                    }
                    Action::DrainFromService { server, .. } => {
                        drained.insert(server, (now, None));
                    }
                    Action::AddToService { server, service } => {
                        prop_assert_eq!(holders.get(&server), Some(&service));
                        drained.remove(&server);
                    }
                    Action::RemoveFromService { server, service } => {
                        prop_assert_eq!(holders.remove(&server), Some(service));
                        if let Some((since, flows)) = drained.remove(&server) {
                            let over = now - since >= Settings::default().drain_timeout;
                            prop_assert!(flows == Some(0) || over, "{server:?} had {flows:?} flows");
                        }
                    }
                    Action::BeginChecks { server, service } => prop_assert_eq!(holders.get(&server), Some(&service)),
                    Action::RunStopHook { server, .. } => prop_assert!(!holders.contains_key(&server)),
                }
            }
            for (key, min, max) in limits {
                let leases = standby.leases(key) as u32;
                prop_assert!(leases <= max, "{key:?} has {leases}");
                let free = standby.free(now).is_some();
                prop_assert!(!stepped || leases >= min || !free, "{key:?} has {leases}, and one is free");
            }
        }
    }
}
