//! An original keeps what it can serve well, and its mirrors help with the rest.

use std::net::SocketAddr;
use std::time::Duration;

use decide::tiers::explain::{Course, Role};
use libtest_mimic::Trial;
use loadbalancer::api::types::QualityReport;
use loadbalancer::api::types::quality::TierHelp;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::hold::{Held, Hold, Protocol};
use loadbalancer_tests::traffic::load::{Pace, RunningLoad};

use super::world::{SOON, Setup, World};

pub fn trials() -> Vec<Trial> {
    trials![
        #[alone]
        mirrors_help_while_the_original_cannot_serve_all_well_and_no_flow_breaks,
        #[alone]
        the_mirrors_take_over_from_an_original_that_is_down_and_give_back_step_by_step,
    ]
}

/// Requests a second that the original can serve.
const CAPACITY: f64 = 200.0;
const LEVEL_S: f64 = 0.15;

fn setup() -> Setup {
    Setup::new("nat").check().with(|setup| {
        setup.keys += "passive = \"1/1\"\ntiers = { p90 = \"150ms\", hold = \"500ms\", fall = 0.1 }\n";
        setup.server_keys = ["", "tier = 1", "tier = 1", "tier = 1"];
    })
}

fn tier(world: &World, tier: u8) -> TierHelp {
    let report: QualityReport =
        serde_json::from_str(&world.gateway.ask(&["quality", "--json"])).expect("it is a report");
    let found = report.services.iter().find(|service| service.tier == tier).and_then(|service| service.help);
    found.expect("the service has levels for its tiers")
}

fn wait_tier(world: &World, what: &str, number: u8, at_most: Duration, condition: impl Fn(&TierHelp) -> bool) {
    wait_until(what, at_most, || condition(&tier(world, number)))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["quality"]), world.gateway.log()));
}

fn load(world: &World, of_capacity: f64, seed: u64) -> RunningLoad {
    world.load(vip4(1).into(), |load| {
        load.pace = Pace::Poisson { per_second: of_capacity * CAPACITY, max_in_flight: 10_000, seed };
        load.timeout = Duration::from_secs(30);
        load.max_time = Duration::from_secs(300);
    })
}

/// Flows that say so little that their echoes do not count among the responses.
fn hold(world: &World) -> Held {
    let hold = Hold {
        target: SocketAddr::new(vip4(1).into(), 7),
        protocol: Protocol::Tcp,
        flows: 20,
        every: Duration::from_secs(1),
        timeout: SOON,
        max_time: Duration::from_secs(300),
    };
    let held = hold.start(world.lab.clients[1].namespace()).unwrap_or_else(|error| panic!("{error}"));
    held.wait_exchanges(1, SOON).unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    held
}

/// Flows of which some went to the mirrors, which have a share of a fifth at least: that none of eighty does has a probability of
/// 0.8^80 < 10^-7.
fn hold_on_both(world: &World) -> Held {
    let mut tries = (0..4).map(|_| hold(world));
    tries.find(|held| held.by_server().len() > 1).unwrap_or_else(|| panic!("none went to a mirror\n{}", world.tell()))
}

/// Answers of the original and of all, while so many come.
fn answers(world: &World, loads: &[&RunningLoad], count: u64) -> (u64, u64) {
    let read = || {
        let reports = loads.iter().map(|load| load.report());
        reports.fold((0, 0), |(original, all), report| {
            (original + report.by_server.get("server1").copied().unwrap_or_default(), all + report.ok)
        })
    };
    let before = read();
    wait_until("requests are answered", Duration::from_secs(60), || read().1 >= before.1 + count)
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    let after = read();
    (after.0 - before.0, after.1 - before.1)
}

fn mirrors_help_while_the_original_cannot_serve_all_well_and_no_flow_breaks() {
    let world = setup().up();
    for server in &world.lab.servers {
        world.gateway.wait_server(&server.name, "up").unwrap_or_else(|error| panic!("{error}"));
    }
    world.servers[0].set_behaviour(Behaviour::workers(4, Duration::from_millis(20)));
    let base = load(&world, 0.4, 1);
    let (original, all) = answers(&world, &[&base], 300);
    assert_eq!(original, all, "within its level the original keeps everything");
    let early = hold(&world);
    assert_eq!(early.by_server().len(), 1, "{:?}", early.by_server());

    let surge = load(&world, 1.1, 2);
    wait_tier(&world, "the mirrors help", 1, SOON, |it| it.role == Role::Helps && it.share > 0.2);
    let well = |it: &TierHelp| it.nearest.is_some_and(|nearest| nearest.0.value < LEVEL_S);
    wait_tier(&world, "the original is back within its level", 0, Duration::from_secs(20), well);
    let late = hold_on_both(&world);
    let most = |it: &TierHelp| it.share > 0.55 && well(it);
    wait_tier(&world, "the original has most again", 0, Duration::from_secs(30), most);
    let (original, all) = answers(&world, &[&base, &surge], 3_000);
    let used = original as f64 / all as f64 * 1.5;
    assert!(
        (0.6..1.05).contains(&used),
        "the original serves {used} of its capacity: {}",
        world.gateway.ask(&["quality"])
    );
    let told = world.gateway.ask(&["quality"]);
    assert!(told.contains("web (tier 1): helps tier 0 with") && told.contains("its p90 is"), "{told}");

    let surge = surge.stop();
    world.assert_clean(&surge);
    wait_tier(&world, "the mirrors help no more", 1, Duration::from_secs(60), |it| it.role == Role::Waits);
    wait_tier(&world, "the original is alone", 0, SOON, |it| it.course == Course::Alone);
    let (original, all) = answers(&world, &[&base], 300);
    assert!(all - original <= 2, "{} of {all} new flows went to mirrors", all - original);
    world.assert_clean(&base.stop());
    world.assert_held(&early);
    world.assert_held(&late);
    let log = world.gateway.log();
    assert!(log.contains("a tier helps the first") && log.contains("a tier helps no more"), "{log}");
}

fn the_mirrors_take_over_from_an_original_that_is_down_and_give_back_step_by_step() {
    let mut world = setup().up();
    for server in &world.lab.servers {
        world.gateway.wait_server(&server.name, "up").unwrap_or_else(|error| panic!("{error}"));
    }
    let vip = vip4(1).into();
    world.servers[0].stop(loadbalancer_tests::traffic::server::Live::Reset);
    wait_tier(&world, "the mirrors are first", 1, SOON, |it| it.role == Role::First);
    // Longer than `hold`: an original that is away for less begins where it was.
    let report = world.load(vip, |load| load.max_time = Duration::from_secs(1)).wait();
    world.assert_clean(&report);
    assert!(!report.by_server.contains_key("server1"), "{:?}", report.by_server);
    world.servers[0].restart().unwrap_or_else(|error| panic!("{error}"));
    wait_tier(&world, "the original is first again, and is helped", 0, SOON, |it| {
        it.role == Role::First && it.share < 0.6
    });
    wait_tier(&world, "it has everything", 0, Duration::from_secs(90), |it| it.share == 1.0);
    let report = world.requests(vip, 100);
    assert_eq!(report.by_server.get("server1"), Some(&100), "{:?}", report.by_server);
}
