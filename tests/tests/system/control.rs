//! Changes by the operator, under traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::{vip4, vip6};
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::hold::Protocol;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup, both};

pub fn trials() -> Vec<Trial> {
    trials![
        a_drained_server_keeps_its_flows_and_gets_no_new_ones_until_enabled,
        a_weight_set_by_hand_takes_effect_at_once,
        a_reload_under_traffic_breaks_nothing,
        a_removed_server_is_forgotten_when_its_last_flow_has_ended,
        a_wrong_configuration_changes_nothing,
        services_come_and_go,
        vips_are_assigned_announced_and_taken_back,
        maps_changed_by_others_are_mended,
        metrics_are_served,
        flows_are_listed_found_and_counted,
        idle_flows_are_forgotten_and_no_longer_counted,
    ]
}

fn a_drained_server_keeps_its_flows_and_gets_no_new_ones_until_enabled() {
    for mode in ["nat", "dsr-ipip"] {
        let mut world = Setup::new(mode).up();
        let vip = vip4(1).into();
        // That none is on it has a probability of 0.75^80 < 10^-9.
        let held = world.hold(vip, Protocol::Tcp, 80);
        assert!(held.by_server().contains_key("server1"));
        assert_eq!(world.gateway.ask(&["backend", "drain", "web/server1"]), "web/server1: drained\n");
        let report = world.requests(vip, 200);
        assert!(!report.by_server.contains_key("server1"), "{:?}", report.by_server);
        world.assert_held(&held);
        // It stays drained through a restart of the controller.
        world.gateway.stop(Signal::SIGTERM);
        world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
        world.gateway.wait_server("server1", "drained").unwrap_or_else(|error| panic!("{error}"));
        world.gateway.ask(&["backend", "enable", "server1"]);
        let report = world.requests(vip, 200);
        assert!(report.by_server.contains_key("server1"), "{:?}", report.by_server);
        world.assert_held(&held);
    }
}

fn a_weight_set_by_hand_takes_effect_at_once() {
    let world = Setup::new("dsr-ipip").up();
    let vip = vip4(1).into();
    world.gateway.ask(&["backend", "weight", "server1", "0"]);
    assert!(!world.requests(vip, 100).by_server.contains_key("server1"));
    world.gateway.ask(&["backend", "weight", "server1", "9"]);
    // Nine of twelve.
    world.assert_share(&world.requests(vip, 1_000), "server1", 0.75);
    world.gateway.ask(&["backend", "enable", "server1"]);
    world.assert_share(&world.requests(vip, 1_000), "server1", 0.25);
}

fn a_reload_under_traffic_breaks_nothing() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let setup = Setup::new(mode);
        let world = setup.clone().up();
        let vip = vip4(1).into();
        let held = world.hold(vip, Protocol::Tcp, 20);
        let load = world.load(vip, |load| load.max_time = Duration::from_secs(60));
        let all: Vec<_> = world.lab.servers.iter().collect();
        // Without server4, whose live flows go on; then with it again.
        for hosts in [&all[..3], &all[..], &all[1..], &all[..]] {
            world.gateway.write(&setup.services_of(hosts)).expect("written");
            world.gateway.reload().expect("reloaded");
            let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
            let report = world.requests(vip, 200);
            assert!(report.by_server.keys().all(|server| names.contains(&server.as_str())), "{:?}", report.by_server);
            world.assert_held(&held);
        }
        world.assert_clean(&load.stop());
        world.assert_held(&held);
    }
}

fn a_removed_server_is_forgotten_when_its_last_flow_has_ended() {
    let setup = Setup::new("dsr-ipip");
    let world = setup.clone().up();
    // That none is on server4 has a probability of 0.75^80 < 10^-9.
    let held = world.hold(vip4(1).into(), Protocol::Tcp, 80);
    let hosts: Vec<_> = world.lab.servers[..3].iter().collect();
    world.gateway.write(&setup.services_of(&hosts)).expect("written");
    world.gateway.reload().expect("reloaded");
    let leaving = |snapshot: &loadbalancer::api::types::Snapshot| {
        snapshot.services[0].servers.iter().filter(|server| server.state.label() == "leaving").count()
    };
    world.gateway.wait("server4 is leaving", |snapshot| leaving(snapshot) == 1).unwrap_or_else(|e| panic!("{e}"));
    world.assert_held(&held);
    drop(held);
    world.gateway.wait("server4 is gone", |snapshot| leaving(snapshot) == 0).unwrap_or_else(|e| panic!("{e}"));
}

