//! Connections that no server takes wait, and are served when one does.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer::api::types::queue::{ClassQueue, QueueReport, ServiceQueue};
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::lab::xdp::Receive;
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::forge;
use loadbalancer_tests::traffic::hold::{Held, Hold, Protocol};
use loadbalancer_tests::traffic::server::Live;
use nix::sys::signal::Signal;

use super::world::{SOON, Setup, World, both};

pub fn trials() -> Vec<Trial> {
    trials![
        what_waits_is_served_in_every_mode_and_family_once_there_is_room,
        a_connection_whose_first_packet_comes_again_waits_as_one,
        at_its_deadline_a_connection_is_refused_or_dropped_as_configured,
        connections_of_an_urgent_class_are_served_first,
        the_first_datagram_of_a_flow_waits_and_is_delivered,
        datagrams_do_not_wait_unless_told_to,
        what_was_released_to_a_server_that_dies_is_served_by_another,
        nothing_is_released_to_a_server_that_is_to_get_nothing_new,
        what_waits_for_a_service_that_is_removed_is_let_go,
        without_its_queue_a_service_lets_go_of_what_waits_and_refuses_at_once,
        while_no_server_is_up_connections_wait_for_one,
        those_that_wait_when_the_controller_is_killed_are_served_by_the_next,
        nobody_is_refused_while_the_controller_is_restarted,
        without_a_controller_nothing_waits_for_longer_than_its_timeout,
        a_client_that_waited_goes_to_its_own_server,
        in_a_flood_honest_clients_are_verified_and_served,
        what_waits_is_told_to_people_and_to_programs,
        without_a_service_that_queues_it_is_told_what_to_do,
    ]
}

/// First packets are sent again after 1, 3 and 7 seconds, as RFC 6298 has it.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const THRICE_AGAIN: Duration = Duration::from_secs(8);
/// Enough for a few rounds of the queue's own look for room.
const A_WHILE_MS: u64 = 200;
/// Marks of servers: flows that each may have.
const ONE: &str = "high_water = 1";
const TWO: &str = "high_water = 2";
/// More than any scenario needs.
const MANY: &str = "high_water = 20";

/// Servers of two flows each, that queue.
fn setup(mode: &'static str, keys: &str) -> Setup {
    queueing(Setup::new(mode), TWO, keys)
}

/// A service that queues, with other keys before those of its queue.
fn queueing(setup: Setup, mark: &'static str, keys: &str) -> Setup {
    let keys = format!("[service.queue]\n{keys}\n");
    setup.with(|setup| setup.keys += &keys).with(|setup| set_marks(setup, mark))
}

fn set_marks(setup: &mut Setup, mark: &'static str) {
    setup.server_keys = [mark; 4];
}

fn report(world: &World) -> QueueReport {
    serde_json::from_str(&world.gateway.ask(&["queue", "--json"])).expect("`queue --json` gives a report")
}

/// All parts of the service in one.
fn total(world: &World, count: impl Fn(&ServiceQueue) -> u64) -> u64 {
    report(world).services.iter().map(count).sum()
}

fn ended(service: &ServiceQueue, how: &str) -> u64 {
    service.classes.iter().filter_map(|class| class.ends.get(how)).sum()
}

fn arrived(service: &ServiceQueue) -> u64 {
    service.classes.iter().map(|class| class.arrived).sum()
}

fn class(world: &World, name: &str) -> ClassQueue {
    let classes = report(world).services.into_iter().flat_map(|service| service.classes);
    classes.into_iter().find(|class| class.name.as_deref() == Some(name)).expect("the class is told")
}

fn tell(world: &World) -> String {
    format!("{}\n{}", world.gateway.ask(&["queue"]), world.tell())
}

#[track_caller]
fn wait(world: &World, what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, SOON, condition).unwrap_or_else(|error| panic!("{error}\n{}", tell(world)));
}

