//! Several channels lead to each server: the better one is used, and no flow breaks when it changes.

use std::time::{Duration, Instant};

use loadbalancer::control::channels::{Report, ServerReport};
use loadbalancer_tests::support::events::wait_until;
use loadbalancer_tests::support::hold::Protocol;
use loadbalancer_tests::support::impair::Impairment;
use loadbalancer_tests::support::lab::vip4;
use loadbalancer_tests::support::plan::LabConfig;

use super::world::{Setup, World};

/// What a probe takes at most until it counts as missed, three times, and what the message of it may take.
const THIRD_MISS: Duration = Duration::from_millis(100 + 3 * 300);
const MOVED: Duration = Duration::from_millis(500);

fn setup(mode: &'static str) -> Setup {
    Setup::new(mode).check().with(|setup| {
        setup.lab = LabConfig { clients: 2, servers: 2, channels: 2, ..LabConfig::default() };
        if mode == "nat" {
            setup.keys += "nat_source = [\"10.77.200.1\", \"fd77:200::1\"]\n";
        }
    })
}

fn ready(world: &World) {
    for server in &world.lab.servers {
        world.gateway.wait_server(&server.name, "up").unwrap_or_else(|error| panic!("{error}"));
    }
}

fn report(world: &World) -> Report {
    serde_json::from_str(&world.gateway.ask(&["channels", "--json"])).expect("`channels --json` gives a report")
}

/// Slots of a channel, of each server.
fn slots(world: &World, channel: &str) -> Vec<usize> {
    let count = |server: &ServerReport| server.slots.iter().flatten().filter(|name| *name == channel).count();
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

#[test]
fn flows_leave_a_channel_that_dies_silently_and_come_back() {
    for mode in ["nat", "dnat", "dsr-ipip", "dsr-gue"] {
        let world = setup(mode).up();
        let vip = vip4(1).into();
        wait_slots(&world, "channel1", Duration::from_secs(5), is_shared);
        ready(&world);
        let tcp = world.hold(vip, Protocol::Tcp, 40);
        let udp = world.hold(vip, Protocol::Udp, 20);
        world.lab.channels[0].relay.set(Impairment::CUT);
        let took = wait_slots(&world, "channel1", THIRD_MISS + MOVED, |slots| slots == 0);
        println!("{mode}: moved {took:?} after the cut");
        world.assert_held(&tcp);
        world.assert_held(&udp);
        world.lab.channels[0].relay.set(Impairment::NONE);
        wait_slots(&world, "channel1", Duration::from_secs(20), is_shared);
        world.assert_held(&tcp);
        assert!(world.gateway.log().contains("a channel is back"), "{}", world.gateway.log());
    }
}
