//! Measured quality decides: slow and failing servers lose their share, and standby servers help.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use decide::quality::eject::Cause;
use decide::quality::explain::Reason;
use decide::standby::explain::Phase;
use libtest_mimic::Trial;
use loadbalancer::api::types::quality::ServerQuality;
use loadbalancer::api::types::{QualityReport, QueueReport, StandbyReport};
use loadbalancer_tests::chance;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::agent::Agent;
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::load::Pace;
use loadbalancer_tests::traffic::server::AGENT_PORT;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup, World};

pub fn trials() -> Vec<Trial> {
    trials![
        #[alone]
        a_slow_server_loses_its_share_says_why_and_gets_it_back,
        a_new_controller_goes_on_with_the_weights_that_it_finds,
        #[alone]
        a_fast_check_does_not_hide_a_slow_monitor,
        a_server_whose_monitor_gets_errors_is_ejected_and_live_flows_stay,
        a_standby_server_whose_hook_fails_or_hangs_is_told_and_another_takes_its_place,
        #[alone]
        a_standby_server_serves_while_quality_is_low_and_is_given_back_without_breaking_a_flow,
        an_agents_word_is_followed_and_nonsense_changes_nothing,
        #[alone]
        marks_follow_latency_and_what_servers_cannot_do_yet_waits,
    ]
}

/// For what follows what is measured.
const LONG: Duration = Duration::from_secs(60);
/// Checks that wait for answers, as clients do.
const HTTP: &str = "check = { type = \"http\", interval = \"100ms\", timeout = \"1s\", port = 80 }\n";

fn report(world: &World, server: &str) -> ServerQuality {
    let text = world.gateway.ask(&["quality", "--json"]);
    let report: QualityReport = serde_json::from_str(&text).expect("`quality --json` gives a report");
    let mut servers = report.services.into_iter().flat_map(|service| service.servers);
    servers.find(|candidate| candidate.name == server).expect("the server is there")
}

fn wait_report(world: &World, server: &str, what: &str, at_most: Duration, condition: impl Fn(&ServerQuality) -> bool) {
    wait_until(&format!("{server} {what}"), at_most, || condition(&report(world, server)))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["quality"]), world.gateway.log()));
}

fn a_slow_server_loses_its_share_says_why_and_gets_it_back() {
    let world = Setup::new("nat").with(|setup| setup.keys += HTTP).up();
    let slow = &world.servers[1];
    wait_report(&world, "server2", "is known", SOON, |it| it.badness.is_some());
    slow.set_behaviour(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() });
    wait_report(&world, "server2", "has lost its share", LONG, |it| it.published_share < 0.05);
    let change = report(&world, "server2").last_change.expect("it was changed");
    assert!(matches!(change.reason, Reason::Slower { slowness } if slowness > 3.0), "{change:?}");
    let load = world.requests(vip4(1).into(), 500);
    let count = load.by_server.get("server2").copied().unwrap_or_default();
    assert!(count <= *chance::counts(load.ok, 0.05).end(), "{:?}", load.by_server);
    let table = world.gateway.ask(&["quality"]);
    assert!(table.contains("x the middle's latency"), "{table}");
    slow.set_behaviour(Behaviour::default());
    wait_report(&world, "server2", "gets its share back", LONG, |it| it.published_share > 0.1);
}

/// A check that only connects, and a monitor that waits for answers.
const TCP_AND_HTTP: &str = "check = { type = \"tcp\", interval = \"100ms\", timeout = \"300ms\", port = 80 }\n\
                            monitors = [{ type = \"http\", interval = \"100ms\", timeout = \"1s\", port = 80 }]\n";

fn a_new_controller_goes_on_with_the_weights_that_it_finds() {
    let mut world = Setup::new("nat").with(|setup| setup.keys += TCP_AND_HTTP).up();
    let vip = vip4(1).into();
    wait_report(&world, "server2", "is known", SOON, |it| it.badness.is_some());
    world.servers[1].set_behaviour(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() });
    wait_report(&world, "server2", "has lost its share", LONG, |it| it.published_share < 0.05);
    world.servers[2].set_behaviour(Behaviour { status: 500, ..Behaviour::default() });
    wait_report(&world, "server3", "is ejected", SOON, |it| it.ejection.is_some());
    let load = world.load(vip, |load| load.max_time = Duration::from_secs(60));
    assert_eq!(world.gateway.stop(Signal::SIGKILL), None, "killed by a signal");
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    let slow = report(&world, "server2");
    assert!(slow.published_share < 0.08, "{}", world.gateway.ask(&["quality"]));
    let ejection = report(&world, "server3").ejection;
    assert_eq!(ejection.map(|it| it.cause), Some(Cause::Before), "{}", world.gateway.ask(&["quality"]));
    wait_report(&world, "server2", "is known again", SOON, |it| it.badness.is_some());
    assert!(report(&world, "server2").published_share < 0.08, "{}", world.gateway.ask(&["quality"]));
    let load = load.stop();
    world.assert_clean(&load);
    let count = load.by_server.get("server2").copied().unwrap_or_default();
    assert!(count <= *chance::counts(load.ok, 0.08).end(), "{:?}", load.by_server);
    assert!(!load.by_server.contains_key("server3"), "{:?}", load.by_server);
}

