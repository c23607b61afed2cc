//! The lab on plain kernel routing: what the system tests build on works, and nothing is left of it. Needs root.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use loadbalancer_tests::chance;
use loadbalancer_tests::lab::events::{Side, wait_until};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::{LabConfig, Topology};
use loadbalancer_tests::lab::run::{Run, processes, traces};
use loadbalancer_tests::lab::xdp::Receive;
use loadbalancer_tests::lab::{Lab, vip4, vip6};
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::client::{Answer, FetchError, Query, RequestError, fetch};
use loadbalancer_tests::traffic::hold::{Held, Hold, Protocol};
use loadbalancer_tests::traffic::http::Seen;
use loadbalancer_tests::traffic::load::{Load, Pace};
use loadbalancer_tests::traffic::server::{Live, Ports, Server};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub fn trials() -> Vec<Trial> {
    trials![
        every_client_reaches_every_server_in_both_topologies_and_families,
        a_virtual_address_on_a_server_answers_with_itself_as_source,
        replies_of_a_segment_do_not_pass_the_gateway,
        frames_up_to_the_links_mtu_pass_both_ways,
        a_load_counts_what_the_server_served,
        an_open_load_keeps_its_rate_when_the_server_is_slow,
        failures_are_told_by_kind,
        a_stopped_server_resets_or_leaves_its_connections_and_can_return,
        streams_come_line_by_line_and_a_reset_cuts_them,
        held_flows_survive_a_link_that_comes_back,
        a_new_mac_address_is_announced_and_takes_over,
        a_lossy_link_loses_its_share,
        nothing_is_left_of_a_lab_that_was_dropped,
        nothing_is_left_of_a_lab_that_panicked,
        a_signal_removes_the_lab,
        the_next_run_removes_what_a_killed_one_left_but_no_live_one,
        pins_of_this_run_and_of_crashed_ones_are_removed,
        #[ignore]
        lab_until_killed,
    ]
}

const SOON: Duration = Duration::from_secs(5);

