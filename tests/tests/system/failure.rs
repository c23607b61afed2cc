//! Servers, links and controllers that fail.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use loadbalancer::controller::status::ServerState;
use loadbalancer_tests::lab::events::{Side, wait_until};
use loadbalancer_tests::lab::offload;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::server::Live;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup};

pub fn trials() -> Vec<Trial> {
    trials![
        a_server_that_dies_gets_no_new_flows_and_comes_back,
        live_flows_of_a_server_that_fails_its_checks_are_kept_or_reset_as_configured,
        without_any_server_clients_are_refused_as_configured,
        when_every_server_is_at_its_mark_new_flows_are_refused_until_one_ends,
        a_link_that_goes_down_takes_its_server_out_until_it_is_back,
        flows_go_on_when_a_link_is_back,
        a_server_that_changes_its_mac_address_is_followed_within_a_second,
        a_changed_next_hop_is_followed,
        forwarding_survives_a_controller_that_is_killed,
        a_terminated_controller_leaves_forwarding_or_removes_it_as_configured,
        an_interface_that_is_made_anew_is_attached_again,
    ]
}

fn a_server_that_dies_gets_no_new_flows_and_comes_back() {
    for mode in ["nat", "dsr-ipip"] {
        let mut world = Setup::new(mode).check().up();
        let vip = vip4(1).into();
        world.gateway.wait_server("server2", "up").unwrap_or_else(|error| panic!("{error}"));
        let held = world.hold(vip, Protocol::Tcp, 20);
        world.servers[1].stop(Live::Reset);
        world.gateway.wait_server("server2", "down").unwrap_or_else(|error| panic!("{error}"));
        // From here on nobody notices.
        let report = world.requests(vip, 300);
        assert!(!report.by_server.contains_key("server2"), "{:?}", report.by_server);
        // What broke was on the dead server, and nothing else.
        let broken = held.broken();
        assert!(broken.iter().all(|flow| flow.server.as_deref() == Some("server2")), "{broken:?}");
        assert_eq!(held.moved(), []);
        world.servers[1].restart().expect("it starts again");
        world.gateway.wait_server("server2", "up").unwrap_or_else(|error| panic!("{error}"));
        wait_until("it has a share again", 6 * SOON, || world.requests(vip, 300).share("server2") > 0.1)
            .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
    }
}

fn live_flows_of_a_server_that_fails_its_checks_are_kept_or_reset_as_configured() {
    for (keys, kept) in [("on_server_down = \"keep\"\n", true), ("on_server_down = \"reset\"\n", false)] {
        for mode in ["nat", "dsr-ipip"] {
            let mut world = Setup::new(mode).check().with(|setup| setup.keys += keys).up();
            // That none is on it has a probability of 0.75^80 < 10^-9.
            let held = world.hold(vip4(1).into(), Protocol::Tcp, 80);
            assert!(held.by_server().contains_key("server3"), "{:?}", held.by_server());
            // It refuses new connections, and serves the old ones.
            world.servers[2].stop(Live::Leave);
            world.gateway.wait_server("server3", "down").unwrap_or_else(|error| panic!("{error}"));
            if kept {
                world.assert_held(&held);
                continue;
            }
            let on_it = held.by_server()["server3"];
            wait_until("its flows are reset", SOON, || held.broken().len() == on_it).unwrap_or_else(|error| {
                panic!("{mode}: {error}: {:?} {:?}\n{}", held.broken(), held.by_server(), world.tell())
            });
            assert!(held.broken().iter().all(|flow| flow.server.as_deref() == Some("server3")));
            assert_eq!(held.moved(), []);
        }
    }
}

