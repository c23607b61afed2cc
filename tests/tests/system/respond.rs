//! Connections that no server takes in time are told when to try again.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use loadbalancer::api::types::QueueReport;
use loadbalancer_tests::lab::events::{Side, wait_until};
use loadbalancer_tests::lab::runtime::Runtime;
use loadbalancer_tests::lab::{vip4, vip6};
use loadbalancer_tests::traffic::hold::{Held, Protocol};
use loadbalancer_tests::traffic::server::Live;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;

use super::world::{SOON, Setup, World, both};

pub fn trials() -> Vec<Trial> {
    trials![
        who_has_waited_for_too_long_is_told_so_in_every_mode_and_family,
        both_families_of_a_service_have_a_responder,
        a_large_page_arrives_whole_over_a_narrow_link,
        a_client_that_asks_nothing_is_closed_and_does_not_keep_others_from_an_answer,
        of_very_many_clients_some_are_closed_at_once_and_then_all_is_well_again,
        clients_that_stay_on_a_server_do_not_stay_with_the_responder,
        the_responder_follows_the_configuration_and_outlives_no_controller,
    ]
}

const MODES: [&str; 5] = ["nat", "dnat", "dsr-l2", "dsr-ipip", "dsr-gue"];
const PAGE: &str = "<p>Please come back in a moment.</p>\n";
const DEADLINE: Duration = Duration::from_millis(300);
/// When a client sends its first packet for the third time: it must not take that. (The second one may come while a busy machine
/// is still about the first.)
const THIRD_SYN: Duration = Duration::from_secs(3);
/// That a client has to send its request, and more than that.
const HEAD_TIME: Duration = Duration::from_secs(5);
const CHECK: &str = r#"
check = { type = "http", through = "vip", interval = "100ms", timeout = "300ms", rise = 2, fall = 2 }
quality = { weights = "configured" }
"#;
const GET: &str = "GET /some/where HTTP/1.1\r\nhost: web\r\n\r\n";

/// Servers of two flows each, and a responder.
fn setup(mode: &'static str, vips: &[IpAddr], keys: &str) -> Setup {
    let page = page(mode, PAGE);
    let queue = format!(
        "[service.queue]\ndeadline = \"300ms\"\nat_deadline = \"respond\"\nretry_after = \"7s\"\npage = {:?}\n",
        page.display()
    );
    Setup::new(mode).with(|setup| {
        setup.vips = vips.to_vec();
        setup.outer_v6 = vips.iter().all(IpAddr::is_ipv6);
        setup.keys = format!("{keys}{queue}");
        setup.server_keys = ["high_water = 2"; 4];
    })
}

fn page(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("wait-{name}.html"));
    fs::write(&path, text).expect("the page is written");
    path
}

/// Takes all places.
fn fill(world: &World, vip: IpAddr) -> Held {
    world.hold(vip, Protocol::Tcp, 8)
}

/// What comes back on a connection of its own, and how long that takes.
fn ask(world: &World, vip: IpAddr, request: &[u8]) -> (io::Result<String>, Duration) {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        String::from_utf8(answer).map_err(io::Error::other)
    };
    let begun = Instant::now();
    let answer = world.lab.clients[0].namespace().run(exchange).expect("in the namespace");
    (answer, begun.elapsed())
}

#[track_caller]
fn answer(world: &World, vip: IpAddr, request: &[u8]) -> (String, Duration) {
    let (answer, took) = ask(world, vip, request);
    let answer = answer.unwrap_or_else(|error| {
        panic!("{error}\n{}\n{}", world.gateway.ask(&["queue"]), world.tell());
    });
    (answer, took)
}

#[track_caller]
fn assert_told(world: &World, vip: IpAddr, page: &str) {
    let (answer, took) = answer(world, vip, GET.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}\n{}", world.tell()));
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    for line in ["retry-after: 7", "cache-control: no-store", "connection: close"] {
        assert!(head.lines().any(|given| given == line), "{line} is not in {head}");
    }
    assert_eq!(body, page);
    assert!(took >= DEADLINE && took < THIRD_SYN, "{took:?}\n{}", world.tell());
}

fn ended(world: &World, how: &str) -> u64 {
    let report: QueueReport = serde_json::from_str(&world.gateway.ask(&["queue", "--json"])).expect("a report");
    let classes = report.services.iter().flat_map(|service| &service.classes);
    classes.filter_map(|class| class.ends.get(how)).sum()
}

#[track_caller]
fn wait_all(world: &World, state: &str) {
    for host in &world.lab.servers {
        world.gateway.wait_server(&host.name, state).unwrap_or_else(|error| panic!("{error}\n{}", world.tell()));
    }
}

