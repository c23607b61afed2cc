//! Every mode, family and way of choosing, in good weather.

use std::net::IpAddr;
use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer_tests::lab::channel::Channel;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::plan::LabConfig;
use loadbalancer_tests::lab::relay::Direction;
use loadbalancer_tests::lab::{vip4, vip6};
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::load::{Load, Pace};
use loadbalancer_tests::traffic::server::Ports;

use super::world::{Setup, World, both};

pub fn trials() -> Vec<Trial> {
    trials![
        nat_serves_both_families,
        dnat_serves_both_families_and_shows_the_client,
        dsr_l2_serves_both_families_and_replies_pass_by_the_gateway,
        dsr_ipip_serves_both_families_over_ipv4,
        dsr_ipip_serves_both_families_over_ipv6,
        dsr_gue_serves_both_families_over_ipv4,
        dsr_gue_serves_both_families_over_ipv6,
        servers_may_listen_on_another_port,
        a_service_on_any_port_takes_them_all,
        a_clients_flows_meet_on_one_server,
        #[alone]
        nat_uses_ports_again_at_once,
        shares_follow_weights,
        a_server_of_weight_zero_gets_nothing,
        a_lower_tier_serves_only_while_the_upper_is_full_or_down,
        large_bodies_pass_in_every_mode,
        servers_behind_channels_are_served_in_every_mode,
        jumbo_frames_pass,
        datagrams_in_fragments_reach_their_server_and_come_back,
        virtual_addresses_answer_echo_requests,
        answers_reach_clients_that_only_have_gro,
        traceroute_sees_the_gateway,
    ]
}

/// HTTP over TCP and echo over TCP and UDP reach all servers, and nothing is dropped.
fn serves(setup: Setup) -> World {
    let vips = setup.vips.clone();
    let world = setup.up();
    for vip in vips {
        let report = world.requests(vip, 400);
        for server in &world.lab.servers {
            world.assert_share(&report, &server.name, 0.25);
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let held = world.hold(vip, protocol, 20);
            world.assert_held(&held);
            // That all have one server has a probability of 4 x 0.25^20 < 10^-11.
            assert!(held.by_server().len() > 1, "{:?}", held.by_server());
        }
    }
    for outcome in ["no_server", "full", "no_path", "internal", "invalid", "unknown_flow", "no_return_path"] {
        assert_eq!(world.outcome(outcome), 0, "{outcome}\n{}", world.tell());
    }
    assert!(world.outcome("forwarded") > 1_000);
    world
}

fn nat_serves_both_families() {
    let world = serves(Setup::new("nat").with(|setup| setup.vips = both()));
    let seen = world.seen(0, vip4(1).into());
    assert_ne!(seen.client.ip(), IpAddr::from(world.lab.clients[0].addresses.ipv4), "servers see the gateway");
    assert!((10_000..=32_767).contains(&seen.client.port()), "{seen:?}");
}

fn dnat_serves_both_families_and_shows_the_client() {
    let world = serves(Setup::new("dnat").with(|setup| setup.vips = both()));
    assert_eq!(world.seen(0, vip4(1).into()).client.ip(), IpAddr::from(world.lab.clients[0].addresses.ipv4));
    assert_eq!(world.seen(1, vip6(1).into()).client.ip(), IpAddr::from(world.lab.clients[1].addresses.ipv6));
    assert!(world.outcome("reply_forwarded") > 0);
}

fn dsr_l2_serves_both_families_and_replies_pass_by_the_gateway() {
    let world = serves(Setup::new("dsr-l2").with(|setup| setup.vips = both()));
    assert_eq!(world.seen(0, vip4(1).into()).local.ip(), IpAddr::from(vip4(1)));
    assert_eq!(world.outcome("reply_forwarded"), 0);
}

fn dsr_ipip_serves_both_families_over_ipv4() {
    let world = serves(Setup::new("dsr-ipip").with(|setup| setup.vips = both()));
    assert_eq!(world.seen(0, vip6(1).into()).client.ip(), IpAddr::from(world.lab.clients[0].addresses.ipv6));
}

fn dsr_ipip_serves_both_families_over_ipv6() {
    serves(Setup::new("dsr-ipip").with(|setup| {
        setup.vips = both();
        setup.outer_v6 = true;
    }));
}

fn dsr_gue_serves_both_families_over_ipv4() {
    serves(Setup::new("dsr-gue").with(|setup| setup.vips = both()));
}

fn dsr_gue_serves_both_families_over_ipv6() {
    serves(Setup::new("dsr-gue").with(|setup| {
        setup.vips = both();
        setup.outer_v6 = true;
    }));
}

fn servers_may_listen_on_another_port() {
    for mode in ["nat", "dnat"] {
        let world = Setup::new(mode)
            .with(|setup| {
                setup.ports = Ports { http: 8080, echo: 7 };
                setup.server_port = Some(8080);
                setup.keys = "# one port".to_owned();
            })
            .up_http_only();
        assert_eq!(world.seen(0, vip4(1).into()).local.port(), 8080, "{mode}");
        world.requests(vip4(1).into(), 100);
    }
}