fn without_any_server_clients_are_refused_as_configured() {
    for (keys, refused) in [("refuse = \"reset\"\n", true), ("refuse = \"drop\"\n", false)] {
        let mut world = Setup::new("nat").check().with(|setup| setup.keys += keys).up();
        world.servers.iter_mut().for_each(|server| server.stop(Live::Reset));
        for host in &world.lab.servers {
            world.gateway.wait_server(&host.name, "down").unwrap_or_else(|error| panic!("{error}"));
        }
        let error = world.try_seen(0, vip4(1).into()).expect_err("nobody is there");
        assert_eq!(error.contains("refused"), refused, "{error}");
        assert!(world.outcome("no_server") > 0);
    }
}

fn when_every_server_is_at_its_mark_new_flows_are_refused_until_one_ends() {
    for mode in ["nat", "dsr-ipip"] {
        let world = Setup::new(mode).with(|setup| setup.server_keys = ["high_water = 2"; 4]).up();
        let vip = vip4(1).into();
        let held = world.hold(vip, Protocol::Tcp, 8);
        assert_eq!(held.by_server().into_values().collect::<Vec<_>>(), [2; 4]);
        world.try_seen(0, vip).expect_err("all are full");
        assert!(world.outcome("full") > 0, "{}", world.tell());
        world.assert_held(&held);
        drop(held);
        wait_until("there is room again", SOON, || world.try_seen(0, vip).is_ok())
            .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
    }
}

fn a_link_that_goes_down_takes_its_server_out_until_it_is_back() {
    let world = Setup::new("nat").check().up();
    let vip = vip4(1).into();
    world.gateway.wait_server("server1", "up").unwrap_or_else(|error| panic!("{error}"));
    world.lab.servers[0].link_down(Side::Far).expect("down");
    world
        .gateway
        .wait("server1 is out", |snapshot| {
            let server = &snapshot.services[0].servers[0];
            matches!(server.state, ServerState::Unreachable | ServerState::Down)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let report = world.requests(vip, 200);
    assert!(!report.by_server.contains_key("server1"));
    let status = world.gateway.ask(&["status"]);
    assert!(status.contains("server1: native XDP, but it is down, or has no carrier"), "{status}");
    world.lab.servers[0].link_up(Side::Far).expect("up");
    world.gateway.wait_server("server1", "up").unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    wait_until("it gets requests again", 6 * SOON, || world.requests(vip, 200).by_server.contains_key("server1"))
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
}

/// Also if the interface itself is taken down, and its routes with it: the server sends again before all is as it was.
fn flows_go_on_when_a_link_is_back() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        for down in [Duration::from_millis(300), Duration::from_secs(2)] {
            let world = Setup::new(mode).up();
            let held = world.hold(vip4(1).into(), Protocol::Tcp, 20);
            for server in &world.lab.servers {
                server.link_down(Side::Far).expect("down");
            }
            let lost = || world.gateway.log().matches("no way to the server").count() == world.servers.len();
            wait_until("all ways are lost", SOON, lost).unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
            std::thread::sleep(down);
            for server in &world.lab.servers {
                server.link_up(Side::Far).expect("up");
            }
            world.assert_held(&held);
        }
    }
}

fn a_server_that_changes_its_mac_address_is_followed_within_a_second() {
    for mode in ["nat", "dsr-l2", "dsr-ipip"] {
        let world = Setup::new(mode).up();
        let held = world.hold(vip4(1).into(), Protocol::Tcp, 20);
        world.lab.servers[3].set_mac([2, 0, 0, 0x77, 0, 9]).expect("changed");
        let begun = Instant::now();
        held.wait_exchanges(3, SOON).unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
        assert!(begun.elapsed() < Duration::from_secs(3), "{mode}: it took {:?}", begun.elapsed());
        world.assert_held(&held);
    }
}

fn a_changed_next_hop_is_followed() {
    let world = Setup::new("dsr-ipip").up();
    // server1's address is now reached through server2, which forwards to nobody: its flows stop, and go on when the
    // route is back.
    let held = world.hold(vip4(1).into(), Protocol::Tcp, 12);
    let [first, second] = [0, 1].map(|index| world.lab.servers[index].addresses.ipv4);
    let gateway = &world.lab.gateway.namespace;
    gateway.ip(&[format!("route add {first}/32 via {second}")]).expect("added");
    wait_until("the path changes", SOON, || world.gateway.log().matches("way found").count() > 4)
        .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    gateway.ip(&[format!("route del {first}/32 via {second}")]).expect("removed");
    world.assert_held(&held);
}

