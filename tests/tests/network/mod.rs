//! How the controller finds the way to servers, in the lab's gateway namespace. Needs root.

use std::net::IpAddr;
use std::time::Duration;

use decide::plan::header::{Encapsulation, path};
use libtest_mimic::Trial;
use loadbalancer::network::{Network, ResolveError, announce, ethtool, sysctl};
use loadbalancer_common::path::encap;
use loadbalancer_tests::frames::frame::{GATEWAY_MAC, SERVER_MAC};
use loadbalancer_tests::frames::world::{self, EGRESS, NAT_SOURCE4, NAT_SOURCE6, Server};
use loadbalancer_tests::lab::events::{Side, wait_until};
use loadbalancer_tests::lab::host::Host;
use loadbalancer_tests::lab::netns::Namespace;
use loadbalancer_tests::lab::plan::{LabConfig, SEGMENT_DEVICE, Topology};
use loadbalancer_tests::lab::runtime::Runtime;
use loadbalancer_tests::lab::xdp::Receive;
use loadbalancer_tests::lab::{Lab, vip4, vip6};
use model::route::{NextHop, Tag};
use nix::net::if_::if_nametoindex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub fn trials() -> Vec<Trial> {
    trials![
        a_server_on_the_segment_is_asked_for_and_then_known_in_both_families,
        an_address_behind_a_router_has_the_routers_mac_and_follows_the_route,
        the_smaller_of_route_and_link_mtu_counts_and_the_routes_source_is_taken,
        addresses_to_which_nothing_can_be_sent_are_refused_with_the_reason,
        a_lost_carrier_is_seen_and_so_is_its_return,
        a_changed_mac_address_is_seen,
        #[ignore]
        vlan_interfaces_are_resolved_to_tags_on_the_interface_below,
        a_neighbour_that_does_not_answer_is_named_and_is_found_once_it_does,
        refreshing_finds_out_that_a_server_has_gone_silent_and_leaves_live_ones_usable,
        a_burst_of_notifications_that_overruns_the_socket_raises_the_counter,
        neighbours_are_followed_also_if_nobody_listens_for_changes,
        addresses_are_given_once_and_taken_once,
        what_is_listed_at_the_same_time_is_listed_whole,
        hosts_of_the_segment_take_an_announced_address,
        built_paths_are_those_that_the_packet_tests_build,
        facts_are_those_of_the_namespace,
    ]
}

/// How soon a change of the network must be known, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);
/// Time for what the kernel takes its time for: asking neighbours that do not answer.
const SOON: Duration = Duration::from_secs(10);

const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 0xbb];
const WRONG_MAC: &str = "02:00:00:00:00:99";

type Resolution = Result<NextHop, ResolveError>;

/// The network of a namespace as the controller sees it.
struct View {
    runtime: Runtime,
    network: Network,
    changes: watch::Receiver<u64>,
}

impl View {
    fn open(namespace: &Namespace) -> Self {
        let runtime = Runtime::start(namespace).expect("runtime");
        let (network, changes) = runtime.block_on(Network::open()).expect("netlink opened");
        Self { runtime, network, changes }
    }

    fn resolve(&self, target: IpAddr) -> Resolution {
        let network = self.network.clone();
        self.runtime.block_on(async move { network.resolve(&target.into()).await })
    }

    /// Resolves now and after each change that is told of, and only then, until the result is as wanted.
    fn resolve_until(&self, target: IpAddr, within: Duration, wanted: fn(&Resolution) -> bool) -> Resolution {
        self.resolve_until_it(target, within, wanted)
    }

    fn resolve_until_it(
        &self,
        target: IpAddr,
        within: Duration,
        wanted: impl Fn(&Resolution) -> bool + Send + 'static,
    ) -> Resolution {
        let (network, mut changes) = (self.network.clone(), self.changes.clone());
        self.runtime.block_on(async move {
            let deadline = Instant::now() + within;
            loop {
                changes.mark_unchanged();
                let result = network.resolve(&target.into()).await;
                if wanted(&result) {
                    return result;
                }
                let change = timeout_at(deadline, changes.changed()).await;
                change.unwrap_or_else(|_| panic!("{target} after {within:?}: {result:?}")).expect("changes are told");
            }
        })
    }

    fn ready(&self, target: IpAddr) -> NextHop {
        self.resolve_until(target, PROMPT, Result::is_ok).expect("it is waited for")
    }

