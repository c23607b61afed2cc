//! Several channels lead to each server: the better one is used, and no flow breaks when it changes.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use loadbalancer::api::types::channels::{ChannelsReport, ServerChannels};
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::impair::Impairment;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::hold::Protocol;

use loadbalancer_common::backend::PATH_SLOTS;

use super::world::{Setup, World};

pub fn trials() -> Vec<Trial> {
    trials![
        #[alone]
        flows_leave_a_channel_that_dies_silently_and_come_back,
        #[alone]
        flows_prefer_the_channel_that_is_better_and_come_back_without_flapping,
        #[alone]
        flows_leave_an_interface_that_goes_down_at_once_and_return_to_it,
        a_server_without_a_usable_channel_says_so_and_serves_again,
        policy_routes_of_channels_go_with_the_controller_and_after_a_crash_with_the_next,
    ]
}

/// How soon flows move is measured by the bench: a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// With 20 probes a second, one loss in twenty is certain enough within three seconds in four of five cases; that it is not within
/// this time has a probability of 0.2^20 < 10^-13.
const CERTAIN: Duration = Duration::from_secs(60);

fn setup(mode: &'static str) -> Setup {
    Setup::new(mode).check().with(|setup| {
        setup.lab = LabConfig { clients: 2, servers: 2, channels: 2, ..LabConfig::default() };
        if mode == "nat" {
            setup.keys += "nat_source = [\"10.77.200.1\", \"fd77:200::1\"]\n";
        }
    })
}

/// Round-trip times below this one are alike, so that what a busy machine adds to them moves no slots. Delays of a test are longer.
const ALIKE: &str = "score_floor = \"30ms\"";

fn ready(world: &World) {
    for server in &world.lab.servers {
        world.gateway.wait_server(&server.name, "up").unwrap_or_else(|error| panic!("{error}"));
    }
}

fn report(world: &World) -> ChannelsReport {
    serde_json::from_str(&world.gateway.ask(&["channels", "--json"])).expect("`channels --json` gives a report")
}

/// Slots of a channel, of each server.
fn slots(world: &World, channel: &str) -> Vec<usize> {
    let count = |server: &ServerChannels| server.slots.iter().flatten().filter(|name| *name == channel).count();
    report(world).servers.iter().map(count).collect()
}

/// Waits until a condition on the slots of a channel holds at each server; gives how long that took.
fn wait_slots(world: &World, channel: &str, at_most: Duration, condition: impl Fn(usize) -> bool) -> Duration {
    let begun = Instant::now();
    let what = format!("slots of {channel} are as they should be");
    wait_until(&what, at_most, || slots(world, channel).iter().all(|slots| condition(*slots)))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["channels"]), world.gateway.log()));
    begun.elapsed()
}

fn is_shared(slots: usize) -> bool {
    (3..=5).contains(&slots)
}

fn flows_leave_a_channel_that_dies_silently_and_come_back() {
    for mode in ["nat", "dnat", "dsr-ipip", "dsr-gue"] {
        let world = setup(mode).with(|setup| setup.channel_quality = ALIKE).up();
        let vip = vip4(1).into();
        wait_slots(&world, "channel1", PATIENCE, is_shared);
        ready(&world);
        let tcp = world.hold(vip, Protocol::Tcp, 40);
        let udp = world.hold(vip, Protocol::Udp, 20);
        world.lab.channels[0].relay.set(Impairment::CUT);
        let took = wait_slots(&world, "channel1", PATIENCE, |slots| slots == 0);
        println!("{mode}: moved {took:?} after the cut");
        world.assert_held(&tcp);
        world.assert_held(&udp);
        world.lab.channels[0].relay.set(Impairment::NONE);
        wait_slots(&world, "channel1", 2 * PATIENCE, is_shared);
        world.assert_held(&tcp);
        assert!(world.gateway.log().contains("a channel is back"), "{}", world.gateway.log());
    }
}

