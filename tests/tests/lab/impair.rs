//! Impaired links, changeable servers and open loads do what they say. Needs root.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::Trial;
use loadbalancer_tests::chance;
use loadbalancer_tests::lab::Lab;
use loadbalancer_tests::lab::channel::Channel;
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::impair::{Impairment, Rate};
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::{LabConfig, Topology};
use loadbalancer_tests::lab::priority;
use loadbalancer_tests::lab::relay::Direction;
use loadbalancer_tests::traffic::agent::Agent;
use loadbalancer_tests::traffic::behaviour::{Behaviour, ServiceTime};
use loadbalancer_tests::traffic::client::{Query, fetch};
use loadbalancer_tests::traffic::http::Seen;
use loadbalancer_tests::traffic::load::{Load, Pace};
use loadbalancer_tests::traffic::server::{AGENT_PORT, Ports, Server};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

pub fn trials() -> Vec<Trial> {
    trials![
        every_server_is_reached_over_every_channel_and_answers_over_the_same,
        the_kernel_leaves_a_channel_that_is_down_and_returns,
        a_servers_own_relay_impairs_it_alone,
        #[alone]
        delay_is_added_within_a_millisecond_at_20000_frames_a_second,
        loss_takes_its_share_and_a_cut_all,
        #[alone]
        a_relay_takes_about_the_time_of_the_sender_and_carries_a_part_of_what_a_plain_link_does,
        jitter_varies_the_delay_within_its_bounds_and_keeps_the_order,
        #[alone]
        a_rate_bounds_what_passes_and_its_queue_what_waits,
        frames_of_any_size_pass_whole,
        #[alone]
        a_server_with_workers_is_a_queue_about_as_theory_has_it,
        #[alone]
        a_server_serves_its_capacity_and_changes_it_while_it_runs,
        thousands_of_connections_are_held,
        shares_of_requests_fail_and_of_connections_are_reset,
        agents_say_what_they_are_told_and_how_busy_the_server_is,
        #[alone]
        an_open_load_keeps_its_times_and_counts_by_second,
        #[alone]
        a_stall_shows_in_the_latency_of_all_requests_that_were_due_in_it,
    ]
}

const SOON: Duration = Duration::from_secs(5);
/// The most of a sender's processor time that a relay takes for the same frames.
const RELAY_TO_SENDER: f64 = 3.0;
/// The least of what a plain link carries that a relay does.
const RELAYED_TO_PLAIN: f64 = 1.0 / 40.0;

