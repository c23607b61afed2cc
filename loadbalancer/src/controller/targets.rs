//! What is asked of each server, from the configuration.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crate::config::Channel;
use crate::config::{Check, Config, Service, Through};
use crate::health::{Asks, CheckKind, CheckSpec, Forwarder, Part, Target, Via};
use crate::network::policy::PolicyRoute;
use decide::plan::desired::DesiredProbe;
use decide::plan::topology::Server;
use decide::plan::topology::of_family;
use model::address::Family;
use model::address::Protocol;
use model::ids::ServerId;
use model::route::Resolved;
use model::route::Route;

/// Probes over channels in a second, of all servers together: beyond that, each is asked less often. They cost some 20 us
/// each, so this is 4 % of a core.
const MOST_CHANNEL_PROBES: u32 = 2_000;

/// The check of a server. None: it has no port to ask, which the configuration's validation refuses.
pub fn check(service: &Service, server: &Server, check: &Check, via: &Via) -> Option<CheckSpec> {
    let spec = spec(service, server, (&check.kind, check.port, check.through), (check.interval, check.timeout))?;
    Some(by(spec, via))
}

fn by(spec: CheckSpec, via: &Via) -> CheckSpec {
    CheckSpec { target: Target { via: via.clone(), ..spec.target }, ..spec }
}

/// How a probe takes a channel.
pub fn via(config: &Config, position: u8, target: IpAddr) -> Via {
    let Some(channel) = config.channels.get(usize::from(position)) else {
        return Via::default();
    };
    let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|addr| addr.is_ipv6() == target.is_ipv6());
    Via {
        source: of_family(&channel.source),
        interface: Some(channel.interface.clone()),
        mark: of_family(&channel.next_hop).map(|_| config.gateway.channel_marks + u32::from(position)),
        ..Via::default()
    }
}

/// What is asked of a server over each of its channels. `pairs` is how many there are of all servers.
pub fn channels(config: &Config, service: &Service, server: &Server, pairs: u32) -> Vec<(Part, CheckSpec)> {
    let least = Duration::from_secs(1) * pairs / MOST_CHANNEL_PROBES;
    let probe = |position: &u8| {
        let probe = &config.channels.get(usize::from(*position))?.probe;
        let pace = (probe.interval.max(least), probe.timeout);
        let spec = spec(service, server, (&probe.kind, probe.port, Through::Server), pace)?;
        Some((Part::Channel(*position), by(spec, &via(config, *position, server.addr))))
    };
    server.channels.iter().filter_map(probe).collect()
}

/// What is asked of a server besides its check: its monitors, each by its position, and its agent.
pub fn besides(service: &Service, server: &Server, via: &Via) -> Vec<(Part, CheckSpec)> {
    let monitors = service.monitors.iter().zip(0..).filter_map(|(monitor, position)| {
        let pace = (monitor.interval, monitor.timeout);
        Some((Part::Monitor(position), spec(service, server, (&monitor.kind, monitor.port, monitor.through), pace)?))
    });
    let agent = service.agent.as_ref().and_then(|agent| {
        let kind = CheckKind::Agent(agent.check.clone());
        let pace = (agent.interval, agent.timeout);
        Some((Part::Agent, spec(service, server, (&kind, Some(agent.port), Through::Server), pace)?))
    });
    monitors.chain(agent).map(|(part, spec)| (part, by(spec, via))).collect()
}

/// What the kernel is to know of channels that lead over routers, for their probes.
pub fn policy_routes(config: &Config) -> Vec<PolicyRoute> {
    let of_channel = |(channel, mark): (&'_ Channel, u32)| {
        let (interface, sources) = (channel.interface.clone(), channel.source.clone());
        let route = move |router: &IpAddr| PolicyRoute {
            mark,
            interface: interface.clone(),
            router: *router,
            source: of_family(&sources, Family::of(*router)),
        };
        channel.next_hop.iter().map(route).collect::<Vec<_>>()
    };
    config.channels.iter().zip(config.gateway.channel_marks..).flat_map(of_channel).collect()
}

/// Whether a part asks the VIP, through the packet path.
pub fn is_through_vip(service: &Service, part: Part) -> bool {
    let through = match part {
        Part::Check => service.check.as_ref().map(|check| check.through),
        Part::Monitor(position) => service.monitors.get(usize::from(position)).map(|monitor| monitor.through),
        Part::Agent | Part::Channel(_) => None,
    };
    through == Some(Through::Vip)
}

/// Whether anything is asked through a VIP.
pub fn need_prober(config: &Config) -> bool {
    config.services.iter().any(|service| {
        let monitors = (0..service.monitors.len() as u16).map(Part::Monitor);
        // What has waited comes in by the same interface.
        service.queue.is_some() || monitors.chain([Part::Check]).any(|part| is_through_vip(service, part))
    })
}

/// Address of the gateway's that a server answers to, for probes through a VIP. None: the way to it is not known.
pub fn source(config: &Config, server: &Server, vip: SocketAddr, resolved: &Resolved) -> Option<IpAddr> {
    let of_family = |addr: &IpAddr| addr.is_ipv6() == vip.is_ipv6();
    let set = config.gateway.probe_source.iter().copied().find(of_family);
    let of_way = |way: Route| {
        let set = way.via.as_ref().and_then(|via| via.source);
        set.or_else(|| Some(resolved.hops.get(&way)?.as_ref().ok()?.source)).filter(of_family)
    };
    // The first of its ways that there is now.
    set.or_else(|| config.topology().routes(server).into_iter().find_map(of_way))
}