fn a_fast_check_does_not_hide_a_slow_monitor() {
    let world = Setup::new("nat").with(|setup| setup.keys += TCP_AND_HTTP).up();
    wait_report(&world, "server2", "is known", SOON, |it| it.signal.as_deref() == Some("monitor1"));
    world.servers[1].set_behaviour(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() });
    wait_report(&world, "server2", "has lost its share", LONG, |it| it.published_share < 0.05);
    let table = world.gateway.ask(&["quality"]);
    assert!(table.lines().any(|line| line.contains("server2") && line.contains("monitor1")), "{table}");
}

fn a_server_whose_monitor_gets_errors_is_ejected_and_live_flows_stay() {
    let keys = "check = { type = \"tcp\", interval = \"100ms\", timeout = \"300ms\", port = 80 }\n\
                monitors = [{ type = \"http\", interval = \"100ms\", timeout = \"300ms\", port = 80 }]\n";
    let world = Setup::new("nat").with(|setup| setup.keys += keys).up();
    let vip = vip4(1).into();
    wait_report(&world, "server3", "is known", SOON, |it| it.badness.is_some());
    let held = world.hold(vip, Protocol::Tcp, 40);
    world.servers[2].set_behaviour(Behaviour { status: 500, ..Behaviour::default() });
    // Within three seconds, as the bench has it.
    wait_report(&world, "server3", "is ejected", SOON, |it| it.ejection.is_some());
    let load = world.requests(vip, 200);
    assert!(!load.by_server.contains_key("server3"), "{:?}", load.by_server);
    world.assert_held(&held);
    let state = world.gateway.ask(&["backends", "--pins", &world.gateway.pins.display().to_string()]);
    assert!(state.contains("ejected"), "{state}");
}

fn standby(world: &World) -> StandbyReport {
    serde_json::from_str(&world.gateway.ask(&["standby", "--json"])).expect("`standby --json` gives a report")
}

fn wait_phase(world: &World, phase: Phase, at_most: Duration) {
    wait_until(&format!("the standby server is {phase:?}"), at_most, || standby(world).servers[0].state == phase)
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["standby"]), world.gateway.log()));
}

/// A directory with a hook of these lines.
fn hook(name: &str, lines: &str) -> (PathBuf, PathBuf) {
    let directory = std::env::temp_dir().join(format!("lb-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("made");
    let hook = directory.join("hook");
    fs::write(&hook, format!("#!/bin/sh\ncd {}\n{lines}\n", directory.display())).expect("written");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("set");
    (directory, hook)
}

fn a_standby_server_whose_hook_fails_or_hangs_is_told_and_another_takes_its_place() {
    for (name, does, told) in [
        ("fails", "echo no machine is free; exit 3", "no machine is free"),
        ("hangs", "echo $$ > pid; sleep 600", "timed out after 500ms"),
    ] {
        // The first of the pool is the one that is tried first.
        let (directory, hook) = hook(name, &format!("[ $LB_SERVER != server3 ] || [ $1 = stop ] || {{ {does}; }}"));
        let hook = hook.display();
        let world = Setup::new("dnat")
            .check()
            .with(|setup| {
                setup.standby = 2;
                setup.standby_keys = format!(
                    "start = [\"{hook}\", \"start\"]\nstop = [\"{hook}\", \"stop\"]\nhook_timeout = \"500ms\"\n"
                );
                setup.keys += "standby = { active_per_weight = 10, hold = \"500ms\", settle = \"0s\", max = 1 }\n";
            })
            .up();
        let held = world.hold(vip4(1).into(), Protocol::Tcp, 40);
        let state = |name: &str| {
            let report = standby(&world);
            report.servers.into_iter().find(|it| it.name == name).expect("it is in the pool").state
        };
        wait_until("another one serves", SOON, || state("server4") == Phase::Serving).unwrap_or_else(|error| {
            panic!("{name}: {error}\n{}\n{}", world.gateway.ask(&["standby"]), world.gateway.log())
        });
        assert_ne!(state("server3"), Phase::Serving, "{name}");
        let table = world.gateway.ask(&["standby"]);
        assert!(table.contains(told), "{name}: {table}");
        assert!(world.gateway.log().contains("standby server failed"), "{name}: {}", world.gateway.log());
        if let Ok(pid) = fs::read_to_string(directory.join("pid")) {
            assert!(!Path::new("/proc").join(pid.trim()).exists(), "{name}: the hook still runs");
        }
        world.assert_held(&held);
        fs::remove_dir_all(directory).expect("removed");
    }
}

fn a_standby_server_serves_while_quality_is_low_and_is_given_back_without_breaking_a_flow() {
    let (directory, hook) = hook("hooks", "echo $1 $LB_SERVICE $LB_SERVER $LB_ADDRESS >> told");
    let told = directory.join("told");
    let hook = hook.display();
    let world = Setup::new("dnat")
        .check()
        .with(|setup| {
            setup.standby = 1;
            setup.standby_keys = format!("start = [\"{hook}\", \"start\"]\nstop = [\"{hook}\", \"stop\"]\n");
            setup.keys +=
                "standby = { active_per_weight = 10, hold = \"500ms\", recovery_for = \"1s\", settle = \"0s\" }\n";
        })
        .up();
    let vip = vip4(1).into();
    assert_eq!(standby(&world).servers[0].state, Phase::Idle);
    let held = world.hold(vip, Protocol::Tcp, 60);
    wait_phase(&world, Phase::Serving, LONG);
    wait_until("the standby server gets flows", SOON, || world.requests(vip, 100).by_server.contains_key("server4"))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    // A tenth of its weight of 20 beside three others: two of five. That of a hundred none is on it has a probability of
    // 0.6^100 < 10^-22.
    let mut flows = (0..100).map(|_| world.hold(vip, Protocol::Tcp, 1));
    let more = flows.find(|flow| flow.by_server().contains_key("server4")).expect("some flow is on it");
    world.assert_held(&more);
    wait_until("its flows are counted", SOON, || standby(&world).servers[0].flows.is_some_and(|flows| flows > 0))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.gateway.ask(&["standby"])));
    drop(held);
    wait_phase(&world, Phase::Draining, LONG);
    world.assert_held(&more);
    drop(more);
    wait_phase(&world, Phase::Idle, LONG);
    let told = fs::read_to_string(&told).expect("the hook wrote");
    assert_eq!(told, "start web server4 10.77.104.2\nstop web server4 10.77.104.2\n");
    fs::remove_dir_all(directory).expect("removed");
}