fn lab(servers: u8, channels: u8) -> Lab {
    let config = LabConfig { clients: 1, servers, channels, ..LabConfig::default() };
    Lab::up(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn servers(lab: &Lab) -> Vec<Server> {
    let start = |host: &Host| Server::start(host.namespace(), &host.name, Ports::default());
    lab.servers.iter().map(|host| start(host).unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn both_families(host: &Host) -> [IpAddr; 2] {
    [host.addresses.ipv4.into(), host.addresses.ipv6.into()]
}

fn seen(from: &Namespace, address: IpAddr) -> Seen {
    let answer =
        fetch(from, SocketAddr::new(address, 80), &Query::get("/"), SOON).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_slice(&answer.body).expect("servers answer in JSON")
}

/// Has the gateway's kernel reach an address over one channel.
fn route_over(lab: &Lab, channel: &Channel, address: IpAddr) {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let via = channel.next_hop.map_or_else(String::new, |router| format!("via {}", router.like(address)));
    let route = format!("route replace {address}/{prefix} {via} dev {} metric 1", channel.near.device);
    let other = lab.channels.iter().filter(|other| other.name != channel.name);
    // IPv6 would take both.
    let others = other.map(|other| format!("route del {address}/{prefix} dev {} metric 1", other.near.device));
    for line in others {
        // Most are not there.
        lab.gateway.namespace.ip(&[line]).unwrap_or_default();
    }
    lab.gateway.namespace.ip(&[route]).unwrap_or_else(|error| panic!("{error}"));
}

/// Datagrams that the gateway sends to the first server over the first channel, evenly in time.
struct Datagrams {
    count: u32,
    per_second: u32,
    bytes: usize,
}

impl Datagrams {
    /// The delay of each datagram from its sender to the kernel of its receiver, or none if it was lost.
    fn delays(&self, lab: &Lab) -> Vec<Option<Duration>> {
        self.sent(lab).0
    }

    /// The delays, and the processor time of the sender.
    fn sent(&self, lab: &Lab) -> (Vec<Option<Duration>>, Duration) {
        let address = lab.servers[0].addresses.ipv4;
        let sink = lab.servers[0].namespace().run(|| UdpSocket::bind((address, 0))).expect("entered").expect("bound");
        let target = sink.local_addr().expect("bound");
        setsockopt(&sink, RcvBufForce, &(64 << 20)).expect("root may");
        setsockopt(&sink, ReceiveTimestampns, &true).expect("supported");
        sink.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
        let mut delays = vec![None; self.count as usize];
        let sender = thread::scope(|scope| {
            let sender = scope.spawn(|| lab.gateway.namespace.run(|| self.send(target)).expect("sent"));
            // The last may be lost: a second without any ends it.
            while let Some((number, delay)) = receive(&sink) {
                delays[number as usize] = Some(delay);
                if number + 1 == self.count {
                    break;
                }
            }
            sender.join().expect("nobody panics")
        });
        (delays, sender)
    }

    /// Gives the processor time that it took.
    fn send(&self, target: SocketAddr) -> Duration {
        priority::take().expect("root may");
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        let begun = Instant::now();
        let mut datagram = vec![0; self.bytes];
        for number in 0..self.count {
            let due = begun + Duration::from_secs(1) * number / self.per_second;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            datagram[..4].copy_from_slice(&number.to_le_bytes());
            datagram[4..20].copy_from_slice(&since_epoch().as_nanos().to_le_bytes());
            socket.send_to(&datagram, target).expect("sent");
        }
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is one").into()
    }
}

/// The number of the next datagram and how long it was under way; none if there is none for a second.
fn receive(sink: &UdpSocket) -> Option<(u32, Duration)> {
    let mut buffer = [0; 65536];
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(sink.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty()).ok()?;
    let arrived = message.cmsgs().expect("it fits").find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(arrived) => Some(Duration::from(arrived)),
        _ => None,
    });
    let number = u32::from_le_bytes(buffer[..4].try_into().expect("4 bytes"));
    let sent = u128::from_le_bytes(buffer[4..20].try_into().expect("16 bytes"));
    Some((number, arrived.expect("the kernel gives it") - Duration::from_nanos(sent as u64)))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// The least of a few values, for which other work on the machine may be to blame; the first below `enough` will do.
fn least_of_tries<T: PartialOrd + Copy>(enough: T, mut value: impl FnMut() -> T) -> T {
    let mut least = value();
    for _ in 0..4 {
        if least < enough {
            break;
        }
        let next = value();
        least = if next < least { next } else { least };
    }
    least
}

/// The value below which a share of the values is.
fn quantile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort();
    values[((values.len() - 1) as f64 * share) as usize]
}

fn every_server_is_reached_over_every_channel_and_answers_over_the_same() {
    for topology in [Topology::Routed, Topology::Segment] {
        over_every_channel(topology);
    }
}

fn over_every_channel(topology: Topology) {
    let config = LabConfig { topology, clients: 1, servers: 2, channels: 3, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap_or_else(|error| panic!("{error}"));
    let _servers = servers(&lab);
    for channel in &lab.channels {
        for server in &lab.servers {
            for address in both_families(server) {
                route_over(&lab, channel, address);
                let passed = || Direction::BOTH.map(|direction| channel.relay.counts(direction).passed);
                let before = passed();
                let seen = seen(&lab.gateway.namespace, address);
                assert_eq!(seen.server, server.name);
                assert_eq!(seen.client.ip(), channel.source.like(address), "{}", channel.name);
                // An exchange takes at least four packets each way.
                assert!(passed().iter().zip(before).all(|(after, before)| *after >= before + 4), "{:?}", passed());
            }
        }
    }
}

fn the_kernel_leaves_a_channel_that_is_down_and_returns() {
    for topology in [Topology::Routed, Topology::Segment] {
        let config = LabConfig { topology, clients: 1, servers: 1, channels: 2, ..LabConfig::default() };
        let lab = Lab::up(&config).unwrap_or_else(|error| panic!("{error}"));
        let _servers = servers(&lab);
        for address in both_families(&lab.servers[0]) {
            let over = |channel: &Channel| {
                assert_eq!(seen(&lab.gateway.namespace, address).client.ip(), channel.source.like(address));
            };
            over(&lab.channels[0]);
            lab.channels[0].link_down().expect("down");
            over(&lab.channels[1]);
            lab.channels[0].link_up().expect("up");
            over(&lab.channels[0]);
            lab.channels[0].set_far_up(false).expect("down");
            let target = SocketAddr::new(address, 80);
            let query = Query::get("/");
            fetch(&lab.gateway.namespace, target, &query, Duration::from_millis(300)).expect_err("nobody is there");
            lab.channels[0].set_far_up(true).expect("up");
            over(&lab.channels[0]);
        }
    }
}

fn a_servers_own_relay_impairs_it_alone() {
    for topology in [Topology::Routed, Topology::Segment] {
        let config = LabConfig { topology, clients: 1, servers: 2, server_relays: true, ..LabConfig::default() };
        let lab = Lab::up(&config).unwrap_or_else(|error| panic!("{error}"));
        let _servers = servers(&lab);
        let relay = lab.servers[0].relay.as_ref().expect("asked for");
        assert!(lab.clients[0].relay.is_none());
        let time = |server: &Host, address: IpAddr| {
            let begun = Instant::now();
            assert_eq!(seen(lab.clients[0].namespace(), address).server, server.name);
            begun.elapsed()
        };
        relay.set_direction(Direction::ToServers, Impairment::delay(Duration::from_millis(100)));
        relay.set_direction(Direction::ToGateway, Impairment::delay(Duration::from_millis(50)));
        for server in &lab.servers {
            for address in both_families(server) {
                // A round trip for the connection, one for the request.
                let delay = Duration::from_millis(300);
                let delayed = least_of_tries(delay, || time(server, address)) >= delay;
                assert_eq!(delayed, server.name == "server1", "{topology:?}, {address}");
            }
        }
    }
}

fn delay_is_added_within_a_millisecond_at_20000_frames_a_second() {
    let lab = lab(1, 1);
    let relay = &lab.channels[0].relay;
    let datagrams = Datagrams { count: 60_000, per_second: 20_000, bytes: 200 };
    for delay_ms in [0, 1, 5, 50] {
        let delay = Duration::from_millis(delay_ms);
        relay.set_direction(Direction::ToServers, Impairment::delay(delay));
        let p90 = least_of_tries(delay + Duration::from_millis(1), || {
            let delays: Vec<Duration> = datagrams.delays(&lab).into_iter().flatten().collect();
            assert_eq!(delays.len() as u32, datagrams.count);
            let [least, median, p90, p99] = [0.0, 0.5, 0.9, 0.99].map(|share| quantile(delays.clone(), share));
            println!("{delay:?}: least {least:?}, median {median:?}, p90 {p90:?}, p99 {p99:?}");
            assert!(least >= delay, "{least:?}");
            // Not the 99th: a virtual machine may stand still for tens of milliseconds.
            p90
        });
        assert!(p90 < delay + Duration::from_millis(1), "{p90:?}");
    }
}

fn loss_takes_its_share_and_a_cut_all() {
    let lab = lab(1, 1);
    let relay = &lab.channels[0].relay;
    let datagrams = Datagrams { count: 20_000, per_second: 20_000, bytes: 200 };
    // Lost neighbour discovery would stop everything for a second: it happens before.
    assert_eq!(Datagrams { count: 1, ..datagrams }.delays(&lab).into_iter().flatten().count(), 1);
    for loss in [0.05, 0.5] {
        relay.set(Impairment::loss(loss));
        let arrived = datagrams.delays(&lab).into_iter().flatten().count() as u64;
        let likely = chance::counts(datagrams.count.into(), 1.0 - loss);
        assert!(likely.contains(&arrived), "{arrived} arrived at a loss of {loss}, not {likely:?}");
    }
    relay.set(Impairment::CUT);
    assert_eq!(datagrams.delays(&lab).into_iter().flatten().count(), 0);
    relay.set(Impairment::NONE);
    let arrived = datagrams.delays(&lab).into_iter().flatten().count();
    assert_eq!(arrived as u32, datagrams.count);
}

/// Time that the threads of the relays have run.
fn relay_time(lab: &Lab) -> Duration {
    let name = format!("lb-{}-relay", lab.run().id());
    let threads = fs::read_dir("/proc/self/task").expect("procfs is there").flatten().map(|entry| entry.path());
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let of_relays = threads.filter(|thread| name.starts_with(read(thread.join("comm")).trim_end()));
    let ran = of_relays.map(|thread| read(thread.join("schedstat")));
    Duration::from_nanos(ran.map(|ran| ran.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)).sum())
}

/// Against what is needed without one, in the same run: in absolute figures it would be the machine that is judged.
fn a_relay_takes_about_the_time_of_the_sender_and_carries_a_part_of_what_a_plain_link_does() {
    let lab = lab(1, 1);
    let _servers = servers(&lab);
    let client = &lab.clients[0];
    let _plain = Server::start(client.namespace(), "plain", Ports::default()).expect("started");
    let relay = &lab.channels[0].relay;
    let mbit = |address: Ipv4Addr| {
        let (bytes, begun) = (100_000_000, Instant::now());
        let query = Query::get(&format!("/bytes/{bytes}"));
        let target = SocketAddr::new(address.into(), 80);
        fetch(&lab.gateway.namespace, target, &query, Duration::from_secs(60)).expect("answered");
        f64::from(bytes) * 8e-6 / begun.elapsed().as_secs_f64()
    };
    for delay_ms in [0, 5] {
        relay.set(Impairment::delay(Duration::from_millis(delay_ms)));
        let ratio = least_of_tries(RELAY_TO_SENDER, || {
            let before = relay_time(&lab);
            let (_, sender) = Datagrams { count: 10_000, per_second: 5000, bytes: 200 }.sent(&lab);
            (relay_time(&lab) - before).as_secs_f64() / sender.as_secs_f64()
        });
        let (plain, relayed) = (mbit(client.addresses.ipv4), mbit(lab.servers[0].addresses.ipv4));
        println!("{delay_ms} ms: {ratio:.2} of the sender's time; {relayed:.0} Mbit/s, without a relay {plain:.0}");
        assert!(ratio < RELAY_TO_SENDER, "{ratio}");
        assert!(relayed > plain * RELAYED_TO_PLAIN, "{relayed} Mbit/s, without a relay {plain}");
    }
}

fn jitter_varies_the_delay_within_its_bounds_and_keeps_the_order() {
    let lab = lab(1, 1);
    let relay = &lab.channels[0].relay;
    let [delay, jitter] = [10, 20].map(Duration::from_millis);
    relay.set_direction(Direction::ToServers, Impairment { jitter, ..Impairment::delay(delay) });
    let datagrams = Datagrams { count: 4000, per_second: 2000, bytes: 200 };
    let delays: Vec<Duration> = datagrams.delays(&lab).into_iter().flatten().collect();
    assert_eq!(delays.len() as u32, datagrams.count);
    let [least, p10, median, p90] = [0.0, 0.1, 0.5, 0.9].map(|share| quantile(delays.clone(), share));
    assert!(least >= delay && p90 < delay + jitter, "{least:?} to {p90:?}");
    // 50 values are drawn in that time, and moved between; with the seed of this lane they are spread like this whenever it begins
    // (`lab::impair`).
    assert!((14.0..26.0).contains(&(median.as_secs_f64() * 1e3)), "{median:?}");
    assert!(p90 - p10 > jitter / 3, "{p10:?} to {p90:?}");
}

fn a_rate_bounds_what_passes_and_its_queue_what_waits() {
    let lab = lab(1, 1);
    let _servers = servers(&lab);
    let relay = &lab.channels[0].relay;
    // 1,042 bytes with the headers of UDP, IPv4 and Ethernet: 8.3 Mbit/s.
    let datagrams = Datagrams { count: 2000, per_second: 1000, bytes: 1000 };
    assert_eq!(Datagrams { count: 1, ..datagrams }.delays(&lab).into_iter().flatten().count(), 1);
    let rate = Rate { bits_per_second: 4_000_000, queue_bytes: 50_000 };
    relay.set(Impairment { rate: Some(rate), ..Impairment::NONE });
    let delays: Vec<Duration> = datagrams.delays(&lab).into_iter().flatten().collect();
    let passed = 4e6 / (1042.0 * 8.0) * 2.0 + 50_000.0 / 1042.0;
    assert!((delays.len() as f64 / passed - 1.0).abs() < 0.02, "{} of {passed} expected", delays.len());
    let full = Duration::from_millis(100);
    let median = quantile(delays, 0.5);
    assert!((full * 9 / 10..full + Duration::from_millis(2)).contains(&median), "{median:?}");

    let rate = Rate { bits_per_second: 50_000_000, queue_bytes: 100_000 };
    relay.set(Impairment { rate: Some(rate), ..Impairment::delay(Duration::from_millis(2)) });
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    let begun = Instant::now();
    fetch(&lab.gateway.namespace, target, &Query::get("/bytes/12500000"), Duration::from_secs(30)).expect("answered");
    let mbit = 100.0 / begun.elapsed().as_secs_f64();
    // How much of it TCP uses is its own affair.
    assert!((25.0..50.0).contains(&mbit), "{mbit} Mbit/s of TCP at 50");
}

fn frames_of_any_size_pass_whole() {
    let config = LabConfig { clients: 1, servers: 1, channels: 1, server_mtu: 9000, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap_or_else(|error| panic!("{error}"));
    let _servers = servers(&lab);
    for address in both_families(&lab.servers[0]) {
        let target = SocketAddr::new(address, 80);
        let largest = || lab.channels[0].relay.counts(Direction::ToServers);
        let before = largest();
        let upload = Query { upload_bytes: 1_000_000, ..Query::get("/") };
        let answer = fetch(&lab.gateway.namespace, target, &upload, SOON).expect("answered");
        let seen: Seen = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(seen.body_bytes, 1_000_000);
        let frames = largest().passed - before.passed;
        assert!((112..250).contains(&frames), "{frames} frames of 9,000 bytes");
        fetch(&lab.gateway.namespace, target, &Query::get("/bytes/1000000"), SOON).expect("the body is as it was");
    }
}

fn a_server_with_workers_is_a_queue_about_as_theory_has_it() {
    let lab = lab(2, 0);
    let servers = servers(&lab);
    let mean = Duration::from_millis(10);
    let rho = 0.7;
    // Mean time in the system, in service times: M/D/1 (Pollaczek and Khinchine); M/M/4, where Erlang's C for 2.8
    // erlangs is 0.4287. How well the queue itself fits is tested without the lab.
    let one = Behaviour { service_time: ServiceTime::Fixed(mean), ..Behaviour::workers(1, mean) };
    let cases = [
        (one, 1.0 + rho / 2.0 / (1.0 - rho), 1000),
        (Behaviour::workers(4, mean), 1.0 + 0.4287 / (4.0 * (1.0 - rho)), 4000),
    ];
    let loads = cases.iter().zip(servers.iter().zip(&lab.servers)).map(|((behaviour, _, count), (server, host))| {
        server.set_behaviour(*behaviour);
        server.take_priority();
        let pace = Pace::Poisson { per_second: rho * behaviour.capacity(), max_in_flight: 1000, seed: 1 };
        let target = SocketAddr::new(host.addresses.ipv4.into(), 80);
        let load = Load { pace, max_requests: *count, max_time: Duration::from_secs(60), ..Load::new(target) };
        let load = load.start(lab.clients[0].namespace()).expect("started");
        load.take_priority();
        load
    });
    for (load, (behaviour, expected, count)) in loads.collect::<Vec<_>>().into_iter().zip(cases) {
        let report = load.wait();
        assert_eq!((report.ok, report.failed()), (count, 0), "{:?}", report.failures);
        let (mean_ms, expected_ms) = (report.latency_us.mean() / 1e3, expected * mean.as_secs_f64() * 1e3);
        println!("{:?}, {:?}: {mean_ms:.1} ms, {expected_ms:.1} expected", behaviour.workers, behaviour.service_time);
        // A busy machine and timers add to it.
        assert!(
            (expected_ms * 0.8..expected_ms * 1.5 + 5.0).contains(&mean_ms),
            "{mean_ms} ms, {expected_ms} expected"
        );
    }
}

fn a_server_serves_its_capacity_and_changes_it_while_it_runs() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[0].addresses.ipv6.into(), 80);
    let normal = Behaviour::workers(2, Duration::from_millis(5));
    servers[0].set_behaviour(normal);
    let load = Load { pace: Pace::Closed { workers: 16 }, max_time: SOON * 4, ..Load::new(target) };
    let running = load.start(lab.clients[0].namespace()).expect("started");
    servers[0].take_priority();
    running.take_priority();
    for (behaviour, per_second) in [(normal, 400.0), (Behaviour { speed: 0.25, ..normal }, 100.0), (normal, 400.0)] {
        servers[0].set_behaviour(behaviour);
        let (before, begun) = (running.report().ok, Instant::now());
        wait_until("a second's requests", SOON, || running.report().ok > before + per_second as u64).expect("served");
        let rate = (running.report().ok - before) as f64 / begun.elapsed().as_secs_f64();
        println!("{rate:.0}/s of {per_second}/s");
        // Five standard deviations of a count of 100 are 50 %; the times are drawn with a seed.
        assert!((rate / per_second - 1.0).abs() < 5.0 / per_second.sqrt(), "{rate} of {per_second}");
    }
    servers[0].set_behaviour(Behaviour { speed: 0.0, ..normal });
    wait_until("all wait", SOON, || servers[0].counts().in_flight == 16).expect("they come");
    let before = running.report().ok;
    assert_eq!(running.elapsed().max(SOON), SOON);
    servers[0].set_behaviour(Behaviour::default());
    wait_until("served on", SOON, || running.report().ok > before + 1000).expect("served");
    assert_eq!(running.stop().failed(), 0);
}

fn thousands_of_connections_are_held() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    servers[0].set_behaviour(Behaviour { speed: 0.0, ..Behaviour::workers(1, SOON) });
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    let load =
        Load { pace: Pace::Closed { workers: 5000 }, timeout: SOON * 6, max_time: SOON * 6, ..Load::new(target) };
    let running = load.start(lab.clients[0].namespace()).expect("started");
    wait_until("5,000 requests wait", SOON * 4, || servers[0].counts().in_flight == 5000).expect("they come");
    assert_eq!(servers[0].counts().open, 5000);
    servers[0].set_behaviour(Behaviour { speed: 1e6, ..Behaviour::default() });
    let report = running.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert!(report.ok >= 5000);
}

