//! Checks through VIPs: they fail when the data path is broken, and only then.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer::api::types::snapshot;
use loadbalancer::controller::status::ServerState;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::{vip4, vip6};
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::server::Live;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup, World};

pub fn trials() -> Vec<Trial> {
    trials![
        a_check_through_the_vip_fails_where_the_data_path_is_broken_and_a_direct_one_would_not,
        probes_reach_their_own_server_also_if_it_gets_no_flows,
        a_probe_source_is_used_where_it_is_set,
        datagrams_and_connections_are_asked_through_the_vip_as_well,
        the_probers_interface_goes_and_comes_with_the_controller_and_the_checks,
    ]
}

/// The mode, and whether servers and VIP have IPv6.
const CASES: [(&str, bool); 9] = [
    ("nat", false),
    ("nat", true),
    ("dnat", false),
    ("dnat", true),
    ("dsr-l2", false),
    ("dsr-ipip", false),
    ("dsr-ipip", true),
    ("dsr-gue", false),
    ("dsr-gue", true),
];

fn vip(ipv6: bool) -> IpAddr {
    if ipv6 { vip6(1).into() } else { vip4(1).into() }
}

fn checked(mode: &'static str, ipv6: bool, kind: &str) -> Setup {
    Setup::new(mode).with(|setup| {
        setup.outer_v6 = ipv6;
        setup.vips = vec![vip(ipv6)];
        setup.keys = format!(
            "check = {{ {kind}, through = \"vip\", interval = \"100ms\", timeout = \"300ms\", rise = 2, fall = 2 }}\nquality = {{ weights = \"configured\" }}\n"
        );
    })
}

const HTTP: &str = "type = \"http\"";

fn wait(world: &World, server: usize, state: &str) {
    let name = &world.lab.servers[server].name;
    world.gateway.wait_server(name, state).unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
}

fn wait_all_up(world: &World) {
    (0..4).for_each(|server| wait(world, server, "up"));
}

fn server(world: &World, server: usize) -> snapshot::Server {
    world.gateway.snapshot().services[0].servers[server].clone()
}

/// Asks a server itself, from the gateway.
fn answers(world: &World, server: usize, ipv6: bool) -> bool {
    let addresses = &world.lab.servers[server].addresses;
    let addr: IpAddr = if ipv6 { addresses.ipv6.into() } else { addresses.ipv4.into() };
    let gateway = &world.lab.gateway.namespace;
    fetch(gateway, SocketAddr::new(addr, 80), &Query::get("/"), Duration::from_secs(3)).is_ok()
}

fn a_check_through_the_vip_fails_where_the_data_path_is_broken_and_a_direct_one_would_not() {
    for (mode, ipv6) in CASES {
        println!("{mode} {ipv6}");
        let mut world = checked(mode, ipv6, HTTP).up();
        wait_all_up(&world);
        let host = &world.lab.servers[1];
        match mode {
            "dsr-ipip" | "dsr-gue" => host.remove_decap().expect("removed"),
            "dsr-l2" => host.remove_vip(vip(ipv6)).expect("removed"),
            // The program does not see its replies any more.
            _ => fs::remove_file(link_pin(&world, "server2")).expect("removed"),
        }
        wait(&world, 1, "down");
        let reason = server(&world, 1).reason.expect("it has one");
        let through = format!("through {}: ", SocketAddr::new(vip(ipv6), 80));
        assert!(reason.starts_with(&through), "{reason}");
        assert!(answers(&world, 1, ipv6), "{mode}");
        for other in [0, 2, 3] {
            assert_eq!(server(&world, other).state, ServerState::Up, "{mode}");
        }
        let host = &world.lab.servers[1];
        match mode {
            "dsr-ipip" | "dsr-gue" => host.set_decap().expect("it is there again"),
            "dsr-l2" => host.add_vip(vip(ipv6)).expect("it is there again"),
            _ => {
                world.gateway.stop(Signal::SIGTERM);
                world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
            }
        }
        wait(&world, 1, "up");
        world.requests(vip(ipv6), 40);
    }
}