    fn refresh(&self, target: IpAddr) {
        let network = self.network.clone();
        self.runtime.block_on(async move { network.refresh(&target.into()).await }).expect("refreshed");
    }

    fn assign(&self, interface: &'static str, vip: IpAddr) -> bool {
        let network = self.network.clone();
        self.runtime.block_on(async move { network.assign(interface, vip).await }).expect("assigned")
    }

    fn unassign(&self, interface: &'static str, vip: IpAddr) -> bool {
        let network = self.network.clone();
        self.runtime.block_on(async move { network.unassign(interface, vip).await }).expect("taken")
    }

    fn addresses(&self) -> Vec<(u32, IpAddr)> {
        let network = self.network.clone();
        self.runtime.block_on(async move { network.addresses().await }).expect("listed")
    }
}

fn routed(servers: u8) -> Lab {
    let config = LabConfig { clients: 1, servers, ..LabConfig::default() };
    Lab::up(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn both_families(host: &Host) -> [IpAddr; 2] {
    [host.addresses.ipv4.into(), host.addresses.ipv6.into()]
}

fn ip<L: AsRef<str>>(namespace: &Namespace, lines: &[L]) {
    namespace.ip(lines).unwrap_or_else(|error| panic!("{error}"));
}

/// What an `ip` command says.
fn told(namespace: &Namespace, arguments: &str) -> String {
    let output = namespace.command("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn mac(namespace: &Namespace, device: &str) -> [u8; 6] {
    let text = told(namespace, &format!("-br link show dev {device}"));
    let mac = text.split_whitespace().find(|word| word.matches(':').count() == 5).expect("a MAC");
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}

fn index(namespace: &Namespace, device: &str) -> u32 {
    namespace.run(|| if_nametoindex(device)).expect("entered").expect("the device is there")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn a_server_on_the_segment_is_asked_for_and_then_known_in_both_families() {
    let lab = routed(1);
    let (gateway, server) = (&lab.gateway.namespace, &lab.servers[0]);
    let view = View::open(gateway);
    for target in both_families(server) {
        // The server may have been heard of already.
        ip(gateway, &["neigh flush dev server1"]);
        view.resolve_until(target, PROMPT, |result| matches!(result, Err(ResolveError::Pending { .. })))
            .expect_err("pending");
        let hop = view.ready(target);
        let expected = NextHop {
            ifindex: index(gateway, "server1"),
            source_mac: mac(gateway, "server1"),
            destination_mac: mac(server.namespace(), "eth0"),
            tags: Vec::new(),
            source: if target.is_ipv4() { server.gateway.ipv4.into() } else { server.gateway.ipv6.into() },
            mtu: 1500,
            router: None,
        };
        assert_eq!(hop, expected);
    }
}

fn an_address_behind_a_router_has_the_routers_mac_and_follows_the_route() {
    let lab = routed(2);
    let gateway = &lab.gateway.namespace;
    let view = View::open(gateway);
    for target in [address("10.99.0.7"), address("fd99::7")] {
        for (server, device) in lab.servers.iter().zip(["server1", "server2"]) {
            let router = server.address_like(target);
            ip(gateway, &[format!("route replace {target} via {router} dev {device} mtu 1400")]);
            let hop = view
                .resolve_until_it(target, PROMPT, move |result| matches!(result, Ok(hop) if hop.router == Some(router)))
                .expect("it is waited for");
            assert_eq!(hop.destination_mac, mac(server.namespace(), "eth0"));
            assert_eq!((hop.ifindex, hop.mtu), (index(gateway, device), 1400));
        }
    }
    // A router of the other family (RFC 8950).
    let (target, router) = (address("10.99.0.8"), lab.servers[0].addresses.ipv6);
    ip(gateway, &[format!("route add {target} via inet6 {router} dev server1")]);
    let hop = view.ready(target);
    assert_eq!(hop.router, Some(router.into()));
    assert_eq!(hop.destination_mac, mac(lab.servers[0].namespace(), "eth0"));
    assert!(hop.source.is_ipv4());
}

fn the_smaller_of_route_and_link_mtu_counts_and_the_routes_source_is_taken() {
    let lab = routed(1);
    let (gateway, server) = (&lab.gateway.namespace, &lab.servers[0]);
    let view = View::open(gateway);
    let router = server.addresses.ipv4;
    ip(
        gateway,
        &[
            "addr add 10.99.1.1/32 dev lo".to_owned(),
            format!("route add 10.99.0.7 via {router} dev server1 mtu 1300 src 10.99.1.1"),
        ],
    );
    let hop = view.ready(address("10.99.0.7"));
    assert_eq!((hop.mtu, hop.source), (1300, address("10.99.1.1")));
    server.set_mtu(1280).expect("MTU set");
    view.resolve_until(router.into(), PROMPT, |result| matches!(result, Ok(hop) if hop.mtu == 1280))
        .expect("it is waited for");
}

fn addresses_to_which_nothing_can_be_sent_are_refused_with_the_reason() {
    let lab = routed(1);
    let gateway = &lab.gateway.namespace;
    let refusing = ["blackhole", "prohibit", "unreachable"];
    for (number, kind) in refusing.iter().enumerate() {
        ip(gateway, &[format!("route add {kind} 10.99.{number}.0/24"), format!("route add {kind} fd99:{number}::/32")]);
    }
    ip(
        gateway,
        &[
            "link add bridge type bridge",
            "addr add 10.98.0.1/24 dev bridge",
            "link set bridge up",
            "tuntap add tunnel mode tun",
            "addr add 10.98.1.1/24 dev tunnel",
            "link set tunnel up",
        ],
    );
    let view = View::open(gateway);
    for target in ["203.0.113.1", "2001:db8::1"] {
        let result = view.resolve(address(target));
        assert!(matches!(result, Err(ResolveError::NoRoute(_))), "{target}: {result:?}");
    }
    for (number, expected) in refusing.iter().enumerate() {
        for target in [format!("10.99.{number}.1"), format!("fd99:{number}::1")] {
            let result = view.resolve(address(&target));
            assert!(
                matches!(&result, Err(ResolveError::Refused { kind, .. }) if kind == expected),
                "{target}: {result:?}"
            );
        }
    }
    let broadcast = view.resolve(address("10.77.101.255"));
    assert!(matches!(&broadcast, Err(ResolveError::Refused { kind, .. }) if kind == "broadcast"), "{broadcast:?}");
    let own = lab.servers[0].gateway;
    for target in [own.ipv4.into(), own.ipv6.into(), address("127.0.0.1")] {
        let result = view.resolve(target);
        assert!(matches!(result, Err(ResolveError::Local(_))), "{target}: {result:?}");
    }
    for (target, device) in [("10.98.0.2", "bridge"), ("10.98.1.2", "tunnel")] {
        let result = view.resolve(address(target));
        assert!(
            matches!(&result, Err(ResolveError::Unsupported { interface, .. }) if interface == device),
            "{target}: {result:?}"
        );
    }
}

fn a_lost_carrier_is_seen_and_so_is_its_return() {
    let lab = routed(1);
    let server = &lab.servers[0];
    let view = View::open(&lab.gateway.namespace);
    for target in both_families(server) {
        view.ready(target);
        server.link_down(Side::Host).expect("down");
        view.resolve_until(
            target,
            PROMPT,
            |result| matches!(result, Err(ResolveError::LinkDown { interface, .. }) if interface == "server1"),
        )
        .expect_err("down");
        server.link_up(Side::Host).expect("up");
        view.resolve_until(target, SOON, Result::is_ok).expect("it is waited for");
    }
}

fn a_changed_mac_address_is_seen() {
    let lab = routed(1);
    let server = &lab.servers[0];
    let view = View::open(&lab.gateway.namespace);
    let targets = both_families(server);
    for target in targets {
        assert_ne!(view.ready(target).destination_mac, NEW_MAC);
    }
    server.set_mac(NEW_MAC).expect("MAC set");
    for target in targets {
        view.resolve_until(target, PROMPT, |result| matches!(result, Ok(hop) if hop.destination_mac == NEW_MAC))
            .expect("it is waited for");
    }
}

/// Needs a kernel with CONFIG_VLAN_8021Q.
fn vlan_interfaces_are_resolved_to_tags_on_the_interface_below() {
    let lab = routed(1);
    let (gateway, server) = (&lab.gateway.namespace, lab.servers[0].namespace());
    for (namespace, device, host) in [(gateway, "server1", 1), (server, "eth0", 2)] {
        ip(
            namespace,
            &[
                format!("link add link {device} name one mtu 1450 type vlan id 5"),
                "link set one up".to_owned(),
                format!("addr add 10.98.5.{host}/24 dev one"),
                format!("addr add fd98:5::{host}/64 dev one nodad"),
                format!("link add link {device} name outer type vlan proto 802.1ad id 7"),
                "link set outer up".to_owned(),
                "link add link outer name inner type vlan id 8".to_owned(),
                "link set inner up".to_owned(),
                format!("addr add 10.98.8.{host}/24 dev inner"),
            ],
        );
    }
    ip(
        gateway,
        &["link add link inner name third type vlan id 9", "link set third up", "addr add 10.98.9.1/24 dev third"],
    );
    let view = View::open(gateway);
    let tag = |ethertype, vlan| Tag { ethertype, vlan };
    let two = [tag(0x88a8, 7), tag(0x8100, 8)];
    let cases: [(&str, &[Tag], u16); 3] =
        [("10.98.5.2", &[tag(0x8100, 5)], 1450), ("fd98:5::2", &[tag(0x8100, 5)], 1450), ("10.98.8.2", &two, 1500)];
    for (target, tags, mtu) in cases {
        let hop = view.ready(address(target));
        assert_eq!((hop.tags.as_slice(), hop.mtu), (tags, mtu), "{target}");
        assert_eq!(hop.ifindex, index(gateway, "server1"), "{target}");
        assert_eq!(hop.destination_mac, mac(server, "eth0"), "{target}");
    }
    let three = view.resolve(address("10.98.9.2"));
    assert!(matches!(three, Err(ResolveError::Unsupported { .. })), "{three:?}");
}

fn a_neighbour_that_does_not_answer_is_named_and_is_found_once_it_does() {
    let lab = routed(1);
    let (gateway, server) = (&lab.gateway.namespace, &lab.servers[0]);
    let timers = [("ipv4/neigh/server1/retrans_time_ms", "100"), ("ipv6/neigh/server1/retrans_time_ms", "100")];
    gateway.sysctl(&timers).expect("timers set");
    let view = View::open(gateway);
    for (target, add) in
        [("10.77.101.9", "addr add 10.77.101.9/24 dev eth0"), ("fd77:101::9", "addr add fd77:101::9/64 dev eth0 nodad")]
    {
        let target = address(target);
        let first = view.resolve(target);
        assert!(matches!(first, Err(ResolveError::Pending { .. })), "{first:?}");
        view.resolve_until(target, SOON, |result| matches!(result, Err(ResolveError::NoNeighbour { .. })))
            .expect_err("it does not answer");
        ip(server.namespace(), &[add]);
        // The last resolution has asked; if that was too early, the next one asks again.
        wait_until("the neighbour is found", SOON, || view.resolve(target).is_ok()).expect("found");
    }
}

fn refreshing_finds_out_that_a_server_has_gone_silent_and_leaves_live_ones_usable() {
    let lab = routed(2);
    let gateway = &lab.gateway.namespace;
    let view = View::open(gateway);
    for device in ["server1", "server2"] {
        for family in ["ipv4", "ipv6"] {
            let path = |name: &str| format!("{family}/neigh/{device}/{name}");
            let timers = [(path("retrans_time_ms"), "100"), (path("delay_first_probe_time"), "1")];
            let timers: Vec<(&str, &str)> = timers.iter().map(|(path, value)| (path.as_str(), *value)).collect();
            gateway.sysctl(&timers).expect("timers set");
        }
    }
    let (live, silent) = (&lab.servers[0], &lab.servers[1]);
    for (live, silent) in both_families(live).into_iter().zip(both_families(silent)) {
        lab.servers[1].set_receive(Some(Receive::Pass)).expect("receives");
        for (target, device) in [(live, "server1"), (silent, "server2")] {
            view.ready(target);
            let known =
                mac(if target == live { lab.servers[0].namespace() } else { lab.servers[1].namespace() }, "eth0");
            let known = known.map(|byte| format!("{byte:02x}")).join(":");
            ip(gateway, &[format!("neigh replace {target} lladdr {known} dev {device} nud stale")]);
        }
        lab.servers[1].set_receive(Some(Receive::Lose(1.0))).expect("loses all");
        assert!(view.resolve(silent).is_ok(), "a stale neighbour is usable");
        // The notification of the stale entry may still be on its way, as in the controller, which asks again.
        wait_until("the silent server is found out", SOON, || {
            view.refresh(live);
            view.refresh(silent);
            matches!(view.resolve(silent), Err(ResolveError::NoNeighbour { .. }))
        })
        .expect("found out");
        assert!(view.resolve(live).is_ok());
        wait_until("the live one is confirmed", SOON, || {
            told(gateway, &format!("neigh show {live} dev server1")).contains("REACHABLE")
        })
        .expect("confirmed");
    }
}

fn a_burst_of_notifications_that_overruns_the_socket_raises_the_counter() {
    let lab = routed(1);
    let gateway = &lab.gateway.namespace;
    let target = address("10.99.0.7");
    let permanent = |state: &str| format!("neigh replace 10.77.101.50 lladdr {WRONG_MAC} dev server1 nud {state}");
    ip(gateway, &[permanent("permanent")]);
    let view = View::open(gateway);
    view.ready(lab.servers[0].addresses.ipv4.into());
    assert!(matches!(view.resolve(target), Err(ResolveError::NoRoute(_))));
    // None of these changes where frames go, so only that some were lost can tell of the route, which comes last.
    let mut lines: Vec<String> = (0..4000).map(|n| permanent(if n % 2 == 0 { "stale" } else { "permanent" })).collect();
    lines.push(format!("route add {target} via {} dev server1", lab.servers[0].addresses.ipv4));
    let (namespace, network, mut changes) = (gateway.clone(), view.network.clone(), view.changes.clone());
    let hop = view.runtime.block_on(async move {
        changes.mark_unchanged();
        // On the runtime's only thread, so nobody reads the socket meanwhile.
        ip(&namespace, &lines);
        let deadline = Instant::now() + PROMPT;
        timeout_at(deadline, changes.changed()).await.expect("the overrun is told of").expect("changes are told");
        network.resolve(&target.into()).await
    });
    assert_eq!(hop.expect("requests are still answered").router, Some(lab.servers[0].addresses.ipv4.into()));
}

fn neighbours_are_followed_also_if_nobody_listens_for_changes() {
    let lab = routed(1);
    let runtime = Runtime::start(&lab.gateway.namespace).expect("runtime");
    let (network, changes) = runtime.block_on(Network::open()).expect("netlink opened");
    drop(changes);
    let target = address("10.77.101.50");
    let resolve = || {
        let network = network.clone();
        runtime.block_on(async move { network.resolve(&target.into()).await })
    };
    for mac in [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]] {
        let text = mac.map(|byte: u8| format!("{byte:02x}")).join(":");
        ip(&lab.gateway.namespace, &[format!("neigh replace {target} lladdr {text} dev server1 nud permanent")]);
        wait_until("the neighbour is known", PROMPT, || matches!(resolve(), Ok(hop) if hop.destination_mac == mac))
            .expect("followed");
    }
}

fn addresses_are_given_once_and_taken_once() {
    let lab = routed(1);
    let gateway = &lab.gateway.namespace;
    let view = View::open(gateway);
    let device = index(gateway, "server1");
    for vip in [IpAddr::from(vip4(1)), vip6(1).into()] {
        assert!(!view.unassign("server1", vip));
        assert!(view.assign("server1", vip));
        assert!(!view.assign("server1", vip), "it has it already");
        assert!(view.addresses().contains(&(device, vip)));
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        let shown = told(gateway, "-o addr show dev server1");
        let line = shown.lines().find(|line| line.contains(&format!("{vip}/{prefix}"))).expect("the prefix is full");
        assert!(vip.is_ipv4() || line.contains("nodad"), "{line}");
        assert!(view.unassign("server1", vip));
        assert!(!view.addresses().contains(&(device, vip)));
        assert!(!view.unassign("server1", vip));
    }
    let network = view.network.clone();
    let nowhere = view.runtime.block_on(async move { network.assign("nowhere", vip4(1).into()).await });
    assert!(nowhere.is_err_and(|error| error.to_string().contains("nowhere")));
}

fn what_is_listed_at_the_same_time_is_listed_whole() {
    let lab = routed(1);
    let view = View::open(&lab.gateway.namespace);
    let own = lab.servers[0].gateway;
    let expected: [IpAddr; 2] = [own.ipv4.into(), own.ipv6.into()];
    let network = view.network.clone();
    let lists = view.runtime.block_on(async move {
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let network = network.clone();
                tokio::spawn(async move { network.addresses().await })
            })
            .collect();
        let mut lists = Vec::new();
        for task in tasks {
            lists.push(task.await.expect("the task ends"));
        }
        lists
    });
    for list in lists {
        let list = list.unwrap_or_else(|error| panic!("{error}"));
        assert!(expected.iter().all(|own| list.iter().any(|(_, address)| address == own)), "{list:?}");
    }
}

fn hosts_of_the_segment_take_an_announced_address() {
    let config = LabConfig { topology: Topology::Segment, clients: 1, servers: 1, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap_or_else(|error| panic!("{error}"));
    let (gateway, client) = (&lab.gateway.namespace, lab.clients[0].namespace());
    let own = mac(gateway, SEGMENT_DEVICE);
    let device = index(gateway, SEGMENT_DEVICE);
    let text = own.map(|byte| format!("{byte:02x}")).join(":");
    for vip in [IpAddr::from(vip4(1)), vip6(1).into()] {
        // What the segment knows after the gateway that had the address before.
        ip(client, &[format!("neigh replace {vip} lladdr {WRONG_MAC} dev eth0 nud stale")]);
        gateway.run(|| announce(device, own, vip)).expect("entered").expect("announced");
        wait_until("the client takes the announced address", PROMPT, || {
            told(client, &format!("neigh show {vip} dev eth0")).contains(&text)
        })
        .unwrap_or_else(|error| panic!("{vip}: {error}"));
    }
}

fn built_paths_are_those_that_the_packet_tests_build() {
    let hop = |is_v6: bool, tags: &[u16]| NextHop {
        ifindex: EGRESS,
        source_mac: GATEWAY_MAC,
        destination_mac: SERVER_MAC,
        tags: tags
            .iter()
            .enumerate()
            .map(|(position, vlan)| Tag {
                ethertype: if tags.len() == 2 && position == 0 { 0x88a8 } else { 0x8100 },
                vlan: *vlan,
            })
            .collect(),
        source: address(if is_v6 { NAT_SOURCE6 } else { NAT_SOURCE4 }),
        mtu: 1500,
        router: None,
    };
    let gue = Encapsulation::Gue { port: 6080 };
    let cases = [
        (Encapsulation::None, "10.0.0.9", encap::NONE),
        (Encapsulation::None, "fd00::9", encap::NONE),
        (Encapsulation::Ipip, "10.0.0.9", encap::IPV4),
        (Encapsulation::Ipip, "fd00::9", encap::IPV6),
        (gue, "10.0.0.9", encap::GUE_IPV4),
        (gue, "fd00::9", encap::GUE_IPV6),
    ];
    for (encapsulation, target, kind) in cases {
        for tags in [&[][..], &[5], &[5, 0x123]] {
            let server = Server::at(target).with(|server| {
                server.encap = kind;
                server.tags = tags.to_vec();
            });
            let built = path(&hop(server.addr.is_ipv6(), tags), encapsulation, server.addr);
            assert_eq!(built, Ok(world::path(&server)), "{encapsulation:?} to {target}, tags {tags:?}");
        }
    }
}

fn facts_are_those_of_the_namespace() {
    let lab = routed(1);
    let settings = [
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/server1/rp_filter", "2"),
        ("ipv4/ip_local_port_range", "20000 30000"),
        ("ipv4/ip_local_reserved_ports", "8080,9000-9002"),
    ];
    let gateway = &lab.gateway.namespace;
    gateway.sysctl(&settings).expect("settings set");
    gateway
        .run(|| {
            assert_eq!(sysctl::rp_filter("server1").expect("read"), 2);
            assert_eq!(sysctl::rp_filter("client1").expect("read"), 1);
            assert!(sysctl::ipv4_forwarding().expect("read") && sysctl::ipv6_forwarding().expect("read"));
            assert_eq!(sysctl::local_port_range().expect("read"), 20_000..=30_000);
            assert_eq!(sysctl::reserved_ports().expect("read"), [8080..=8080, 9000..=9002]);
            assert_eq!(ethtool::driver("server1").expect("read"), "veth");
            assert!(!ethtool::has_lro("server1").expect("read"));
            assert!(!ethtool::has_tx_checksum("server1").expect("read"), "the lab switches it off");
            assert!(sysctl::rp_filter("nowhere").is_err() && ethtool::driver("nowhere").is_err());
        })
        .expect("entered");
    let client = lab.clients[0].namespace();
    let forwards = client.run(|| (sysctl::ipv4_forwarding(), sysctl::ipv6_forwarding())).expect("entered");
    assert!(matches!(forwards, (Ok(false), Ok(false))), "{forwards:?}");
}