fn shares_of_requests_fail_and_of_connections_are_reset() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    servers[0].set_behaviour(Behaviour { error_share: 0.2, reset_share: 0.1, ..Behaviour::default() });
    let query = Query { close: true, ..Query::get("/") };
    let load = Load { query, max_requests: 2000, ..Load::new(target) };
    let report = load.start(lab.clients[0].namespace()).expect("started").wait();
    assert_eq!(report.ok + report.failed(), 2000);
    let resets: u64 = ["reset", "closed"].iter().filter_map(|kind| report.errors.get(kind)).sum();
    assert!(chance::counts(2000, 0.1).contains(&resets), "{:?}", report.errors);
    // Of those whose connection is not reset.
    assert!(chance::counts(2000 - resets, 0.2).contains(&report.errors["status"]), "{:?}", report.errors);
}

fn agents_say_what_they_are_told_and_how_busy_the_server_is() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    let [line, http] = [AGENT_PORT, 80].map(|port| SocketAddr::new(lab.servers[0].addresses.ipv4.into(), port));
    let client = lab.clients[0].namespace();
    let told = || {
        let read = || {
            TcpStream::connect(line).and_then(|mut stream| {
                let mut told = String::new();
                stream.read_to_string(&mut told).map(|_| told)
            })
        };
        client.run(read).expect("entered").expect("told")
    };
    let load = || {
        let answer = fetch(client, http, &Query::get("/agent"), SOON).expect("answered");
        serde_json::from_slice::<serde_json::Value>(&answer.body).expect("JSON")
    };
    assert_eq!(told(), "up 100%\n");
    servers[0].set_agent(Agent::Line("drain maxconn:7".to_owned()));
    assert_eq!(told(), "drain maxconn:7\n");
    servers[0].set_agent(Agent::Idle);
    servers[0].set_behaviour(Behaviour { speed: 0.0, ..Behaviour::workers(4, SOON) });
    assert_eq!(
        (told(), load()["cpu"].as_f64(), load()["in_flight"].as_u64()),
        ("100%\n".to_owned(), Some(0.0), Some(0))
    );
    let _waiting = Load { pace: Pace::Closed { workers: 3 }, ..Load::new(http) }.start(client).expect("started");
    wait_until("three at work", SOON, || servers[0].counts().in_flight == 3).expect("they come");
    assert_eq!(
        (told(), load()["cpu"].as_f64(), load()["in_flight"].as_u64()),
        ("25%\n".to_owned(), Some(0.75), Some(3))
    );
}