fn a_wrong_configuration_changes_nothing() {
    let world = Setup::new("nat").up();
    let vip = vip4(1).into();
    world.gateway.write("[[service]]\nname = \"web\"\nlisten = [\"nonsense\"]\n").expect("written");
    world.gateway.reload().expect("told");
    assert!(world.gateway.log().contains("the old one stays"), "{}", world.gateway.log());
    assert!(world.gateway.ask(&["status"]).contains("RELOAD FAILED"));
    world.requests(vip, 50);
    let output = world.gateway.cli(&["reload", "--socket", &world.gateway.socket.display().to_string()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("`nonsense` is no address to listen on"));
}

fn services_come_and_go() {
    let setup = Setup::new("nat");
    let world = setup.clone().up();
    let one = setup.services(&world.lab);
    let two = one.replace("\"web\"", "\"second\"").replace("192.0.2.1:", "192.0.2.2:");
    world.gateway.write(&format!("{one}\n{two}")).expect("written");
    world.gateway.reload().expect("reloaded");
    world.requests(vip4(1).into(), 50);
    world.requests(vip4(2).into(), 50);
    world.gateway.write(&two).expect("written");
    world.gateway.reload().expect("reloaded");
    world.requests(vip4(2).into(), 50);
    world.try_seen(0, vip4(1).into()).expect_err("the service is gone");
    assert_eq!(world.gateway.snapshot().services.len(), 1);
}

fn vips_are_assigned_announced_and_taken_back() {
    let setup = Setup::new("nat").with(|setup| {
        setup.lab.topology = loadbalancer_tests::lab::plan::Topology::Segment;
        setup.vips = both();
    });
    let mut world = setup.up_with("vip_interface = \"lan\"\non_stop = \"remove\"");
    let addresses = |world: &super::world::World| {
        let output =
            world.lab.gateway.namespace.command("ip").args(["addr", "show", "dev", "lan"]).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for vip in both() {
        assert!(addresses(&world).contains(&vip.to_string()), "{}", addresses(&world));
        world.requests(vip, 20);
    }
    world.gateway.stop(Signal::SIGTERM);
    for vip in both() {
        assert!(!addresses(&world).contains(&vip.to_string()), "{}", addresses(&world));
    }
}

fn maps_changed_by_others_are_mended() {
    let world = Setup::new("nat").up();
    let vip = vip4(1).into();
    world.requests(vip, 20);
    let maps = loadbalancer::dataplane::maps::Maps::pinned(&world.gateway.pins).expect("pinned");
    let mut keys = Vec::new();
    maps.vips4.for_each(|key, _| keys.push(*key)).expect("listed");
    for key in keys {
        maps.vips4.remove(&key).expect("removed");
    }
    world.try_seen(0, vip).expect_err("the service is gone from the kernel");
    wait_until("the comparison mends it", Duration::from_secs(40), || world.try_seen(0, vip).is_ok())
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    assert!(world.gateway.snapshot().controller.expect("runs").repairs > 0);
}

fn metrics_are_served() {
    let world = Setup::new("nat").check().up();
    // The metrics section comes with a restart.
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    std::fs::write(&world.gateway.config, format!("[metrics]\nlisten = \"10.77.1.1:9077\"\n{text}")).expect("written");
    let mut world = world;
    world.gateway.stop(Signal::SIGTERM);
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    world.gateway.wait_server("server1", "up").unwrap_or_else(|error| panic!("{error}"));
    world.requests(vip4(1).into(), 20);
    let gateway: IpAddr = world.lab.clients[0].gateway.ipv4.into();
    let target = SocketAddr::new(gateway, 9077);
    let query = Query::get("/metrics");
    let answer = fetch(world.lab.clients[0].namespace(), target, &query, SOON).unwrap_or_else(|e| panic!("{e}"));
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    for series in [
        "loadbalancer_packets_total{service=\"web\",outcome=\"forwarded\"}",
        "loadbalancer_server_flows_total{service=\"web\",server=\"server1\"",
        "loadbalancer_server_check_seconds{service=\"web\",server=\"server1\"",
        "loadbalancer_interface_attached{interface=\"client1\",mode=\"native\"} 1",
    ] {
        assert!(text.contains(series), "{series} is not in\n{text}");
    }
}

fn flows_are_listed_found_and_counted() {
    let world = Setup::new("nat").with(|setup| setup.vips = both()).up();
    let held = world.hold(vip6(1).into(), Protocol::Tcp, 3);
    let pins = world.gateway.pins.display().to_string();
    let output = world.gateway.cli(&["flows", "--pins", &pins, "--json", "--vip", &vip6(1).to_string()]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let locals: Vec<String> = held.reports().iter().filter_map(|flow| flow.local.map(|l| l.to_string())).collect();
    let clients: Vec<&str> =
        listed.as_array().expect("a list").iter().filter_map(|flow| flow["client"].as_str()).collect();
    assert!(locals.iter().all(|local| clients.contains(&local.as_str())), "{locals:?} {listed}");
    drop((world, held));

    let world = Setup::new("dsr-ipip").up();
    let held = world.hold(vip4(1).into(), Protocol::Tcp, 3);
    let pins = world.gateway.pins.display().to_string();
    for flow in held.reports() {
        let (local, server) = (flow.local.expect("it has an end"), flow.server.expect("it has a server"));
        let host = world.lab.servers.iter().find(|host| host.name == server).expect("known");
        let find = format!("tcp,{local},{}:7", vip4(1));
        let output = world.gateway.cli(&["flows", "--pins", &pins, "--find", &find]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("server {}, established", host.addresses.ipv4)), "{text}");
    }
    let output = world.gateway.cli(&["flows", "--pins", &pins, "--count", "--json"]);
    let counts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let total: u64 = counts.as_array().expect("a list").iter().filter_map(|count| count["affinity"].as_u64()).sum();
    assert!(total >= 3, "{counts}");
}

fn idle_flows_are_forgotten_and_no_longer_counted() {
    let world = Setup::new("nat").up();
    // Ten seconds at most; the unit of time is a little over four.
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    std::fs::write(&world.gateway.config, format!("{text}\n[timeouts]\nudp = \"4s\"\n")).expect("written");
    world.gateway.reload().expect("reloaded");
    let held = world.hold(vip4(1).into(), Protocol::Udp, 10);
    let active = |snapshot: &loadbalancer::api::types::Snapshot| {
        snapshot.services[0].servers.iter().map(|server| server.active).sum::<u32>()
    };
    world.gateway.wait("flows are counted", |snapshot| active(snapshot) >= 10).unwrap_or_else(|e| panic!("{e}"));
    drop(held);
    wait_until("flows are forgotten", Duration::from_secs(30), || active(&world.gateway.snapshot()) == 0)
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
}