fn lab(config: LabConfig) -> Lab {
    Lab::up(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn servers(lab: &Lab) -> Vec<Server> {
    let start = |host: &Host| Server::start(host.namespace(), &host.name, Ports::default());
    lab.servers.iter().map(|host| start(host).unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn both_families(host: &Host) -> [IpAddr; 2] {
    [host.addresses.ipv4.into(), host.addresses.ipv6.into()]
}

fn ask(client: &Host, address: IpAddr, query: &Query) -> Result<Answer, FetchError> {
    fetch(client.namespace(), SocketAddr::new(address, 80), query, SOON)
}

fn seen(client: &Host, address: IpAddr) -> Seen {
    let answer = ask(client, address, &Query::get("/")).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_slice(&answer.body).expect("servers answer in JSON")
}

fn hold(client: &Host, address: IpAddr, protocol: Protocol) -> Held {
    let hold = Hold {
        target: SocketAddr::new(address, 7),
        protocol,
        flows: 5,
        every: Duration::from_millis(5),
        // A datagram may be lost to what a test does; the next one follows soon.
        timeout: if protocol == Protocol::Udp { Duration::from_millis(100) } else { SOON },
        max_time: Duration::from_secs(60),
    };
    hold.start(client.namespace()).unwrap_or_else(|error| panic!("{error}"))
}

/// Has the gateway's kernel route a virtual address to a server.
fn route_vip(lab: &Lab, vip: IpAddr, server: &Host) {
    let prefix = if vip.is_ipv4() { 32 } else { 128 };
    let route = format!("route replace {vip}/{prefix} via {}", server.address_like(vip));
    lab.gateway.namespace.ip(&[route]).unwrap_or_else(|error| panic!("{error}"));
}

/// Packets that an interface has received.
fn received(namespace: &Namespace, device: &str) -> u64 {
    let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("entered");
    let table = table.expect("procfs is there");
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).expect("the device is listed")
}

fn every_client_reaches_every_server_in_both_topologies_and_families() {
    for topology in [Topology::Routed, Topology::Segment] {
        let begun = Instant::now();
        let lab = lab(LabConfig { topology, ..LabConfig::default() });
        let up = begun.elapsed();
        println!("{topology:?} lab up in {up:?}");
        let _servers = servers(&lab);
        for client in &lab.clients {
            for server in &lab.servers {
                for address in both_families(server) {
                    let seen = seen(client, address);
                    assert_eq!(seen.server, server.name);
                    assert_eq!(seen.local, SocketAddr::new(address, 80));
                    assert_eq!(seen.client.ip(), client.address_like(address), "{topology:?}");
                }
            }
        }
    }
}

fn a_virtual_address_on_a_server_answers_with_itself_as_source() {
    for topology in [Topology::Routed, Topology::Segment] {
        let lab = lab(LabConfig { topology, ..LabConfig::default() });
        let _servers = servers(&lab);
        for vip in [IpAddr::from(vip4(1)), vip6(1).into()] {
            lab.add_vip_to_servers(vip).expect("VIP added");
            route_vip(&lab, vip, &lab.servers[2]);
            assert_eq!(seen(&lab.clients[0], vip).local.ip(), vip);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let held = hold(&lab.clients[1], vip, protocol);
                held.wait_exchanges(3, SOON).expect("flows go on");
                assert_eq!(held.by_server().into_iter().collect::<Vec<_>>(), [("server3".to_owned(), 5)]);
            }
        }
    }
}

fn replies_of_a_segment_do_not_pass_the_gateway() {
    let lab = lab(LabConfig { topology: Topology::Segment, ..LabConfig::default() });
    let _servers = servers(&lab);
    let vip = vip4(1).into();
    lab.add_vip_to_servers(vip).expect("VIP added");
    route_vip(&lab, vip, &lab.servers[0]);
    let before = received(&lab.gateway.namespace, "lan");
    let body = ask(&lab.clients[0], vip, &Query::get("/bytes/1000000")).expect("answered").body;
    assert_eq!(body.len(), 1_000_000);
    let packets = received(&lab.gateway.namespace, "lan") - before;
    let of_body = 1_000_000 / 1448;
    assert!(packets > 2, "requests pass the gateway");
    // Acknowledgements pass it, at most one for each packet of the body; both together would be more.
    assert!(packets < of_body * 3 / 2, "{packets} packets passed the gateway for {of_body} of the body");
}

fn frames_up_to_the_links_mtu_pass_both_ways() {
    for (client_mtu, server_mtu, changed_to) in
        [(1500, 1500, 1500), (9000, 9000, 9000), (9000, 1500, 9000), (1280, 9000, 1280)]
    {
        let lab = lab(LabConfig { client_mtu, server_mtu, ..LabConfig::default() });
        let _servers = servers(&lab);
        lab.servers[0].set_mtu(changed_to).expect("the receiving programs take any size");
        for address in both_families(&lab.servers[0]) {
            let upload = Query { upload_bytes: 300_000, ..Query::get("/") };
            let answer = ask(&lab.clients[0], address, &upload).expect("upload answered");
            let seen: Seen = serde_json::from_slice(&answer.body).expect("JSON");
            assert_eq!((seen.method.as_str(), seen.body_bytes), ("POST", 300_000));
            let download = Query::get("/bytes/300000");
            assert_eq!(ask(&lab.clients[0], address, &download).expect("answered").body.len(), 300_000);
        }
    }
}

fn a_load_counts_what_the_server_served() {
    let lab = lab(LabConfig::default());
    let servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[1].addresses.ipv4.into(), 80);
    let open = Pace::Open { per_second: 1000.0, max_in_flight: 500 };
    let closed = Pace::Closed { workers: 4 };
    let mut sent = 0;
    for (pace, close) in [(closed, false), (closed, true), (open, false), (open, true)] {
        let connections = servers[1].counts().connections;
        let query = Query { close, ..Query::get("/") };
        let load = Load { pace, query, max_requests: 500, ..Load::new(target) };
        let report = load.start(lab.clients[0].namespace()).expect("started").wait();
        assert_eq!((report.ok, report.failed()), (500, 0), "{pace:?}: {:?}", report.failures);
        assert_eq!(report.by_server.into_iter().collect::<Vec<_>>(), [("server2".to_owned(), 500)]);
        assert_eq!(report.latency_us.len(), 500);
        sent += 500;
        assert_eq!(servers[1].counts().http_requests, sent);
        let connections = servers[1].counts().connections - connections;
        assert_eq!(connections == 500, close, "{connections} connections");
    }
}

fn an_open_load_keeps_its_rate_when_the_server_is_slow() {
    let lab = lab(LabConfig::default());
    let servers = servers(&lab);
    servers[0].set_behaviour(Behaviour { delay: Duration::from_millis(200), ..Behaviour::default() });
    let target = SocketAddr::new(lab.servers[0].addresses.ipv6.into(), 80);
    let pace = Pace::Open { per_second: 100.0, max_in_flight: 10 };
    let load = Load { pace, max_requests: 100, ..Load::new(target) };
    let report = load.start(lab.clients[0].namespace()).expect("started").wait();
    assert_eq!(report.ok + report.failed(), 100);
    // 20 are due within a delay, and 10 have room.
    assert!(report.errors["not-sent"] >= 30, "{:?}", report.errors);
    assert!(report.latency_us.min() >= 200_000, "{} us", report.latency_us.min());
}

fn failures_are_told_by_kind() {
    let lab = lab(LabConfig::default());
    let mut servers = servers(&lab);
    let [client, server] = [&lab.clients[0], &lab.servers[0]];
    let failure = |address, path, timeout_ms| {
        let target = SocketAddr::new(address, 80);
        match fetch(client.namespace(), target, &Query::get(path), Duration::from_millis(timeout_ms)) {
            Err(FetchError::Request { source, .. }) => source.label(),
            other => panic!("{other:?}"),
        }
    };
    let address = server.addresses.ipv4.into();
    servers[0].set_behaviour(Behaviour { status: 503, ..Behaviour::default() });
    assert_eq!(failure(address, "/", 5000), RequestError::Status(503).label());
    servers[0].set_behaviour(Behaviour { delay: SOON, ..Behaviour::default() });
    assert_eq!(failure(address, "/", 100), "timed-out");
    servers[0].stop(Live::Reset);
    assert_eq!(failure(address, "/", 5000), "refused");
    assert_eq!(failure(vip4(9).into(), "/", 5000), "unreachable");
    server.link_down(Side::Host).expect("down");
    assert_eq!(failure(address, "/", 100), "connect-timed-out");
}

fn a_stopped_server_resets_or_leaves_its_connections_and_can_return() {
    let lab = lab(LabConfig::default());
    let mut servers = servers(&lab);
    let [client, host] = [&lab.clients[0], &lab.servers[0]];
    let address = host.addresses.ipv4.into();
    let held = hold(client, address, Protocol::Tcp);
    held.wait_exchanges(2, SOON).expect("flows go on");
    servers[0].stop(Live::Leave);
    ask(client, address, &Query::get("/")).expect_err("the listener is closed");
    held.wait_exchanges(2, SOON).expect("live connections are left");
    servers[0].restart().expect("the port is free again");
    assert_eq!(seen(client, address).server, host.name);
    servers[0].stop(Live::Reset);
    assert_eq!(servers[0].counts().open, 0);
    wait_until("all flows broken", SOON, || held.broken().len() == 5).expect("resets arrive");
    for flow in held.broken() {
        assert!(flow.broken.as_deref().is_some_and(|why| why.contains("reset")), "{flow:?}");
    }
    servers[0].restart().expect("the port is free again");
    hold(client, address, Protocol::Tcp).wait_exchanges(2, SOON).expect("flows go on");
}

fn streams_come_line_by_line_and_a_reset_cuts_them() {
    let lab = lab(LabConfig::default());
    let mut servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    let answer = ask(&lab.clients[0], target.ip(), &Query::get("/stream/3/10")).expect("answered");
    assert_eq!(answer.body, "server1 0\nserver1 1\nserver1 2\n");
    let endless = Query::get("/stream/100000/10");
    let load = Load { query: endless, max_requests: 8, ..Load::new(target) };
    let running = load.start(lab.clients[0].namespace()).expect("started");
    wait_until("8 streams under way", SOON, || servers[0].counts().http_requests == 9).expect("they begin");
    servers[0].stop(Live::Reset);
    let report = running.stop();
    assert_eq!((report.ok, report.failed()), (0, 8));
    assert!(report.errors.keys().all(|kind| ["reset", "closed"].contains(kind)), "{:?}", report.errors);
}

fn held_flows_survive_a_link_that_comes_back() {
    let lab = lab(LabConfig::default());
    let _servers = servers(&lab);
    let host = &lab.servers[0];
    for address in both_families(host) {
        for side in [Side::Host, Side::Far] {
            let held = hold(&lab.clients[0], address, Protocol::Tcp);
            held.wait_exchanges(2, SOON).expect("flows go on");
            host.link_down(side).expect("down");
            // The first may have been under way.
            held.wait_exchanges(2, Duration::from_millis(100)).expect_err("nothing passes a link that is down");
            host.link_up(side).expect("up");
            held.wait_exchanges(2, SOON).expect("flows go on");
            assert_eq!(held.broken(), []);
        }
    }
}

fn a_new_mac_address_is_announced_and_takes_over() {
    for topology in [Topology::Routed, Topology::Segment] {
        let lab = lab(LabConfig { topology, ..LabConfig::default() });
        let _servers = servers(&lab);
        let host = &lab.servers[0];
        for (address, mac) in both_families(host).into_iter().zip([[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 10]]) {
            let vip = if address.is_ipv4() { vip4(1).into() } else { vip6(1).into() };
            host.add_vip(vip).expect("VIP added");
            route_vip(&lab, vip, host);
            let held = hold(&lab.clients[0], vip, Protocol::Udp);
            held.wait_exchanges(2, SOON).expect("flows go on");
            host.set_mac(mac).expect("set");
            // Sooner than a neighbour that is not told asks for the address again (`delay_first_probe_time`).
            held.wait_exchanges(2, Duration::from_secs(4)).expect("flows go on");
        }
    }
}

fn a_lossy_link_loses_its_share() {
    let lab = lab(LabConfig::default());
    let servers = servers(&lab);
    // Lost neighbour discovery would stop everything for a second: it happens before.
    seen(&lab.clients[0], lab.servers[0].addresses.ipv4.into());
    lab.servers[0].set_receive(Some(Receive::Lose(0.3))).expect("attached");
    let hold = Hold {
        target: SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 7),
        protocol: Protocol::Udp,
        flows: 20,
        every: Duration::from_millis(1),
        timeout: Duration::from_millis(20),
        max_time: Duration::from_secs(30),
    };
    let held = hold.start(lab.clients[0].namespace()).expect("started");
    // Late answers count as lost at the client, so what arrived is asked of the server.
    let sent = || held.reports().iter().map(|flow| flow.lost + flow.exchanges).sum::<u64>();
    wait_until("2,000 datagrams", Duration::from_secs(20), || sent() >= 2000).expect("they are sent");
    // Each flow has one under way at most.
    let (least, arrived, most) = (sent(), servers[0].counts().datagrams, sent() + 20);
    let likely = *chance::counts(least, 0.7).start()..=*chance::counts(most, 0.7).end();
    assert!(likely.contains(&arrived), "{arrived} of {least}, not {likely:?}");
}

