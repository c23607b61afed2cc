//! How a server is reached: over which paths, or why not.

use loadbalancer_common::path::Path;
use model::mode::{Mode, Tunnel};
use model::route::{Resolved, Route};

use super::header::{Encapsulation, path};
use super::status::ServerStatus;
use super::topology::{Server, Service, Topology};
use crate::quality::signal::ChannelKey;

/// The path over a route, or why there is none.
pub(super) fn path_over(
    service: &Service<'_>,
    route: &Route,
    tunnel: Option<Tunnel>,
    resolved: &Resolved,
) -> Result<Path, String> {
    let hop = match resolved.hops.get(route) {
        Some(Ok(hop)) => hop,
        Some(Err(unreachable)) => return Err(unreachable.reason.clone()),
        None => return Err("the way to it is being looked for".to_owned()),
    };
    let encapsulation = match (tunnel, service.mode) {
        (Some(Tunnel::Ipip), _) | (None, Mode::DsrIpip) => Encapsulation::Ipip,
        (Some(Tunnel::Gue), _) | (None, Mode::DsrGue) => Encapsulation::Gue { port: service.gue_port },
        (None, Mode::DsrL2) => {
            if let Some(router) = hop.router {
                return Err(format!(
                    "it is behind the router {router}, but dsr-l2 reaches only servers on the gateway's own segment: use \
                     dsr-ipip or dsr-gue"
                ));
            }
            Encapsulation::None
        }
        (None, Mode::Nat | Mode::Dnat) => Encapsulation::None,
    };
    path(hop, encapsulation, route.target).map_err(|error| error.to_string())
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    /// One for all slots, or one for each; live flows take them in any case.
    pub paths: Vec<Path>,
    /// Why no new flow should be sent there.
    pub trouble: Option<String>,
}

pub fn reachability(
    topology: &Topology<'_>,
    service: &Service<'_>,
    server: &Server,
    status: &ServerStatus,
    resolved: &Resolved,
) -> Reachability {
    if server.channels.is_empty() {
        return match path_over(service, &server.addr.into(), None, resolved) {
            Ok(path) => Reachability { paths: vec![path], trouble: None },
            Err(trouble) => Reachability { paths: Vec::new(), trouble: Some(trouble) },
        };
    }
    let found: Vec<(u8, Result<Path, String>)> = server
        .channels
        .iter()
        .zip(0..)
        .map(|(position, number)| {
            let channel = &topology.channels[usize::from(*position)];
            let path = path_over(service, &channel.route(server.addr), channel.tunnel, resolved);
            (*position, path.map(|path| Path { channel: number, ..path }))
        })
        .collect();
    let Some(any) = found.iter().find_map(|(_, path)| path.as_ref().ok()) else {
        let named = |(position, path): &(u8, Result<Path, String>)| {
            let why = path.as_ref().err().map_or("", String::as_str);
            format!("{}: {why}", topology.channels[usize::from(*position)].name)
        };
        let all: Vec<String> = found.iter().map(named).collect();
        return Reachability {
            paths: Vec::new(),
            trouble: Some(format!("no channel leads to it ({})", all.join("; "))),
        };
    };
    let of_slot = |slot: &Option<ChannelKey>| {
        let wanted = slot.and_then(|key| found.iter().find(|(position, _)| u16::from(*position) == key.0));
        *wanted.and_then(|(_, path)| path.as_ref().ok()).unwrap_or(any)
    };
    Reachability {
        paths: status.slots.iter().flatten().map(of_slot).collect(),
        trouble: status
            .cut_off
            .then(|| "probes are lost on all of its channels; see `loadbalancer channels`".to_owned()),
    }
}