fn an_open_load_keeps_its_times_and_counts_by_second() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    let close = |close| Query { close, ..Query::get("/") };
    let max_time = Duration::from_secs(3);
    let fixed = Pace::Open { per_second: 1000.0, max_in_flight: 2000 };
    let poisson = Pace::Poisson { per_second: 1000.0, max_in_flight: 2000, seed: 1 };
    for (pace, query, per_connection) in [(fixed, close(true), 1), (poisson, close(true), 1), (fixed, close(false), 10)]
    {
        let connections = servers[0].counts().connections;
        let load = Load { pace, query, requests_per_connection: per_connection, max_time, ..Load::new(target) };
        let report = load.start(lab.clients[0].namespace()).expect("started").wait();
        assert_eq!(report.failed(), 0, "{:?}", report.failures);
        assert_eq!(report.seconds.len(), 3);
        for second in &report.seconds {
            // Five standard deviations of a Poisson count; the times are drawn with a seed.
            let tolerance = if pace == fixed { 0 } else { 158 };
            assert!(second.ok().abs_diff(1000) <= tolerance, "{pace:?}: {}", second.ok());
            assert_eq!(second.share("server1"), 1.0);
        }
        assert_eq!(report.between(0, 3).ok(), report.ok);
        let connections = servers[0].counts().connections - connections;
        // More than one in ten only if some were in use when others were due.
        assert!(connections >= report.ok / u64::from(per_connection) && connections <= report.ok, "{connections}");
        assert!(connections < report.ok || per_connection == 1, "{connections}");
    }
}