/// Where the program's link to an interface is pinned.
fn link_pin(world: &World, interface: &str) -> std::path::PathBuf {
    let versions = fs::read_dir(&world.gateway.pins).expect("it is there");
    let [version] = &versions.map(|entry| entry.expect("listed").path()).collect::<Vec<_>>()[..] else {
        panic!("one layout");
    };
    version.join(format!("link-{interface}"))
}

fn probes_reach_their_own_server_also_if_it_gets_no_flows() {
    for (mode, ipv6) in [("nat", false), ("dnat", true), ("dsr-l2", false), ("dsr-ipip", true), ("dsr-gue", false)] {
        println!("{mode} {ipv6}");
        let mut world = checked(mode, ipv6, HTTP)
            .with(|setup| {
                setup.keys += "passive = \"1/1\"\non_server_down = \"reset\"\naffinity = \"client\"\n";
                setup.server_keys = ["", "weight = 0", "", "tier = 1"];
            })
            .up();
        wait_all_up_or_weightless(&world);
        world.gateway.ask(&["backend", "drain", "web/server3"]);
        // One that is down gets none as well, and must come back.
        world.servers[0].stop(Live::Reset);
        wait(&world, 0, "down");
        let before: Vec<u64> = world.servers.iter().map(|server| server.counts().http_requests).collect();
        let more = |index: usize| world.servers[index].counts().http_requests - before[index];
        wait_until("all others are asked", SOON, || (1..4).all(|index| more(index) >= 10))
            .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
        let asked: Vec<u64> = (1..4).map(more).collect();
        assert!(asked.iter().max() < asked.iter().min().map(|least| least * 2).as_ref(), "{asked:?}");
        world.servers[0].restart().expect("it starts again");
        wait(&world, 0, "up");
        // Nobody else has asked anything, so nothing of it may show as traffic.
        for server in &world.gateway.snapshot().services[0].servers {
            assert_eq!((server.flows, server.active), (0, 0), "{mode}: {server:?}");
        }
    }
}

/// As `wait_all_up`, where some servers are not to serve.
fn wait_all_up_or_weightless(world: &World) {
    let checked = |snapshot: &snapshot::Snapshot| {
        snapshot.services[0].servers.iter().all(|server| server.check_latency_us.is_some())
    };
    world.gateway.wait("all are checked", checked).unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
}

fn a_probe_source_is_used_where_it_is_set() {
    // IPv6 tunnels for an IPv4 VIP; and an address that all but the first server have beyond their gateway.
    for (mode, ipv6) in [("dsr-ipip", true), ("dnat", false)] {
        let setup = checked(mode, false, HTTP).with(|setup| setup.outer_v6 = ipv6);
        let world = setup.up_with("probe_source = [\"10.77.101.1\"]\nprobe_ports = \"62000-62010\"\n");
        wait_all_up(&world);
        if mode == "dnat" {
            // What clients need as well: the way back to what is not on its link.
            world.lab.servers[1].namespace().ip(&["route del default"]).expect("removed");
            wait(&world, 1, "down");
            assert!(answers(&world, 1, ipv6));
            let gateway = world.lab.servers[1].gateway.ipv4;
            world.lab.servers[1].namespace().ip(&[format!("route add default via {gateway}")]).expect("added");
            wait(&world, 1, "up");
        }
        let mut world = world;
        // Another source, and another again: the only one goes each time, and with it what the kernel routes by it.
        for (old, new) in [("10.77.101.1", "10.77.102.1"), ("10.77.102.1", "10.77.101.1")] {
            let text = std::fs::read_to_string(&world.gateway.config).expect("read");
            let (old, new) = (format!("probe_source = [\"{old}\"]"), format!("probe_source = [\"{new}\"]"));
            std::fs::write(&world.gateway.config, text.replace(&old, &new)).expect("written");
            world.gateway.reload().expect("reloaded");
            fails_and_comes_back(&mut world, 0);
            wait_all_up(&world);
        }
    }
}