#[track_caller]
fn wait_total(world: &World, what: &str, count: impl Fn(&ServiceQueue) -> u64 + Copy, wanted: u64) {
    wait(world, what, || total(world, count) == wanted);
}

/// For a while, all that wait go on waiting.
fn assert_go_on_waiting(world: &World, wanted: u64) {
    let begun = report(world).taken_ms;
    let mut taken_ms = begun;
    while taken_ms < begun + A_WHILE_MS {
        let report = report(world);
        assert_eq!(report.services.iter().map(|it| it.waiting).sum::<u64>(), wanted, "{}", tell(world));
        taken_ms = report.taken_ms;
    }
}

/// Flows of the second client that need not be served yet.
fn start(world: &World, vip: IpAddr, flows: usize) -> Held {
    start_from(world, 1, Protocol::Tcp, vip, flows)
}

fn start_from(world: &World, client: usize, protocol: Protocol, vip: IpAddr, flows: usize) -> Held {
    let hold = Hold {
        target: SocketAddr::new(vip, 7),
        protocol,
        flows,
        every: Duration::from_millis(10),
        timeout: Duration::from_secs(60),
        max_time: Duration::from_secs(120),
    };
    hold.start(world.lab.clients[client].namespace()).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_served(world: &World, waiting: &Held, deadline: Duration) {
    waiting.wait_exchanges(3, deadline).unwrap_or_else(|error| {
        panic!("{error} {:?}\n{}\n{}", waiting.broken(), world.gateway.ask(&["queue"]), world.tell())
    });
    world.assert_held(waiting);
}

#[track_caller]
fn assert_refused_at_once(world: &World, vip: IpAddr) {
    let before = world.sent_again(0);
    let error = world.try_seen(0, vip).expect_err("all are full");
    assert!(error.contains("refused"), "{error}");
    assert_eq!(world.sent_again(0), before, "it was refused late");
}

fn server_of(held: &Held) -> String {
    held.reports()[0].server.clone().expect("it was served")
}

/// One flow on each of the servers, which are full then.
fn fill(world: &World, vip: IpAddr) -> Vec<Held> {
    (0..4).map(|_| world.hold(vip, Protocol::Tcp, 1)).collect()
}

/// Has the gateway go by another configuration, and waits until the queue does.
fn reload(world: &World, setup: &Setup) {
    world.gateway.write(&setup.services(&world.lab)).expect("written");
    world.gateway.reload().unwrap_or_else(|error| panic!("{error}\n{}", world.gateway.log()));
}

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
            waiting.wait_exchanges(3, SOON).unwrap_or_else(|error| {
                panic!("{mode} {vip}: {error}\n{}\n{}", world.gateway.ask(&["queue"]), world.tell())
            });
            world.assert_held(&waiting);
            assert_eq!(total(&world, |it| ended(it, "released")), 3, "{mode} {vip}");
            assert_eq!(total(&world, |it| it.waiting), 0, "{mode} {vip}");
        }
    }
}

fn a_connection_whose_first_packet_comes_again_waits_as_one() {
    let world = setup("nat", "").up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let waiting = start(&world, vip, 2);
    wait_total(&world, "both have sent another", |it| it.repeated, 2);
    assert_eq!(total(&world, |it| it.waiting), 2);
    assert_eq!(total(&world, arrived), 2);
    drop(first);
    assert_served(&world, &waiting, SOON);
    let report = report(&world);
    assert!(report.services[0].classes[0].waited_s >= 2.0 * FIRST_AGAIN.as_secs_f64(), "{report:?}");
    assert_eq!((ended(&report.services[0], "released"), report.memory), (2, 0), "{report:?}");
}