/// Interfaces that lead to the responder.
fn interfaces(world: &World) -> Vec<String> {
    let links = world.lab.gateway.namespace.command("ip").args(["-oneline", "link"]).output().expect("ip is installed");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    links.lines().filter(|line| line.contains(": lbprobe")).map(str::to_owned).collect()
}

fn who_has_waited_for_too_long_is_told_so_in_every_mode_and_family() {
    for mode in MODES {
        for vip in both() {
            println!("{mode} {vip}");
            let mut world = setup(mode, &[vip], CHECK).up();
            wait_all(&world, "up");
            let held = fill(&world, vip);
            for _ in 0..3 {
                assert_told(&world, vip, PAGE);
            }
            let (head, _) = answer(&world, vip, b"HEAD / HTTP/1.1\r\nhost: web\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("\r\n\r\n"), "{head}");
            let (nonsense, _) = answer(&world, vip, b"\x16\x03\x01 what is this?\r\n\r\n");
            assert!(nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
            world.assert_held(&held);
            assert_eq!((ended(&world, "responded"), ended(&world, "expired")), (5, 0), "{mode} {vip}");
            // It is no server.
            assert_eq!(world.gateway.snapshot().services[0].servers.len(), 4);
            assert!(!world.gateway.ask(&["backends"]).contains("0.0.0.0"));
            wait_all(&world, "up");
            // Who comes back is served once there is room.
            drop(held);
            wait_until("there is room", SOON, || world.try_seen(0, vip).is_ok()).unwrap_or_else(|error| {
                panic!("{mode} {vip}: {error}\n{}", world.tell());
            });
            world.requests(vip, 20);
            world.servers[1].stop(Live::Reset);
            world.gateway.wait_server("server2", "down").unwrap_or_else(|error| panic!("{error}"));
            world.servers[1].restart().expect("it starts again");
            wait_all(&world, "up");
        }
    }
}

fn both_families_of_a_service_have_a_responder() {
    for mode in ["nat", "dnat"] {
        let world = setup(mode, &both(), "").up();
        let held: Vec<Held> = both().into_iter().map(|vip| fill(&world, vip)).collect();
        for vip in both() {
            assert_told(&world, vip, PAGE);
        }
        held.iter().for_each(|held| world.assert_held(held));
    }
    let world = setup("dsr-ipip", &both(), "").up();
    let held = fill(&world, vip4(1).into());
    for vip in both() {
        assert_told(&world, vip, PAGE);
    }
    world.assert_held(&held);
}

fn a_large_page_arrives_whole_over_a_narrow_link() {
    let large = "<p>wait</p>\n".repeat(5_000);
    for vip in both() {
        let world = setup("dsr-ipip", &[vip], "")
            .with(|setup| {
                page("dsr-ipip", &large);
                setup.lab.client_mtu = 1_280;
            })
            .up();
        let held = fill(&world, vip);
        assert_told(&world, vip, &large);
        world.assert_held(&held);
    }
}

fn a_client_that_asks_nothing_is_closed_and_does_not_keep_others_from_an_answer() {
    for mode in ["nat", "dsr-ipip"] {
        let vip = vip4(1).into();
        let world = setup(mode, &[vip], CHECK).up();
        wait_all(&world, "up");
        let held = fill(&world, vip);
        let open = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), SOON)?;
            stream.set_read_timeout(Some(2 * HEAD_TIME))?;
            Ok(stream)
        };
        let begun = Instant::now();
        let client = world.lab.clients[0].namespace();
        let mut silent = client.run(open).expect("in the namespace").expect("connected to the responder");
        assert_told(&world, vip, PAGE);
        assert_eq!(silent.read(&mut [0; 16]).expect("it is closed in order"), 0);
        let took = begun.elapsed();
        assert!(took >= HEAD_TIME && took < 2 * HEAD_TIME, "{took:?}");
        world.assert_held(&held);
        wait_all(&world, "up");
    }
}

fn of_very_many_clients_some_are_closed_at_once_and_then_all_is_well_again() {
    let vip = vip4(1).into();
    let world = setup("nat", &[vip], "").with(|setup| setup.keys += "max_entries = 5000\nmax_per_source = 5000\n").up();
    let held = fill(&world, vip);
    let runtime = Runtime::start(world.lab.clients[0].namespace()).expect("started");
    let begun = Instant::now();
    let silent = (0..1_100).map(|_| {
        runtime.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(SocketAddr::new(vip, 80)).await?;
            stream.read(&mut [0; 16]).await.map(|bytes| (bytes, begun.elapsed()))
        })
    });
    let silent: Vec<_> = silent.collect();
    let ends = runtime.block_on(async move {
        let mut ends = Vec::new();
        for client in silent {
            ends.push(client.await.expect("it ends"));
        }
        ends
    });
    let mut early = 0;
    for end in &ends {
        let (bytes, after) = end.as_ref().expect("it is closed in order");
        assert_eq!(*bytes, 0);
        early += usize::from(*after < HEAD_TIME);
    }
    assert_eq!(early, 1_100 - 1_024, "{ends:?}\n{}", world.tell());
    assert_told(&world, vip, PAGE);
    world.assert_held(&held);
}