fn nothing_is_left_of_a_lab_that_was_dropped() {
    let lab = lab(LabConfig { channels: 2, ..LabConfig::default() });
    let _servers = servers(&lab);
    let id = lab.run().id().to_owned();
    let mut child = lab.clients[0].namespace().command("sleep").arg("60").spawn().expect("sleep is there");
    wait_until("the process is in the namespace", SOON, || !processes(&id).is_empty()).expect("it starts");
    assert!(traces(&id).len() >= 8, "{:?}", traces(&id));
    drop(lab);
    assert_eq!(traces(&id), Vec::<PathBuf>::new());
    assert_eq!(processes(&id), []);
    assert!(!child.wait().expect("waited").success(), "the process was killed");
}

fn nothing_is_left_of_a_lab_that_panicked() {
    let (tell, told) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = lab(LabConfig::default());
        tell.send(lab.run().id().to_owned()).expect("the test waits");
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert_eq!(traces(&told.recv().expect("it was up")), Vec::<PathBuf>::new());
}

fn a_signal_removes_the_lab() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (mut child, id) = lab_in_a_process();
        kill(Pid::from_raw(child.id() as i32), signal).expect("it lives");
        assert_eq!(child.wait().expect("waited").code(), Some(128 + signal as i32));
        assert_eq!(traces(&id), Vec::<PathBuf>::new());
    }
}

