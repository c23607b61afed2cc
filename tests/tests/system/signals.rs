//! Passive signals of real connections.

use model::ids::{BackendId, ServerId, ServiceId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use libtest_mimic::Trial;
use loadbalancer::api::types::QualityReport;
use loadbalancer::dataplane::ids::BackendNumber;
use loadbalancer::dataplane::maps::Maps;
use loadbalancer::dataplane::signals::{Interval, Source, Tracker};
use loadbalancer::dataplane::stats;
use loadbalancer_common::signal::{mask_of, share};
use loadbalancer_tests::lab::events::wait_until;
use loadbalancer_tests::lab::vip4;
use loadbalancer_tests::traffic::behaviour::Behaviour;
use loadbalancer_tests::traffic::hold::Protocol;
use loadbalancer_tests::traffic::server::Live;

use super::world::{SOON, Setup, World};

pub fn trials() -> Vec<Trial> {
    trials![
        watched_connections_tell_how_long_each_server_takes,
        a_server_that_refuses_is_told_from_the_others,
        all_flows_are_watched_where_there_is_little_traffic,
        a_reload_turns_it_off_and_on,
    ]
}

/// Much longer than a busy machine takes for an answer.
const DELAY: Duration = Duration::from_millis(150);

/// Reads the signals that a gateway has pinned, by address of the server.
struct Reader {
    maps: Maps,
    tracker: Tracker,
}

impl Reader {
    fn new(world: &World) -> Self {
        let maps = Maps::pinned(&world.gateway.pins).unwrap_or_else(|error| panic!("{error}"));
        let mut reader = Self { maps, tracker: Tracker::default() };
        reader.read();
        reader
    }

    fn read(&mut self) -> BTreeMap<IpAddr, Interval> {
        let backends = stats::read(&self.maps).unwrap_or_else(|error| panic!("{error}")).backends;
        let server =
            |backend: &BackendNumber| ServerId { service: ServiceId(0), backend: BackendId(u64::from(backend.0)) };
        let source = |backend| Source { server: server(backend), backend: *backend, channel: 0 };
        let sources: Vec<Source> = backends.keys().map(source).collect();
        let news = self.tracker.read(&self.maps, &sources);
        news.into_iter().map(|(source, news)| (stats::address(&backends[&source.backend].backend), news)).collect()
    }
}

fn watched(mode: &'static str) -> World {
    Setup::new(mode).with(|setup| setup.keys = "passive = \"1/1\"\n".to_owned()).up()
}

fn mean(latencies: &loadbalancer::dataplane::signals::Latencies) -> Duration {
    Duration::from_nanos(latencies.sum_ns / latencies.count().max(1))
}

fn watched_connections_tell_how_long_each_server_takes() {
    for mode in ["nat", "dnat", "dsr-l2", "dsr-ipip"] {
        let world = watched(mode);
        world.servers[0].set_behaviour(Behaviour { delay: DELAY, ..Behaviour::default() });
        let mut reader = Reader::new(&world);
        let report = world.requests(vip4(1).into(), 400);
        let signals = reader.read();
        assert_eq!(signals.len(), 4, "{mode}: {signals:?}");
        for host in &world.lab.servers {
            let of = &signals[&host.addresses.ipv4.into()];
            let requests = (report.share(&host.name) * 400.0).round() as u64;
            // A few may have lost their place in the table to another connection.
            let most = requests * 9 / 10..=requests;
            let told = format!("{mode}: {} with {requests} requests: {of:?}", host.name);
            assert!(most.contains(&of.handshakes.count()), "{told}");
            assert!(mean(&of.handshakes) < DELAY, "{told}");
            assert_eq!((of.refused_handshakes, of.refused_requests), (0, 0), "{told}");
            // A machine with other work may lose a packet, but not one in fifty.
            assert!(of.lost_handshakes + of.lost_segments <= requests / 50, "{told}");
            assert!(of.segments >= requests * 9 / 10, "{told}");
            if mode.starts_with("dsr") {
                assert_eq!(of.responses.count(), 0, "{told}");
            } else {
                assert!(most.contains(&of.responses.count()), "{told}");
                assert_eq!(mean(&of.responses) >= DELAY, host.name == "server1", "{told}");
            }
        }
    }
}

fn a_server_that_refuses_is_told_from_the_others() {
    for mode in ["nat", "dnat"] {
        let mut world = watched(mode);
        let mut reader = Reader::new(&world);
        let udp = world.hold(vip4(1).into(), Protocol::Udp, 40);
        let before = reader.read();
        assert!(before.values().all(|of| of.responses.count() > 0), "{mode}: {before:?}");
        world.servers[0].stop(Live::Reset);
        let report = world.load(vip4(1).into(), |load| load.max_requests = 200).wait();
        assert!(report.failed() > 0, "{mode}: {report:?}");
        let stopped: IpAddr = world.lab.servers[0].addresses.ipv4.into();
        let mut signals = BTreeMap::new();
        wait_until("refusals are seen", SOON, || {
            for (server, news) in reader.read() {
                let sums: &mut (u64, u64) = signals.entry(server).or_default();
                *sums = (sums.0 + news.refused_handshakes, sums.1 + news.refused_requests);
            }
            signals.get(&stopped).is_some_and(|of| of.0 > 0 && of.1 > 0)
        })
        .unwrap_or_else(|error| panic!("{mode}: {error}: {signals:?}"));
        for (server, of) in &signals {
            assert!(*server == stopped || *of == (0, 0), "{mode}: {server} refused {of:?}");
        }
        drop(udp);
    }
}

fn all_flows_are_watched_where_there_is_little_traffic() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let world = Setup::new(mode).up();
        let maps = Maps::pinned(&world.gateway.pins).unwrap_or_else(|error| panic!("{error}"));
        wait_until("every flow is watched", SOON, || {
            let services = stats::read(&maps).unwrap_or_else(|error| panic!("{error}")).services;
            let report: QualityReport =
                serde_json::from_str(&world.gateway.ask(&["quality", "--json"])).expect("a report");
            services.iter().filter(|(id, _)| id.0 != 0).all(|(_, it)| share(it.service.sample_mask) == mask_of(1))
                && !report.services.is_empty()
                && report.services.iter().all(|service| service.flows_per_sample == 1)
        })
        .unwrap_or_else(|error| panic!("{mode}: {error}"));
        let mut reader = Reader::new(&world);
        world.requests(vip4(1).into(), 100);
        let handshakes: u64 = reader.read().values().map(|of| of.handshakes.count()).sum();
        assert!((90..=100).contains(&handshakes), "{mode}: {handshakes} of 100 were seen");
    }
}

fn a_reload_turns_it_off_and_on() {
    for mode in ["nat", "dnat", "dsr-ipip"] {
        let setup = Setup::new(mode);
        let world = setup.clone().up();
        let mut reader = Reader::new(&world);
        for (share, watches) in [("1/1", true), ("off", false), ("1/2", true), ("off", false)] {
            let keys = format!("passive = {share:?}\n");
            world.gateway.write(&setup.clone().with(|setup| setup.keys = keys).services(&world.lab)).expect("written");
            world.gateway.reload().expect("reloaded");
            reader.read();
            world.requests(vip4(1).into(), 100);
            let seen: u64 = reader.read().values().map(|of| of.handshakes.count()).sum();
            assert_eq!(seen > 0, watches, "{mode}, {share}: {seen} handshakes were seen");
        }
    }
}