fn clients_that_stay_on_a_server_do_not_stay_with_the_responder() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let vip = vip4(1).into();
        let world = setup(mode, &[vip], "affinity = \"client\"\n").up();
        let held = fill(&world, vip);
        assert_told(&world, vip, PAGE);
        drop(held);
        wait_until("there is room", SOON, || world.try_seen(0, vip).is_ok())
            .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
        world.requests(vip, 20);
    }
}

fn the_responder_follows_the_configuration_and_outlives_no_controller() {
    for (mode, vip) in [("nat", IpAddr::from(vip4(1))), ("dnat", vip6(1).into()), ("dsr-gue", vip4(1).into())] {
        println!("{mode}");
        let setup = setup(mode, &[vip], "");
        let mut world = setup.clone().up();
        let held = fill(&world, vip);
        assert_told(&world, vip, PAGE);
        // Another page; none; reset instead; and as before.
        let services = setup.services(&world.lab);
        page(mode, "<p>another</p>");
        world.gateway.reload().expect("reloaded");
        assert_told(&world, vip, "<p>another</p>");
        let without = services.lines().filter(|line| !line.starts_with("page")).collect::<Vec<_>>().join("\n");
        world.gateway.write(&without).expect("written");
        world.gateway.reload().expect("reloaded");
        let (plain, _) = answer(&world, vip, GET.as_bytes());
        assert!(plain.contains("<meta http-equiv=\"refresh\" content=\"7\">"), "{plain}");
        let reset = without.replace("at_deadline = \"respond\"\nretry_after = \"7s\"", "at_deadline = \"reset\"");
        world.gateway.write(&reset).expect("written");
        world.gateway.reload().expect("reloaded");
        let (refused, _) = ask(&world, vip, GET.as_bytes());
        assert_eq!(refused.expect_err("it is refused").kind(), io::ErrorKind::ConnectionRefused);
        page(mode, PAGE);
        world.gateway.write(&services).expect("written");
        world.gateway.reload().expect("reloaded");
        assert_told(&world, vip, PAGE);
        // It ends with its controller, also if a client is there or has vanished; the next answers again.
        let mut silent = Vec::new();
        for (signal, vanishes) in
            [(Signal::SIGKILL, false), (Signal::SIGTERM, false), (Signal::SIGKILL, true), (Signal::SIGTERM, true)]
        {
            let open = || TcpStream::connect_timeout(&SocketAddr::new(vip, 80), SOON);
            let client = &world.lab.clients[0];
            silent.push(client.namespace().run(open).expect("in the namespace").expect("connected to the responder"));
            if vanishes {
                client.link_down(Side::Host).expect("it is down");
            }
            world.gateway.stop(signal);
            wait_until("its interface goes", SOON, || interfaces(&world).is_empty())
                .unwrap_or_else(|error| panic!("{mode} {signal} {vanishes}: {error}"));
            world.assert_held(&held);
            if vanishes {
                world.lab.clients[0].link_up(Side::Host).expect("it is up again");
            }
            world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
            assert_told(&world, vip, PAGE);
            assert_eq!(interfaces(&world).len(), 1);
            world.assert_held(&held);
        }
        // Someone removes the interface: it is made anew.
        let before = interfaces(&world);
        let name = before[0].split(": ").nth(1).and_then(|name| name.split('@').next()).expect("it has a name");
        world.lab.gateway.namespace.ip(&[format!("link del {name}")]).expect("deleted");
        wait_until("it is made anew", SOON, || interfaces(&world).len() == 1 && interfaces(&world) != before)
            .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
        // Until all is at the new one, who comes may get no answer.
        wait_until("it answers", SOON, || ask(&world, vip, GET.as_bytes()).0.is_ok())
            .unwrap_or_else(|error| panic!("{mode}: {error}\n{}", world.tell()));
        assert_told(&world, vip, PAGE);
        world.gateway.stop(Signal::SIGTERM);
        wait_until("its interface goes", SOON, || interfaces(&world).is_empty()).expect("gone");
        world.assert_held(&held);
        let pins = world.gateway.pins.display().to_string();
        let detached = world.gateway.cli(&["detach", "--pins", &pins]);
        assert!(detached.status.success(), "{detached:?}");
        assert!(!world.gateway.pins.exists());
    }
}