fn the_next_run_removes_what_a_killed_one_left_but_no_live_one() {
    let (mut live, live_id) = lab_in_a_process();
    let (mut killed, killed_id) = lab_in_a_process();
    killed.kill().expect("it lives");
    killed.wait().expect("waited");
    assert!(!traces(&killed_id).is_empty(), "a killed process cannot clean up");
    let live_traces = traces(&live_id);
    drop(Run::start().unwrap_or_else(|error| panic!("{error}")));
    assert_eq!(traces(&killed_id), Vec::<PathBuf>::new());
    assert_eq!(traces(&live_id), live_traces);
    kill(Pid::from_raw(live.id() as i32), Signal::SIGTERM).expect("it lives");
    live.wait().expect("waited");
}

fn pins_of_this_run_and_of_crashed_ones_are_removed() {
    // On a thread with mounts of its own, so that the machine's BPF file system is not touched.
    let pins = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("root may");
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).expect("the kernel has bpffs");
        // No process has this number: it is above the kernel's limit.
        let crashed = Path::new("/sys/fs/bpf/loadbalancer-lab-99999999/maps");
        let other = Path::new("/sys/fs/bpf/loadbalancer/maps");
        for dir in [crashed, other] {
            std::fs::create_dir_all(dir).expect("bpffs takes directories");
        }
        let runs = [(); 2].map(|()| Run::start().unwrap_or_else(|error| panic!("{error}")));
        assert!(!crashed.exists());
        let own = runs.each_ref().map(|run| run.pin_dir().join("maps"));
        for dir in &own {
            std::fs::create_dir_all(dir).expect("bpffs takes directories");
        }
        drop(runs);
        assert_eq!(own.iter().filter(|dir| dir.exists()).count(), 0);
        assert!(other.exists(), "what is not the lab's stays");
    });
    pins.join().expect("nothing panicked");
}

/// Starts [`lab_until_killed`] as a process and gives the id of its run.
fn lab_in_a_process() -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "lab::hosts::lab_until_killed", "--ignored"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let id = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("run ").map(str::to_owned));
    (child, id.expect("the lab comes up"))
}

/// The removal tests run it as a process of its own.
fn lab_until_killed() {
    let lab = lab(LabConfig { clients: 1, servers: 1, channels: 2, ..LabConfig::default() });
    println!("\nrun {}", lab.run().id());
    wait_until("killed", Duration::from_secs(60), || false).expect("killed before");
}