fn forwarding_survives_a_controller_that_is_killed() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let mut world = Setup::new(mode).check().up();
        let vip = vip4(1).into();
        let held = world.hold(vip, Protocol::Tcp, 20);
        let load = world.load(vip, |load| load.max_time = Duration::from_secs(60));
        assert_eq!(world.gateway.stop(Signal::SIGKILL), None, "killed by a signal");
        held.wait_exchanges(20, SOON).expect("flows go on without a controller");
        world.requests(vip, 100);
        world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
        assert!(world.gateway.snapshot().controller.expect("it answers").adopted);
        world.requests(vip, 100);
        world.assert_clean(&load.stop());
        world.assert_held(&held);
    }
}

fn a_terminated_controller_leaves_forwarding_or_removes_it_as_configured() {
    let mut world = Setup::new("nat").up_with("on_stop = \"keep\"");
    let vip = vip4(1).into();
    let held = world.hold(vip, Protocol::Tcp, 10);
    assert_eq!(world.gateway.stop(Signal::SIGTERM), Some(0));
    assert!(!world.gateway.socket.exists(), "the socket is removed");
    world.requests(vip, 100);
    world.assert_held(&held);
    // Without a controller, the pinned maps tell.
    let snapshot = world.gateway.snapshot();
    assert_eq!(snapshot.controller, None);
    assert!(snapshot.services[0].servers.iter().map(|server| server.packets).sum::<u64>() > 100);
    drop((world, held));

    let mut world = Setup::new("nat").up_with("on_stop = \"remove\"");
    world.requests(vip, 10);
    assert_eq!(world.gateway.stop(Signal::SIGTERM), Some(0));
    assert!(!world.gateway.pins.exists());
    // The kernel detaches what is unpinned from a work queue, which takes its time on a busy machine.
    wait_until("nobody forwards", SOON, || world.try_seen(0, vip).is_err()).unwrap_or_else(|error| panic!("{error}"));
    let links = world.lab.gateway.namespace.command("ip").args(["-details", "link"]).output().expect("ip is installed");
    assert!(!String::from_utf8_lossy(&links.stdout).contains("xdp"), "no program is left");
}

fn an_interface_that_is_made_anew_is_attached_again() {
    let world = Setup::new("nat").check().up();
    let vip = vip4(1).into();
    world.gateway.wait_server("server1", "up").unwrap_or_else(|error| panic!("{error}"));
    // Both ends of server1's link go and come, with new indices.
    let (host, gateway) = (&world.lab.servers[0], &world.lab.gateway);
    let link = gateway.links.iter().find(|link| link.device == "server1").expect("it has a link");
    host.set_receive(None).expect("free");
    gateway.namespace.ip(&["link del server1"]).expect("removed");
    let peer = host.namespace().name();
    gateway
        .namespace
        .ip(&[
            format!("link add server1 type veth peer name eth0 netns {peer}"),
            format!("addr add {}/24 dev server1", link.addresses.ipv4),
            "link set server1 up".to_owned(),
        ])
        .expect("made anew");
    host.namespace()
        .ip(&[
            format!("addr add {}/24 dev eth0", host.addresses.ipv4),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", link.addresses.ipv4),
        ])
        .expect("made anew");
    offload::switch_off(host.namespace(), &["eth0"]).expect("switched off");
    offload::switch_off(&gateway.namespace, &["server1"]).expect("switched off");
    host.set_receive(Some(loadbalancer_tests::lab::xdp::Receive::Pass)).expect("attached");
    wait_until("server1 answers through the gateway", SOON, || {
        let report = world.load(vip, |load| load.max_requests = 40).wait();
        report.failed() == 0 && report.by_server.contains_key("server1")
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
}