fn a_stall_shows_in_the_latency_of_all_requests_that_were_due_in_it() {
    let lab = lab(1, 0);
    let servers = servers(&lab);
    let target = SocketAddr::new(lab.servers[0].addresses.ipv4.into(), 80);
    let pace = Pace::Open { per_second: 500.0, max_in_flight: 2000 };
    let load = Load { pace, max_time: Duration::from_secs(4), ..Load::new(target) };
    let running = load.start(lab.clients[0].namespace()).expect("started");
    servers[0].take_priority();
    running.take_priority();
    let at = |time: Duration| wait_until("its time", SOON, || running.elapsed() >= time).expect("time passes");
    let hung = Behaviour { speed: 0.0, ..Behaviour::workers(100, Duration::from_millis(1)) };
    servers[0].set_behaviour(Behaviour { speed: 1.0, ..hung });
    at(Duration::from_secs(1));
    servers[0].set_behaviour(hung);
    at(Duration::from_secs(2));
    servers[0].set_behaviour(Behaviour { speed: 1.0, ..hung });
    let report = running.wait();
    assert_eq!((report.ok, report.failed()), (2000, 0), "{:?}", report.failures);
    // Of those due evenly in a second without answers the median waits half a second.
    let median = report.seconds[1].latency(0.5).expect("answered");
    assert!((400..600).contains(&median.as_millis()), "{median:?}");
    assert!(report.seconds[3].latency_of_all(0.9).expect("answered") < Duration::from_millis(100));
}
