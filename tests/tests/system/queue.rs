//! Connections that no server takes wait, and are served when one does.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use loadbalancer::queue::report::{Report, ServiceReport};
use loadbalancer_tests::support::events::wait_until;
use loadbalancer_tests::support::hold::{Held, Hold, Protocol};

use super::world::{SOON, Setup, World, both};

/// Servers of two flows each, that queue.
fn setup(mode: &'static str, keys: &str) -> Setup {
    let keys = format!("[service.queue]\n{keys}\n");
    Setup::new(mode).with(|setup| {
        setup.keys += &keys;
        setup.server_keys = ["high_water = 2"; 4];
    })
}

fn report(world: &World) -> Report {
    serde_json::from_str(&world.gateway.ask(&["queue", "--json"])).expect("`queue --json` gives a report")
}

/// All parts of the service in one.
fn total(world: &World, count: impl Fn(&ServiceReport) -> u64) -> u64 {
    report(world).services.iter().map(count).sum()
}

fn ended(service: &ServiceReport, how: &str) -> u64 {
    service.classes.iter().filter_map(|class| class.ends.get(how)).sum()
}

fn wait_total(world: &World, what: &str, count: impl Fn(&ServiceReport) -> u64 + Copy, wanted: u64) {
    wait_until(what, SOON, || total(world, count) == wanted)
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", world.gateway.ask(&["queue"]), world.tell()));
}

/// Flows that need not be served yet.
fn start(world: &World, vip: IpAddr, flows: usize) -> Held {
    let hold = Hold {
        target: SocketAddr::new(vip, 7),
        protocol: Protocol::Tcp,
        flows,
        every: Duration::from_millis(10),
        timeout: SOON,
        max_time: Duration::from_secs(120),
    };
    hold.start(world.lab.clients[1].namespace()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_waits_is_served_in_every_mode_and_family_once_there_is_room() {
    for mode in ["nat", "dnat", "dsr-l2", "dsr-ipip", "dsr-gue"] {
        for vip in both() {
            let world = setup(mode, "").with(|setup| setup.vips = vec![vip]).up();
            let first = world.hold(vip, Protocol::Tcp, 8);
            let waiting = start(&world, vip, 3);
            wait_total(&world, "three wait", |it| it.waiting, 3);
            assert!(waiting.reports().iter().all(|flow| flow.exchanges == 0 && flow.broken.is_none()), "{mode} {vip}");
            world.assert_held(&first);
            drop(first);
            waiting.wait_exchanges(3, Duration::from_secs(1)).unwrap_or_else(|error| {
                panic!("{mode} {vip}: {error}\n{}\n{}", world.gateway.ask(&["queue"]), world.tell())
            });
            world.assert_held(&waiting);
            assert_eq!(total(&world, |it| ended(it, "released")), 3, "{mode} {vip}");
            assert_eq!(total(&world, |it| it.waiting), 0, "{mode} {vip}");
        }
    }
}