fn at_its_deadline_a_connection_is_refused_or_dropped_as_configured() {
    let vip = vip4(1).into();
    for (keys, refuse, refused) in [
        ("at_deadline = \"reset\"", "reset", true),
        ("at_deadline = \"reset\"", "drop", true),
        ("at_deadline = \"drop\"", "reset", false),
        ("", "drop", false),
    ] {
        let keys = format!("deadline = \"300ms\"\n{keys}");
        let refuse = format!("refuse = \"{refuse}\"\n");
        let world = queueing(Setup::new("nat").with(|setup| setup.keys += &refuse), TWO, &keys).up();
        let first = world.hold(vip, Protocol::Tcp, 8);
        let waiting = start(&world, vip, 1);
        wait_total(&world, "it waits", |it| it.waiting, 1);
        if refused {
            wait(&world, "it is refused", || waiting.broken().len() == 1);
            let told = waiting.broken()[0].broken.clone().expect("it is broken");
            assert!(told.contains("refused"), "{told}");
            assert_eq!(total(&world, |it| ended(it, "expired")), 1);
        } else {
            // It is told nothing, so it comes again.
            wait_total(&world, "it expires twice", |it| ended(it, "expired"), 2);
            assert_eq!(waiting.broken(), [], "{keys}");
        }
        assert_eq!(total(&world, |it| ended(it, "released")), 0);
        world.assert_held(&first);
    }
}

fn connections_of_an_urgent_class_are_served_first() {
    let world = queueing(Setup::new("nat"), ONE, "").with(|setup| {
        // The addresses of the lab's clients.
        for (name, priority, client) in [("gold", 1, "10.77.1.2/32"), ("bulk", 5, "10.77.2.0/24")] {
            setup.keys += &format!(
                "[[service.queue.class]]\nname = \"{name}\"\npriority = {priority}\nclients = [\"{client}\"]\n"
            );
        }
    });
    let world = world.up();
    let vip = vip4(1).into();
    let mut first = fill(&world, vip);
    let bulk = start_from(&world, 1, Protocol::Tcp, vip, 3);
    wait_total(&world, "bulk waits", |it| it.waiting, 3);
    let gold = start_from(&world, 0, Protocol::Tcp, vip, 3);
    wait_total(&world, "gold waits as well", |it| it.waiting, 6);
    for (name, priority) in [("gold", 1), ("bulk", 5)] {
        let class = class(&world, name);
        assert_eq!((class.priority, class.waiting, class.arrived), (priority, 3, 3), "{class:?}");
        assert!(class.oldest_s.is_some_and(|age| age > 0.0), "{class:?}");
    }
    let released = || ["gold", "bulk"].map(|name| class(&world, name).ends["released"]);
    // The lowest one has its share of one in seventeen, which comes after the first of the other.
    for wanted in [[1, 0], [1, 1], [2, 1], [3, 1]] {
        first.pop();
        wait(&world, "the next is served", || released().iter().sum::<u64>() == wanted.iter().sum::<u64>());
        assert_eq!(released(), wanted);
    }
    assert_served(&world, &gold, SOON);
    assert_eq!(bulk.reports().iter().filter(|flow| flow.exchanges > 0).count(), 1);
}

fn the_first_datagram_of_a_flow_waits_and_is_delivered() {
    for mode in ["nat", "dsr-ipip"] {
        for vip in both() {
            let world = setup(mode, "udp = true").with(|setup| setup.vips = vec![vip]).up();
            let first = world.hold(vip, Protocol::Tcp, 8);
            let waiting = start_from(&world, 1, Protocol::Udp, vip, 3);
            wait_total(&world, "three wait", |it| it.waiting, 3);
            drop(first);
            waiting.wait_exchanges(3, SOON).unwrap_or_else(|error| panic!("{mode} {vip}: {error}\n{}", tell(&world)));
            let reports = waiting.reports();
            assert!(reports.iter().all(|flow| flow.lost == 0 && flow.moves.is_empty()), "{reports:?}");
            assert_eq!(total(&world, |it| ended(it, "released")), 3);
        }
    }
}

