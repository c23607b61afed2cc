//! Channels are different ways, and lead to the servers that name them.

use std::collections::HashSet;
use std::net::IpAddr;

use super::family::family;
use crate::config::channel::ChannelKeys;
use crate::config::root::Root;
use crate::config::schema::error::Errors;
use crate::config::schema::value::{At, List, Rejection};
use crate::config::service::ServiceKeys;
use model::mode::Mode;

pub(super) fn names(root: &Root, errors: &mut Errors<'_>) {
    for (position, channel) in root.channels.all.iter().enumerate() {
        let earlier = &root.channels.all[..position];
        let (name, span) = (&channel.name.value, &channel.name.span);
        if let Some(other) = earlier.iter().find(|other| !name.is_empty() && other.name.value == *name) {
            let line = errors.line(other.name.span.start);
            let message = format!("there is a channel {name} already, in line {line}");
            errors.add(span.clone(), message, "give each channel a name of its own");
        }
        let same = |other: &&ChannelKeys| other.name.value != *name && is_same_way(other, channel);
        if let Some(other) = earlier.iter().find(same).filter(|_| !channel.rejected()) {
            let message = format!("channel {name} is the same way as channel {}", other.name.value);
            let help = "give it another interface, next hop or tunnel, or remove it and add up the capacities: two names for \
                        one way would be taken for two ways that fail independently";
            errors.add(span.clone(), message, help);
        }
    }
}

fn is_same_way(one: &ChannelKeys, other: &ChannelKeys) -> bool {
    one.interface == other.interface && one.next_hop.values().eq(other.next_hop.values()) && one.tunnel == other.tunnel
}

/// Every channel of a server must be able to lead there, and have a port to ask at.
pub(super) fn fit(root: &Root, service: &ServiceKeys, errors: &mut Errors<'_>) {
    let mut told = HashSet::new();
    for placed in &service.servers.all {
        let (server, span) = (&placed.server, &placed.channels);
        for position in &server.channels {
            let Some(channel) = root.channels.all.get(usize::from(*position)).filter(|channel| !channel.rejected())
            else {
                continue;
            };
            if let Some((message, help)) = incompatibility(channel, service.mode.value, server.addr) {
                if told.insert((span.start, message.clone())) {
                    errors.add(span.clone(), message, help);
                }
            } else if service.port_of(server, &channel.probe.kind, channel.probe.port).is_none()
                && told.insert((span.start, channel.name.value.clone()))
            {
                let name = &channel.name.value;
                let message = format!("the probe of channel {name} has no port to ask server {} at", server.name);
                errors.add(span.clone(), message, "add `port` to [channel.probe], or use type = \"icmp\"");
            }
        }
        let first = server.channels.first().and_then(|position| root.channels.all.get(usize::from(*position)));
        if service.mode.value == Mode::Nat
            && let Some(first) = first
            && !has_family_of(&first.source, server.addr)
            && !has_family_of(&service.nat_source, server.addr)
            && told.insert((span.start, "source".to_owned()))
        {
            let message = format!("nat over channels has no source address for server {}", server.name);
            let help = "add `nat_source` to the service, an address of the gateway to which servers answer whatever channel \
                        is used, or `source` to its first channel";
            errors.add(span.clone(), message, help);
        }
    }
}

fn has_family_of(addresses: &List<At<IpAddr>>, server: IpAddr) -> bool {
    addresses.values().any(|addr| addr.is_ipv6() == server.is_ipv6())
}

/// Why a channel cannot lead to a server of a service, and the fix.
fn incompatibility(channel: &ChannelKeys, mode: Mode, server: IpAddr) -> Option<Rejection> {
    let (name, family) = (&channel.name.value, family(server.is_ipv6()));
    for (key, addresses) in [("next_hop", &channel.next_hop), ("source", &channel.source)] {
        if !addresses.all.is_empty() && !has_family_of(addresses, server) {
            let message = format!("channel {name} has no `{key}` for {family}, which the server has");
            return Some((message, format!("add an {family} address to `{key}` of [[channel]] {name}")));
        }
    }
    if mode == Mode::DsrL2 && channel.tunnel.is_none() && !channel.next_hop.all.is_empty() {
        let message = format!(
            "channel {name} leads over a router, but dsr-l2 reaches only servers on the gateway's own segments"
        );
        return Some((message, "use mode = \"dsr-ipip\" or \"dsr-gue\", or a channel without `next_hop`".to_owned()));
    }
    None
}