fn a_service_on_any_port_takes_them_all() {
    for mode in ["nat", "dsr-ipip"] {
        let setup = Setup::new(mode);
        let world = setup.clone().up();
        let services = setup.services(&world.lab);
        let (head, servers) = services.split_once("[[service.server]]").expect("it has servers");
        let listen = format!("listen = [\"{vip}:*/tcp\", \"{vip}:*/udp\"]", vip = vip4(1));
        let head: Vec<&str> =
            head.lines().map(|line| if line.starts_with("listen") { &listen } else { line }).collect();
        let services = format!("{}\n[[service.server]]{servers}", head.join("\n")).replace("\"web\"", "\"all\"");
        world.gateway.write(&services).expect("written");
        world.gateway.reload().expect("reloaded");
        world.gateway.wait("the service is there", |snapshot| snapshot.services[0].name == "all").expect("it is");
        world.requests(vip4(1).into(), 100);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            world.assert_held(&world.hold(vip4(1).into(), protocol, 5));
        }
    }
}

fn a_clients_flows_meet_on_one_server() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let world = Setup::new(mode)
            .with(|setup| {
                setup.vips = both();
                setup.keys = "affinity = \"client\"".to_owned();
            })
            .up();
        for vip in both() {
            let report = world.requests(vip, 100);
            assert_eq!(report.by_server.len(), 1, "{mode} {vip}: {:?}", report.by_server);
            let server = report.by_server.keys().next().expect("one").clone();
            let again: Vec<String> = (0..10).map(|_| world.seen(0, vip).server).collect();
            assert!(again.iter().all(|name| *name == server), "{mode}: {again:?}");
        }
    }
}

/// Each source port comes back within the server's TIME_WAIT, with another client's timestamps as like as not.
fn nat_uses_ports_again_at_once() {
    let world = Setup::new("nat")
        .with(|setup| {
            setup.vips = both();
            setup.keys = "nat_ports = \"20000-20063\"".to_owned();
        })
        .up();
    for vip in both() {
        let loads: Vec<_> = world
            .lab
            .clients
            .iter()
            .map(|client| {
                let mut load = Load::new((vip, 80).into());
                load.query.close = true;
                (load.max_requests, load.pace) = (600, Pace::Closed { workers: 2 });
                load.start(client.namespace()).expect("started")
            })
            .collect();
        for load in loads {
            world.assert_clean(&load.wait());
        }
        // A SYN that the server does not take comes again.
        assert_eq!([0, 1].map(|client| world.sent_again(client)), [0, 0], "{vip}\n{}", world.tell());
    }
    let waiting = |host: &Host| {
        let sockets = host.namespace().command("ss").args(["-Htan", "state", "time-wait"]).output().expect("ss");
        String::from_utf8_lossy(&sockets.stdout).lines().count()
    };
    let waiting: Vec<usize> = world.lab.servers.iter().map(waiting).collect();
    assert!(waiting.iter().all(|count| *count > 64), "connections in TIME_WAIT: {waiting:?}");
}

fn shares_follow_weights() {
    let world = Setup::new("nat")
        .with(|setup| setup.server_keys = ["weight = 1", "weight = 1", "weight = 2", "weight = 4"])
        .up();
    let report = world.requests(vip4(1).into(), 2_000);
    for (server, expected) in [("server1", 0.125), ("server2", 0.125), ("server3", 0.25), ("server4", 0.5)] {
        world.assert_share(&report, server, expected);
    }
}

fn a_server_of_weight_zero_gets_nothing() {
    let world =
        Setup::new("dsr-ipip").with(|setup| setup.server_keys = ["weight = 0", "weight = 1", "", "weight = 0"]).up();
    let report = world.requests(vip4(1).into(), 200);
    assert_eq!(report.by_server.keys().collect::<Vec<_>>(), ["server2", "server3"]);
}

fn a_lower_tier_serves_only_while_the_upper_is_full_or_down() {
    let mut world = Setup::new("nat")
        .check()
        .with(|setup| setup.server_keys = ["high_water = 3", "high_water = 3", "tier = 1", "tier = 2"])
        .up();
    let vip = vip4(1).into();
    let report = world.load(vip, |load| {
        load.max_requests = 50;
        load.pace = Pace::Closed { workers: 1 };
    });
    let report = report.wait();
    world.assert_clean(&report);
    assert_eq!(report.by_server.keys().collect::<Vec<_>>(), ["server1", "server2"]);
    // Twelve flows: three on each of the first two, the rest one tier down.
    let held = world.hold(vip, Protocol::Tcp, 12);
    let by_server = held.by_server();
    assert_eq!((by_server["server1"], by_server["server2"], by_server["server3"]), (3, 3, 6), "{}", world.tell());
    drop(held);
    for index in [0, 1, 2] {
        world.servers[index].stop(loadbalancer_tests::traffic::server::Live::Reset);
    }
    for server in ["server1", "server2", "server3"] {
        world.gateway.wait_server(server, "down").unwrap_or_else(|error| panic!("{error}"));
    }
    let report = world.requests(vip, 20);
    assert_eq!(report.by_server.keys().collect::<Vec<_>>(), ["server4"]);
}