fn datagrams_do_not_wait_unless_told_to() {
    let world = setup("nat", "").up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let refused = start_from(&world, 1, Protocol::Udp, vip, 1);
    wait(&world, "it is refused", || refused.reports()[0].lost > 0);
    assert_eq!(total(&world, arrived), 0);
    world.assert_held(&first);
}

fn what_was_released_to_a_server_that_dies_is_served_by_another() {
    for mode in ["nat", "dsr-ipip"] {
        let world = queueing(Setup::new(mode).check(), ONE, "").up();
        let vip = vip4(1).into();
        for host in &world.lab.servers {
            world.gateway.wait_server(&host.name, "up").unwrap_or_else(|error| panic!("{error}"));
        }
        world.gateway.ask(&["backend", "drain", "web/server1"]);
        let mut first: Vec<Held> = (0..3).map(|_| world.hold(vip, Protocol::Tcp, 1)).collect();
        let waiting = start(&world, vip, 1);
        wait_total(&world, "it waits", |it| it.waiting, 1);
        // From here on server1 is dead, but nobody has noticed when the first packet is released to it.
        let server = &world.lab.servers[0];
        server.remove_decap().expect("its hook is free");
        server.set_receive(Some(Receive::Lose(1.0))).expect("attached");
        world.gateway.ask(&["backend", "enable", "web/server1"]);
        wait_total(&world, "it is released", |it| ended(it, "released"), 1);
        world.gateway.wait_server("server1", "down").unwrap_or_else(|error| panic!("{error}"));
        // All others are full, so it waits again.
        wait_total(&world, "it comes again", |it| it.waiting, 1);
        assert_eq!(waiting.reports()[0].exchanges, 0);
        first.pop();
        assert_served(&world, &waiting, SOON);
        assert_ne!(server_of(&waiting), "server1", "{mode}");
        assert_eq!(total(&world, |it| ended(it, "released")), 2);
    }
}

fn nothing_is_released_to_a_server_that_is_to_get_nothing_new() {
    let orders: [&[&str]; 2] = [&["backend", "drain", "web/SERVER"], &["backend", "weight", "web/SERVER", "0"]];
    for order in orders {
        let world = queueing(Setup::new("nat"), ONE, "").up();
        let vip = vip4(1).into();
        let mut first = fill(&world, vip);
        let waiting = start(&world, vip, 1);
        wait_total(&world, "it waits", |it| it.waiting, 1);
        let gone = first.pop().expect("there are four");
        let server = server_of(&gone);
        let order: Vec<String> = order.iter().map(|word| word.replace("SERVER", &server)).collect();
        world.gateway.ask(&order.iter().map(String::as_str).collect::<Vec<_>>());
        drop(gone);
        let is_free = |snapshot: &loadbalancer::api::types::Snapshot| {
            snapshot.services[0].servers.iter().any(|it| it.name == server && it.active == 0)
        };
        world.gateway.wait("it has room", is_free).unwrap_or_else(|error| panic!("{error}"));
        assert_go_on_waiting(&world, 1);
        world.gateway.ask(&["backend", "enable", &format!("web/{server}")]);
        assert_served(&world, &waiting, SOON);
        assert_eq!(server_of(&waiting), server);
    }
}

fn what_waits_for_a_service_that_is_removed_is_let_go() {
    // Else the servers of the new service would have lower marks at first.
    let quality = "quality = { slow_start = { ramp = \"0s\" } }\n";
    let setup = queueing(Setup::new("nat").with(|setup| setup.keys += quality), TWO, "");
    let world = setup.clone().up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let _waiting = start(&world, vip, 2);
    wait_total(&world, "two wait", |it| it.waiting, 2);
    let text = setup.services(&world.lab);
    let other = text.replace("\"web\"", "\"second\"").replace("192.0.2.1:", "192.0.2.2:");
    world.gateway.write(&other).expect("written");
    world.gateway.reload().expect("reloaded");
    wait(&world, "it is gone", || report(&world).services.iter().all(|service| service.name != "web"));
    let told = report(&world);
    assert_eq!((told.memory, told.services.len()), (0, 1), "{told:?}");
    drop(first);
    // The other one queues as well.
    let second = vip4(2).into();
    let first = world.hold(second, Protocol::Tcp, 8);
    let waiting = start(&world, second, 1);
    wait_total(&world, "one waits", |it| it.waiting, 1);
    drop(first);
    assert_served(&world, &waiting, SOON);
}