fn datagrams_and_connections_are_asked_through_the_vip_as_well() {
    const UDP: &str = "type = \"udp\", send = \"ping\", contains = \"ping\"";
    for kind in [UDP, "type = \"tcp\", port = 7"] {
        for (mode, ipv6) in [("nat", true), ("dnat", false), ("dsr-ipip", false)] {
            let mut world = checked(mode, ipv6, kind).up();
            wait_all_up(&world);
            world.servers[2].stop(Live::Reset);
            wait(&world, 2, "down");
            assert!([0, 1, 3].iter().all(|index| server(&world, *index).state == ServerState::Up), "{kind} {mode}");
            world.servers[2].restart().expect("it starts again");
            wait(&world, 2, "up");
        }
    }
}

fn the_probers_interface_goes_and_comes_with_the_controller_and_the_checks() {
    for (mode, ipv6) in [("nat", false), ("dsr-ipip", false)] {
        let setup = checked(mode, ipv6, HTTP);
        let direct = Setup { keys: setup.keys.replace("through = \"vip\", ", ""), ..setup.clone() };
        let mut world = setup.clone().up();
        wait_all_up(&world);
        assert_eq!(interfaces(&world).len(), 1);
        let status = world.gateway.ask(&["status"]);
        assert!(!status.contains("lbprobe"), "{status}");
        // A killed one takes it with it; the next makes its own, and the data path forwards all the while.
        world.gateway.stop(Signal::SIGKILL);
        wait_until("the interface goes", SOON, || interfaces(&world).is_empty()).expect("gone");
        world.requests_without_controller(vip(ipv6), 40);
        world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
        wait_all_up(&world);
        fails_and_comes_back(&mut world, 1);
        assert_eq!(interfaces(&world).len(), 1);
        // Someone takes it down, or removes it: it is made anew.
        for what in ["set {} down", "del {}"] {
            let name =
                interfaces(&world)[0].split(": ").nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned());
            let name = name.expect("`ip link` names the interface");
            let before = interfaces(&world);
            world.lab.gateway.namespace.ip(&[format!("link {}", what.replace("{}", &name))]).expect("done");
            wait_until("it is made anew", SOON, || {
                let now = interfaces(&world);
                now.len() == 1 && now != before
            })
            .unwrap_or_else(|error| panic!("{what}: {error}\n{}", world.tell()));
            fails_and_comes_back(&mut world, 1);
        }
        // Nothing asks through the VIP any more, and then again.
        for (setup, count, failing) in [(&direct, 0, 2), (&setup, 1, 3)] {
            world.gateway.write(&setup.services(&world.lab)).expect("written");
            world.gateway.reload().expect("reloaded");
            wait_until("the interface follows", SOON, || {
                let pins = link_pins(&world).into_iter().filter(|name| name.contains("lbprobe")).count();
                (interfaces(&world).len(), pins) == (count, count)
            })
            .unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
            fails_and_comes_back(&mut world, failing);
        }
        world.gateway.stop(Signal::SIGTERM);
        wait_until("the interface goes", SOON, || interfaces(&world).is_empty()).expect("gone");
        assert!(!link_pins(&world).iter().any(|name| name.contains("lbprobe")));
        world.requests_without_controller(vip(ipv6), 40);
        let pins = world.gateway.pins.display().to_string();
        let detached = world.gateway.cli(&["detach", "--pins", &pins]);
        assert!(detached.status.success(), "{detached:?}");
        assert!(!world.gateway.pins.exists());
    }
}

fn fails_and_comes_back(world: &mut World, server: usize) {
    world.servers[server].stop(Live::Reset);
    wait(world, server, "down");
    world.servers[server].restart().expect("it starts again");
    wait(world, server, "up");
}

/// Interfaces of probers in the gateway's namespace.
fn interfaces(world: &World) -> Vec<String> {
    let links = world.lab.gateway.namespace.command("ip").args(["-oneline", "link"]).output().expect("ip is installed");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    links.lines().filter(|line| line.contains(": lbprobe")).map(str::to_owned).collect()
}

fn link_pins(world: &World) -> Vec<String> {
    let link = link_pin(world, "");
    let directory = link.parent().expect("it is in one");
    let entries = fs::read_dir(directory).expect("it is there");
    let names = entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("link-")).collect()
}