/// A probe through a VIP, and what the packet path has to know of it.
pub fn through_vip(
    spec: CheckSpec,
    server: ServerId,
    (source, port): (IpAddr, NonZeroU16),
) -> (CheckSpec, DesiredProbe) {
    let protocol = if spec.kind.asks() == Asks::Udp { Protocol::Udp } else { Protocol::Tcp };
    let probe = DesiredProbe { source: (source, port.get()).into(), vip: spec.target.address, protocol, server };
    let via = Via { source: Some(source), forwarder: Forwarder::PacketPath, ..Via::default() };
    (CheckSpec { target: Target { via, source_port: Some(port), ..spec.target }, ..spec }, probe)
}

fn spec(
    service: &Service,
    server: &Server,
    (kind, port, through): (&CheckKind, Option<u16>, Through),
    (interval, timeout): (Duration, Duration),
) -> Option<CheckSpec> {
    let address = match through {
        Through::Server => (server.addr, service.port_of(server, kind, port)?).into(),
        Through::Vip => service.vip_of(server.addr, kind, port)?,
    };
    Some(CheckSpec {
        kind: kind.clone(),
        target: Target {
            address,
            via: Via::default(),
            source_port: None,
            service: service.name.clone(),
            server: server.name.clone(),
        },
        interval,
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_asks_through_a_vip_asks_it_and_comes_from_where_the_server_answers_to() {
        let text = |keys: &str| {
            format!(
                "[gateway]\ninterfaces = [\"eth0\"]\n{keys}\n
                [[service]]
                name = \"web\"
                mode = \"dsr-ipip\"
                listen = [\"192.0.2.1:80\"]
                check = {{ type = \"http\", through = \"vip\" }}
                monitors = [{{ type = \"icmp\" }}, {{ type = \"tcp\", through = \"vip\" }}]
                agent = {{ port = 9000 }}
                [[service.server]]
                address = \"10.0.0.1\"
                "
            )
        };
        let parse = |keys| Config::parse("test.toml", &text(keys)).unwrap_or_else(|errors| panic!("{errors}"));
        let config = parse("");
        assert!(need_prober(&config));
        let service = &config.services[0];
        let server = &service.servers[0];
        let vip: SocketAddr = ([192, 0, 2, 1], 80).into();
        let via = Via::default();
        let check = check(service, server, service.check.as_ref().expect("it is set"), &via).expect("it has a VIP");
        let targets: Vec<(bool, String)> = [(Part::Check, check)]
            .into_iter()
            .chain(besides(service, server, &via))
            .map(|(part, spec)| (is_through_vip(service, part), spec.target.address.to_string()))
            .collect();
        let (at_vip, at_server) = (|| (true, vip.to_string()), |target: &str| (false, target.to_owned()));
        assert_eq!(targets, [at_vip(), at_server("10.0.0.1:80"), at_vip(), at_server("10.0.0.1:9000")]);

        let way = config.topology().routes(server).remove(0);
        let hop = |source: &str| model::route::NextHop {
            ifindex: 2,
            source_mac: [0; 6],
            destination_mac: [0; 6],
            tags: Vec::new(),
            source: source.parse().expect("an address"),
            mtu: 1500,
            router: None,
        };
        let resolved = |source| Resolved { hops: [(way.clone(), Ok(hop(source)))].into(), ..Resolved::default() };
        let of = |addr: &str| Some(addr.parse::<IpAddr>().expect("an address"));
        assert_eq!(source(&config, server, vip, &Resolved::default()), None);
        assert_eq!(source(&config, server, vip, &resolved("10.0.0.9")), of("10.0.0.9"));
        assert_eq!(source(&config, server, vip, &resolved("fd00::9")), None);
        let set = parse("probe_source = [\"fd00::5\", \"10.0.0.5\"]");
        assert_eq!(source(&set, server, vip, &resolved("10.0.0.9")), of("10.0.0.5"));
    }

    #[test]
    fn each_probe_asks_at_the_nearest_port_that_is_known() {
        let text = "
            [gateway]
            interfaces = [\"eth0\"]
            [[service]]
            name = \"dns\"
            listen = [\"192.0.2.1:*/tcp\", \"192.0.2.1:53/udp\", \"192.0.2.1:8053/tcp\"]
            check = { type = \"tcp\" }
            monitors = [
                { type = \"dns\", query = \"www.example\" },
                { type = \"icmp\" },
                { type = \"http\", port = 8080 },
                { type = \"command\", command = \"/bin/true\", interval = \"1m\", timeout = \"30s\" },
            ]
            agent = { port = 9000 }
            [[service.server]]
            address = \"10.0.0.1\"
            [[service.server]]
            address = \"10.0.0.2:5353\"
        ";
        let config = Config::parse("test.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
        let service = &config.services[0];
        for (server, ports) in
            service.servers.iter().zip([[8053, 53, 8053, 8080, 8053, 9000], [5353, 5353, 5353, 8080, 5353, 9000]])
        {
            let via = Via::default();
            let check = check(service, server, service.check.as_ref().expect("it is set"), &via);
            let check = check.expect("a port is known");
            let besides = besides(service, server, &via);
            let parts: Vec<Part> = besides.iter().map(|(part, _)| *part).collect();
            assert_eq!(parts, [Part::Monitor(0), Part::Monitor(1), Part::Monitor(2), Part::Monitor(3), Part::Agent]);
            let asked: Vec<u16> = [&check]
                .into_iter()
                .chain(besides.iter().map(|(_, spec)| spec))
                .map(|spec| spec.target.address.port())
                .collect();
            assert_eq!(asked, ports, "{}", server.name);
            let command = &besides[3].1;
            assert_eq!((command.interval, command.timeout), (Duration::from_secs(60), Duration::from_secs(30)));
            assert_eq!((&command.target.service, &command.target.server), (&service.name, &server.name));
        }
    }
}