fn large_bodies_pass_in_every_mode() {
    for mode in ["nat", "dnat", "dsr-l2", "dsr-ipip", "dsr-gue"] {
        let world = Setup::new(mode).up();
        let report = world.load(vip4(1).into(), |load| {
            load.query.path = "/bytes/200000".to_owned();
            // The way to the server is narrower than the client's link: it learns that from ICMP.
            load.query.upload_bytes = 200_000;
            load.max_requests = 40;
            load.timeout = Duration::from_secs(10);
        });
        let report = report.wait();
        world.assert_clean(&report);
        assert_eq!(report.ok, 40, "{mode}");
        if mode.starts_with("dsr-i") || mode.starts_with("dsr-g") {
            assert!(world.outcome("too_big_answered") > 0, "{mode}\n{}", world.tell());
        }
    }
}

fn servers_behind_channels_are_served_in_every_mode() {
    for mode in ["nat", "dnat", "dsr-l2", "dsr-ipip", "dsr-gue"] {
        let world = serves(Setup::new(mode).with(|setup| {
            setup.vips = both();
            setup.lab = LabConfig { channels: 2, ..setup.lab };
        }));
        let passed = |channel: &Channel| channel.relay.counts(Direction::ToServers).passed;
        let passed: u64 = world.lab.channels.iter().map(passed).sum();
        assert!(passed > 1000, "{mode}: only {passed} frames went over channels");
    }
}

fn jumbo_frames_pass() {
    for mode in ["nat", "dsr-ipip"] {
        let world = Setup::new(mode)
            .with(|setup| setup.lab = LabConfig { client_mtu: 9000, server_mtu: 9000, ..setup.lab })
            .up();
        let report = world
            .load(vip4(1).into(), |load| {
                load.query.path = "/bytes/300000".to_owned();
                load.query.upload_bytes = 300_000;
                load.max_requests = 20;
            })
            .wait();
        world.assert_clean(&report);
    }
}

fn datagrams_in_fragments_reach_their_server_and_come_back() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let world = Setup::new(mode).up();
        let echoed = world.lab.clients[0]
            .namespace()
            .run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bound");
                socket.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
                socket.connect((vip4(1), 7)).expect("connected");
                let sent = vec![b'x'; 4_000];
                let mut buffer = vec![0; 8_000];
                // In a tunnel the first one is answered with the size that fits, which the client then keeps to.
                for _ in 0..3 {
                    if socket.send(&sent).is_ok()
                        && let Ok(length) = socket.recv(&mut buffer)
                    {
                        return length > 4_000 && buffer[..length].ends_with(&sent);
                    }
                }
                false
            })
            .expect("entered");
        assert!(echoed, "{mode}\n{}", world.tell());
        assert!(world.outcome("fragment_forwarded") > 0, "{mode}\n{}", world.tell());
    }
}

fn virtual_addresses_answer_echo_requests() {
    let world = Setup::new("nat").with(|setup| setup.vips = both()).up();
    for vip in both() {
        let output = world.lab.clients[0]
            .namespace()
            .command("ping")
            .args(["-c", "2", "-W", "2", "-i", "0.2", &vip.to_string()])
            .output()
            .expect("ping is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(world.outcome("echo_answered"), 4);
}

/// A veth without an XDP program of its own: `XDP_TX` would not wake it.
fn answers_reach_clients_that_only_have_gro() {
    let world = Setup::new("nat").with(|setup| setup.server_keys = ["weight = 0"; 4]).up();
    let client = &world.lab.clients[0];
    client.set_receive(None).expect("detached");
    let ethtool = client.namespace().command("ethtool").args(["-K", &client.near.device, "gro", "on"]).output();
    assert!(ethtool.expect("ethtool is installed").status.success());
    // Any other frame would wake it as well; not each time.
    for _ in 0..5 {
        world.try_seen(0, vip4(1).into()).expect_err("all servers have weight 0");
        assert_eq!(world.sent_again(0), 0, "the reset did not arrive\n{}", world.tell());
        let ping = client.namespace().command("ping").args(["-c", "1", "-W", "2", &vip4(1).to_string()]).output();
        assert!(ping.expect("ping is installed").status.success(), "{}", world.tell());
    }
}

fn traceroute_sees_the_gateway() {
    let world = Setup::new("nat").up();
    let output = world.lab.clients[0]
        .namespace()
        .command("ping")
        .args(["-c", "1", "-W", "2", "-t", "1", &vip4(1).to_string()])
        .output()
        .expect("ping is installed");
    // An echo request to the VIP itself has arrived, whatever is left of its time to live.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