fn without_its_queue_a_service_lets_go_of_what_waits_and_refuses_at_once() {
    let setup = setup("nat", "");
    let world = setup.clone().up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let waiting = start(&world, vip, 2);
    wait_total(&world, "two wait", |it| it.waiting, 2);
    reload(&world, &setup.clone().with(|setup| setup.keys = String::new()));
    wait(&world, "nothing queues", || report(&world).services.is_empty());
    assert_refused_at_once(&world, vip);
    // Those who waited send their first packets again.
    wait(&world, "they are refused", || waiting.broken().len() == 2);
    world.assert_held(&first);
    // And back.
    reload(&world, &setup);
    wait(&world, "it queues again", || !report(&world).services.is_empty());
    let waiting = start(&world, vip, 1);
    wait_total(&world, "one waits", |it| it.waiting, 1);
    drop(first);
    assert_served(&world, &waiting, SOON);
}

fn while_no_server_is_up_connections_wait_for_one() {
    for mode in ["nat", "dsr-ipip"] {
        let mut world = queueing(Setup::new(mode).check(), MANY, "").up();
        let vip = vip4(1).into();
        world.servers.iter_mut().for_each(|server| server.stop(Live::Reset));
        for host in &world.lab.servers {
            world.gateway.wait_server(&host.name, "down").unwrap_or_else(|error| panic!("{error}"));
        }
        let waiting = start(&world, vip, 5);
        wait_total(&world, "five wait", |it| it.waiting, 5);
        world.servers[2].restart().expect("it starts");
        assert_served(&world, &waiting, SOON);
        assert_eq!(waiting.by_server(), [("server3".to_owned(), 5)].into(), "{mode}");
        assert_eq!(total(&world, |it| ended(it, "released")), 5);
    }
}

fn those_that_wait_when_the_controller_is_killed_are_served_by_the_next() {
    let setup = setup("nat", "deadline = \"30s\"");
    let mut world = setup.clone().up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let waiting = start(&world, vip, 50);
    wait_total(&world, "fifty wait", |it| it.waiting, 50);
    world.gateway.stop(Signal::SIGKILL);
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    // They come again, and wait again.
    wait_total(&world, "fifty wait again", |it| it.waiting, 50);
    reload(&world, &setup.with(|setup| set_marks(setup, MANY)));
    assert_served(&world, &waiting, THRICE_AGAIN);
    world.assert_held(&first);
}

fn nobody_is_refused_while_the_controller_is_restarted() {
    for (mode, signal) in [("nat", Signal::SIGTERM), ("dsr-ipip", Signal::SIGKILL)] {
        let vip = IpAddr::from(vip4(1));
        let mut world = setup(mode, "").with(|setup| set_marks(setup, ONE)).up();
        let held = fill(&world, vip);
        let stop = AtomicBool::new(false);
        let client = world.lab.clients[0].namespace().clone();
        let (tries, refused) = thread::scope(|scope| {
            let tries = scope.spawn(|| {
                let all = || {
                    let (mut tries, mut refused) = (0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        // They wait, so that none connects in this time.
                        let tried = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), Duration::from_millis(5));
                        refused += u32::from(tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
                        tries += 1;
                    }
                    (tries, refused)
                };
                client.run(all).expect("in the namespace")
            });
            wait(&world, "some wait", || total(&world, |it| it.waiting) > 5);
            world.gateway.stop(signal);
            world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
            wait(&world, "some wait again", || total(&world, |it| it.waiting) > 5);
            stop.store(true, Ordering::Relaxed);
            tries.join().expect("nobody panics")
        });
        assert_eq!(refused, 0, "{mode}, {signal}: {refused} of {tries} were refused\n{}", tell(&world));
        held.iter().for_each(|held| world.assert_held(held));
    }
}