fn an_agents_word_is_followed_and_nonsense_changes_nothing() {
    let agent = format!("agent = {{ port = {AGENT_PORT}, interval = \"100ms\", timeout = \"300ms\" }}\n");
    let world = Setup::new("dnat").check().with(|setup| setup.keys += &agent).up();
    let vip = vip4(1).into();
    let held = world.hold(vip, Protocol::Tcp, 20);
    let say = |word: &str| world.servers[0].set_agent(Agent::Line(word.to_owned()));
    say("ready up 50%");
    wait_report(&world, "server1", "has half a share", SOON, |it| (it.published_share - 0.5 / 3.5).abs() < 0.02);
    say("purple \u{1f990} elephants");
    wait_until("nonsense is told", SOON, || world.gateway.log().contains("its agent could not be asked"))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.gateway.log()));
    assert_eq!(report(&world, "server1").self_report.weight_percent, 50);
    say("drain");
    wait_report(&world, "server1", "is drained", SOON, |it| !it.serving && it.published_share == 0.0);
    assert!(!world.requests(vip, 100).by_server.contains_key("server1"));
    say("ready up 100% maxconn:3");
    wait_report(&world, "server1", "serves", SOON, |it| it.serving && it.published_share > 0.2);
    wait_until("its mark is set", SOON, || {
        let snapshot = world.gateway.snapshot();
        let server = snapshot.services[0].servers.iter().find(|server| server.name == "server1");
        server.is_some_and(|server| server.high_water == Some(3))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    say("down # disk full");
    wait_report(&world, "server1", "is down", SOON, |it| !it.serving);
    world.assert_held(&held);
}

/// With four workers a mark settles at about nine flows (`quality::marks`).
fn marks_follow_latency_and_what_servers_cannot_do_yet_waits() {
    const WORKERS: u32 = 4;
    // By the traffic, and by checks where replies do not pass the gateway.
    for (mode, check) in [("nat", ""), ("dsr-ipip", HTTP)] {
        let queue = "[service.queue]\nmarks = \"adaptive\"\nadaptive = { min = 2 }\nmax_per_source = 1000\n";
        let world = Setup::new(mode).with(|setup| setup.keys += &format!("{check}{queue}")).up();
        let behaviour = Behaviour::workers(WORKERS, Duration::from_millis(50));
        world.servers.iter().for_each(|server| server.set_behaviour(behaviour));
        let load = world.load(vip4(1).into(), |load| {
            let per_second = 1.5 * 4.0 * behaviour.capacity();
            load.pace = Pace::Poisson { per_second, max_in_flight: 5_000, seed: 1 };
            (load.timeout, load.max_time) = (SOON, Duration::from_secs(60));
        });
        let flows = |it: &ServerQuality| it.mark.as_ref().map_or(0, |mark| mark.flows);
        for server in &world.servers {
            let what = format!("has a mark for its workers in {mode}");
            wait_report(&world, server.name(), &what, LONG, |it| flows(it) > WORKERS);
        }
        for _ in 0..20 {
            for server in &world.servers {
                let (report, has) = (report(&world, server.name()), server.counts().in_flight);
                assert!(flows(&report) <= 4 * WORKERS && has <= u64::from(4 * WORKERS), "{mode}: {has} {report:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let queue = world.gateway.ask(&["queue", "--json"]);
        let queue: QueueReport = serde_json::from_str(&queue).expect("a report");
        assert!(queue.services[0].waiting > 0, "{queue:?}");
        let table = world.gateway.ask(&["quality"]);
        assert!(table.contains("flows at most, baseline "), "{table}");
        drop(load);
    }
}
