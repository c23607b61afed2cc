//! What is asked of each server, from the configuration.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{Check, Config, Server, Service};
use crate::health::{CheckKind, CheckSpec, Part, Via};

/// Probes over channels in a second, of all servers together: beyond that, each is asked less often. They cost some 20 us
/// each, so this is 4 % of a core.
const MOST_CHANNEL_PROBES: u32 = 2_000;

/// The check of a server. None: it has no port to ask, which the configuration's validation refuses.
pub fn check(service: &Service, server: &Server, check: &Check, via: &Via) -> Option<CheckSpec> {
    let spec = spec(service, server, (&check.kind, check.port), (check.interval, check.timeout))?;
    Some(CheckSpec { via: via.clone(), ..spec })
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
    }
}

/// What is asked of a server over each of its channels. `pairs` is how many there are of all servers.
pub fn channels(config: &Config, service: &Service, server: &Server, pairs: u32) -> Vec<(Part, CheckSpec)> {
    let least = Duration::from_secs(1) * pairs / MOST_CHANNEL_PROBES;
    let probe = |position: &u8| {
        let probe = &config.channels.get(usize::from(*position))?.probe;
        let pace = (probe.interval.max(least), probe.timeout);
        let spec = spec(service, server, (&probe.kind, probe.port), pace)?;
        Some((Part::Channel(*position), CheckSpec { via: via(config, *position, server.addr), ..spec }))
    };
    server.channels.iter().filter_map(probe).collect()
}

/// What is asked of a server besides its check: its monitors, each by its position, and its agent.
pub fn besides(service: &Service, server: &Server, via: &Via) -> Vec<(Part, CheckSpec)> {
    let monitors = service.monitors.iter().zip(0..).filter_map(|(monitor, position)| {
        let pace = (monitor.interval, monitor.timeout);
        Some((Part::Monitor(position), spec(service, server, (&monitor.kind, monitor.port), pace)?))
    });
    let agent = service.agent.as_ref().and_then(|agent| {
        let kind = CheckKind::Agent(agent.check.clone());
        Some((Part::Agent, spec(service, server, (&kind, Some(agent.port)), (agent.interval, agent.timeout))?))
    });
    monitors.chain(agent).map(|(part, spec)| (part, CheckSpec { via: via.clone(), ..spec })).collect()
}

fn spec(
    service: &Service,
    server: &Server,
    (kind, port): (&CheckKind, Option<u16>),
    (interval, timeout): (Duration, Duration),
) -> Option<CheckSpec> {
    Some(CheckSpec {
        kind: kind.clone(),
        target: (server.addr, service.port_of(server, kind, port)?).into(),
        via: Via::default(),
        source_port: None,
        service: service.name.clone(),
        server: server.name.clone(),
        interval,
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
                .map(|spec| spec.target.port())
                .collect();
            assert_eq!(asked, ports, "{}", server.name);
            let command = &besides[3].1;
            assert_eq!((command.interval, command.timeout), (Duration::from_secs(60), Duration::from_secs(30)));
            assert_eq!((&command.service, &command.server), (&service.name, &server.name));
        }
    }
}