fn without_a_controller_nothing_waits_for_longer_than_its_timeout() {
    let world = setup("nat", "[queue]\ncontroller_timeout = \"1s\"");
    for mode in ["nat", "dsr-ipip"] {
        let mut world = world.clone().with(|setup| setup.mode = mode).up();
        let vip = vip4(1).into();
        let first = world.hold(vip, Protocol::Tcp, 8);
        let waiting = start(&world, vip, 2);
        wait_total(&world, "two wait", |it| it.waiting, 2);
        world.gateway.stop(Signal::SIGKILL);
        // Their first packets come again after a second or three.
        wait_until("they are refused", SOON, || waiting.broken().len() == 2)
            .unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_refused_at_once(&world, vip);
        first.wait_exchanges(20, SOON).expect("flows go on");
        assert_eq!(first.broken(), []);
        drop(first);
        wait_until("there is room", SOON, || world.try_seen(0, vip).is_ok())
            .unwrap_or_else(|error| panic!("{mode}: {error}"));
        world.requests_without_controller(vip, 20);
        // The next one has connections wait again.
        world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
        let first = world.hold(vip, Protocol::Tcp, 8);
        let waiting = start(&world, vip, 1);
        wait_total(&world, "one waits", |it| it.waiting, 1);
        drop(first);
        assert_served(&world, &waiting, SOON);
    }
}

fn a_client_that_waited_goes_to_its_own_server() {
    for mode in ["nat", "dsr-ipip"] {
        let mut setup = queueing(Setup::new(mode).with(|setup| setup.keys += "affinity = \"client\"\n"), TWO, "");
        let world = setup.clone().up();
        let vip = vip4(1).into();
        let own = world.seen(0, vip).server;
        // It has two flows and the others one each, so it would not be the next.
        setup.server_keys = std::array::from_fn(|index| if world.lab.servers[index].name == own { TWO } else { ONE });
        reload(&world, &setup);
        let active = |snapshot: &loadbalancer::api::types::Snapshot| {
            snapshot.services[0].servers.iter().map(|server| server.active).sum::<u32>()
        };
        world.gateway.wait("no flow is active", |now| active(now) == 0).unwrap_or_else(|error| panic!("{error}"));
        let first = world.hold(vip, Protocol::Tcp, 5);
        assert_eq!(first.by_server().len(), 4, "{:?}", first.by_server());
        let waiting = start_from(&world, 0, Protocol::Tcp, vip, 1);
        wait_total(&world, "it waits", |it| it.waiting, 1);
        reload(&world, &setup.with(|setup| set_marks(setup, MANY)));
        assert_served(&world, &waiting, SOON);
        assert_eq!(server_of(&waiting), own, "{mode}");
    }
}