fn flows_prefer_the_channel_that_is_better_and_come_back_without_flapping() {
    let cases = [
        ("nat", ALIKE, Impairment::delay(Duration::from_millis(50))),
        ("dsr-ipip", ALIKE, Impairment::delay(Duration::from_millis(50))),
        // What a loss in twenty costs is about as much as the floor above.
        ("dsr-gue", "", Impairment::loss(0.05)),
    ];
    for (mode, alike, impairment) in cases {
        let world = setup(mode).with(|setup| setup.channel_quality = alike).up();
        let vip = vip4(1).into();
        wait_slots(&world, "channel1", PATIENCE, is_shared);
        ready(&world);
        let held = world.hold(vip, Protocol::Tcp, 40);
        world.lab.channels[0].relay.set(impairment);
        let took = wait_slots(&world, "channel1", CERTAIN, |slots| slots <= 1);
        println!("{mode}: moved {took:?} after {impairment:?}");
        world.assert_held(&held);
        world.lab.channels[0].relay.set(Impairment::NONE);
        let took = wait_slots(&world, "channel1", 3 * PATIENCE, is_shared);
        println!("{mode}: back {took:?} after recovery");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            let slots = slots(&world, "channel1");
            assert!(slots.iter().all(|slots| (1..PATH_SLOTS).contains(slots)), "it flaps: {slots:?}");
            std::thread::sleep(Duration::from_millis(250));
        }
        world.assert_held(&held);
    }
}

fn flows_leave_an_interface_that_goes_down_at_once_and_return_to_it() {
    for mode in ["nat", "dsr-ipip"] {
        let world = setup(mode).with(|setup| setup.channel_quality = ALIKE).up();
        let vip = vip4(1).into();
        wait_slots(&world, "channel2", PATIENCE, is_shared);
        ready(&world);
        let held = world.hold(vip, Protocol::Tcp, 40);
        let channel = &world.lab.channels[1];
        channel.link_down().expect("taken down");
        let took = wait_slots(&world, "channel2", PATIENCE, |slots| slots == 0);
        println!("{mode}: moved {took:?} after the interface went down");
        world.assert_held(&held);
        let table = world.gateway.ask(&["channels"]);
        assert!(table.contains("interface or next hop gone"), "{table}");
        channel.link_up().expect("brought up");
        wait_slots(&world, "channel2", 2 * PATIENCE, is_shared);
        world.assert_held(&held);
    }
}

fn a_server_without_a_usable_channel_says_so_and_serves_again() {
    let world = setup("nat").up();
    ready(&world);
    world.lab.channels.iter().for_each(|channel| channel.relay.set(Impairment::CUT));
    let unusable = |world: &World| report(world).servers.iter().all(|server| !server.reachable);
    wait_until("no channel is left", PATIENCE, || unusable(&world))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    let pins = world.gateway.pins.display().to_string();
    let backends = world.gateway.ask(&["backends", "--pins", &pins]);
    assert!(backends.contains("probes are lost on all of its channels") || backends.contains("down"), "{backends}");
    world.try_seen(0, vip4(1).into()).expect_err("nothing is reachable");
    world.lab.channels[1].relay.set(Impairment::NONE);
    wait_until("a channel is back", 2 * PATIENCE, || world.try_seen(0, vip4(1).into()).is_ok())
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["channels"]), world.tell()));
}

fn policy_routes_of_channels_go_with_the_controller_and_after_a_crash_with_the_next() {
    let mut world = setup("nat").up();
    let rules = |world: &World, family: &str| {
        let mut command = world.lab.gateway.namespace.command("ip");
        let output = command.args([family, "rule"]).output().expect("ip is installed");
        String::from_utf8_lossy(&output.stdout).matches("0x4c42").count()
    };
    let routes = |world: &World| {
        let list = |family: &&str| {
            let mut command = world.lab.gateway.namespace.command("ip");
            let output = command.args([family, "route", "show", "table", "all", "proto", "76"]).output();
            String::from_utf8_lossy(&output.expect("ip is installed").stdout).lines().count()
        };
        ["-4", "-6"].iter().map(list).sum::<usize>()
    };
    for family in ["-4", "-6"] {
        assert_eq!(rules(&world, family), 2, "one for each channel");
    }
    assert_eq!(routes(&world), 4, "one for each channel and family");
    world.gateway.stop(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(rules(&world, "-4"), 2, "nobody could remove them");
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rules(&world, "-4"), 2);
    world.gateway.stop(nix::sys::signal::Signal::SIGTERM);
    assert_eq!((rules(&world, "-4") + rules(&world, "-6"), routes(&world)), (0, 0));
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    world.gateway.stop(nix::sys::signal::Signal::SIGKILL);
    let pins = world.gateway.pins.display().to_string();
    let output = world.gateway.cli(&["detach", "--pins", &pins]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((rules(&world, "-4") + rules(&world, "-6"), routes(&world)), (0, 0));
}
