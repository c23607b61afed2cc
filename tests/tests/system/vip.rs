//! Checks through VIPs: they fail when the data path is broken, and only then.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use loadbalancer::control::snapshot;
use loadbalancer_tests::support::client::{Query, fetch};
use loadbalancer_tests::support::events::wait_until;
use loadbalancer_tests::support::lab::{vip4, vip6};
use loadbalancer_tests::support::server::Live;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup, World};

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
            "check = {{ {kind}, through = \"vip\", interval = \"100ms\", timeout = \"300ms\", rise = 2, fall = 2 }}\n"
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

#[test]
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
            assert_eq!(server(&world, other).state, "up", "{mode}");
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