fn in_a_flood_honest_clients_are_verified_and_served() {
    let world = setup("nat", "max_entries = 40").up();
    let vip = vip4(1);
    let first = world.hold(vip.into(), Protocol::Tcp, 8);
    let early = start_from(&world, 0, Protocol::Tcp, vip.into(), 1);
    wait_total(&world, "one waits", |it| it.waiting, 1);
    assert_eq!(total(&world, |it| it.unverified), 1);
    let forger = &world.lab.clients[1];
    let target = forge::Target {
        macs: [&forger.far, &forger.near].map(|end| forge::mac_of(end).expect("it has one")),
        vip,
        port: 80,
        first_source: "100.64.0.0".parse().expect("an address"),
        sources: 1_000,
    };
    let send = |count| {
        let sent = forger.namespace().run(|| forge::send(&forger.near.device, &target, count));
        sent.expect("in its namespace").expect("sent");
    };
    send(20);
    wait(&world, "clients are asked", || report(&world).services[0].challenges);
    wait(&world, "the one that waits answers", || {
        let service = &report(&world).services[0];
        service.waiting > service.unverified
    });
    send(5_000);
    assert!(world.gateway.ask(&["queue"]).contains("clients must show that they are at their address"));
    // One more from the same client, and one that nobody knows yet.
    let late = start_from(&world, 0, Protocol::Tcp, vip.into(), 1);
    wait(&world, "both are verified", || {
        let service = &report(&world).services[0];
        service.waiting == service.unverified + 2
    });
    let unknown = start(&world, vip.into(), 1);
    drop(first);
    for honest in [early, late, unknown] {
        assert_served(&world, &honest, SOON);
    }
    // Nobody else was, while clients were asked.
    assert!(total(&world, |it| ended(it, "released")) <= 3, "{}", tell(&world));
    assert!(world.outcome("challenged") > 1_000, "{}", tell(&world));
}

fn what_waits_is_told_to_people_and_to_programs() {
    let world = setup("nat", "[metrics]\nlisten = \"10.77.1.1:9077\"").up();
    let vip = vip4(1).into();
    let first = world.hold(vip, Protocol::Tcp, 8);
    let waiting = start(&world, vip, 3);
    wait_total(&world, "three wait", |it| it.waiting, 3);
    let table = world.gateway.ask(&["queue"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0].join(" "), "SERVICE CLASS PRIO WAITING OLDEST P50 P99 ARRIVED RELEASED NOT RELEASED");
    assert_eq!(lines[1][..4], ["web", "-", "3", "3"], "{table}");
    assert!(table.contains("\nmemory 990B of 67.1MB (0.0 %)"), "{table}");
    let pins = world.gateway.pins.display().to_string();
    let stats = world.gateway.ask(&["stats", "--pins", &pins]);
    assert!(stats.contains("web: 3 wait (the oldest for "), "{stats}");
    drop(first);
    assert_served(&world, &waiting, SOON);
    let stats = world.gateway.ask(&["stats", "--pins", &pins]);
    assert!(stats.contains("web: 0 wait, 3 released, 0 ended otherwise"), "{stats}");
    let target = SocketAddr::new(world.lab.clients[0].gateway.ipv4.into(), 9077);
    let query = Query::get("/metrics");
    let answer =
        fetch(world.lab.clients[0].namespace(), target, &query, SOON).unwrap_or_else(|error| panic!("{error}"));
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let labels = "service=\"web\",class=\"\",priority=\"3\"";
    for series in [
        format!("loadbalancer_queue_waiting{{{labels}}} 0"),
        format!("loadbalancer_queue_arrived_total{{{labels}}} 3"),
        format!("loadbalancer_queue_ended_total{{{labels},how=\"released\"}} 3"),
        format!("loadbalancer_queue_ended_total{{{labels},how=\"expired\"}} 0"),
        format!("loadbalancer_queue_wait_p99_seconds{{{labels}}} "),
        "loadbalancer_queue_challenges{service=\"web\"} 0".to_owned(),
        "loadbalancer_queue_memory_limit_bytes 67108864".to_owned(),
    ] {
        assert!(text.contains(&series), "{series} is not in\n{text}");
    }
}

fn without_a_service_that_queues_it_is_told_what_to_do() {
    let world = Setup::new("nat").up();
    let told = world.gateway.ask(&["queue"]);
    assert_eq!(
        told.trim_end(),
        "no service queues\nhelp: add [service.queue] to a service, and `high_water` to its servers"
    );
    let told = report(&world);
    assert_eq!((told.services, told.memory, told.error), (vec![], 0, None));
}
