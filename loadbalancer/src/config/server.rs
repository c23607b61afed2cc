//! `[[service.server]]` and `[[standby.server]]`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;

use decide::plan::topology::Server;
use loadbalancer_common::service::MAX_TIERS;
use model::weight::MAX_WEIGHT;

use super::channel;
use super::forms::{check_name, is_usable};
use super::schema::table::{Keys, Table};
use super::schema::value::{At, List, Rejection, Span};
use super::schema::walk::Section;

/// A server and where things of it stand.
#[derive(Clone, Debug)]
pub(super) struct PlacedServer {
    pub server: Server,
    pub address: Span,
    /// Where it is not named, that of its address.
    pub name: Span,
    /// Where its channels are named, by itself or for all; else where it begins.
    pub channels: Span,
    /// It names channels itself.
    own_channels: bool,
}

#[derive(Clone, Debug, Default)]
struct ServerKeys {
    address: Option<At<(IpAddr, Option<u16>)>>,
    name: Option<At<String>>,
    weight: u16,
    tier: u8,
    high_water: Option<u32>,
    channels: List<At<String>>,
}

impl PlacedServer {
    /// Gives it the channels that all have that name none themselves.
    pub fn or_channels(&mut self, usual: Option<&At<Vec<u8>>>) {
        if let Some(usual) = usual.filter(|_| !self.own_channels) {
            self.server.channels.clone_from(&usual.value);
            self.channels = usual.span.clone();
        }
    }
}

/// The servers of a service. `channels` are the names of all.
pub(super) fn of_service(channels: Rc<[String]>) -> Table<PlacedServer> {
    table(keys("[[service.server]]", "A server of the service."), "\"10.0.0.11\"", channels)
}

/// The servers of the pool.
pub(super) fn of_pool(channels: Rc<[String]>) -> Table<PlacedServer> {
    let keys = keys("[[standby.server]]", "A server of the pool: the keys of [[service.server]].");
    table(keys.optional().tells(&["address"]), "\"10.0.0.91\"", channels)
}

fn keys(name: &str, doc: &'static str) -> Keys<ServerKeys> {
    Keys::new(name, doc, ServerKeys { weight: 1, ..ServerKeys::default() })
}

fn table(keys: Keys<ServerKeys>, example: &'static str, channels: Rc<[String]>) -> Table<PlacedServer> {
    let keys = keys
        .text(
            "address",
            |it| &mut it.address,
            address,
            "10.0.0.11:8080",
            "Its own unicast address, with a port if that differs from the service's: \"10.0.0.11:8080\", \
             \"[fd00::11]:8080\".",
        )
        .required("address = \"10.0.0.11:8080\"")
        .shown(example)
        .string("name", |it| &mut it.name, "web1", "In reports and commands. Without: its address.")
        .number::<u16>(
            "weight",
            |it| &mut it.weight,
            0..=i64::from(MAX_WEIGHT),
            "Share of new flows, beside that of others. 0: none.",
        )
        .number::<u8>(
            "tier",
            |it| &mut it.tier,
            0..=MAX_TIERS as i64 - 1,
            "Higher tiers serve while all servers of the lower ones are down or full, or with [service.tiers].",
        )
        .number::<u32>(
            "high_water",
            |it| &mut it.high_water,
            1..=1_000_000_000,
            "Its high-water mark: most flows at a time. Without: no bound.",
        )
        .shown("1000");
    let doc = "The channels that lead to it, at most as many as a server has path slots. Without: those of all, else as the \
               routing table has it.";
    channel::channels_key(keys, |it| &mut it.channels, doc).build(move |section, it| build(section, it, &channels))
}

fn build(section: &Section<'_, '_>, it: ServerKeys, known: &Rc<[String]>) -> Option<PlacedServer> {
    let channels = channel::positions(section, &it.channels, known);
    if let Some(name) = &it.name {
        check_name(section, name, "server");
    }
    let At { value: (addr, port), span: address } = it.address?;
    let default_name = match port {
        Some(port) => SocketAddr::new(addr, port).to_string(),
        None => addr.to_string(),
    };
    let name = it.name.unwrap_or(At { value: default_name, span: address.clone() });
    let own_channels = channels.is_some();
    let channels = channels.unwrap_or(At { value: Vec::new(), span: section.span.clone() });
    let server = Server {
        name: name.value,
        addr,
        port,
        weight: it.weight,
        tier: it.tier,
        high_water: it.high_water.and_then(NonZeroU32::new),
        channels: channels.value,
    };
    Some(PlacedServer { server, address, name: name.span, channels: channels.span, own_channels })
}

fn address(text: &str) -> Result<(IpAddr, Option<u16>), Rejection> {
    let parsed = match text.parse::<SocketAddr>() {
        // A scope is for link-local addresses only, and would be lost.
        Ok(_) if text.contains('%') => None,
        Ok(address) if address.port() != 0 => Some((address.ip(), Some(address.port()))),
        Ok(_) => None,
        Err(_) => text.parse::<IpAddr>().ok().map(|addr| (addr, None)),
    };
    match parsed {
        Some((addr, _)) if !is_usable(addr) => {
            let help = "give the server's own unicast address, as the gateway reaches it";
            Err((format!("{addr} cannot be a server"), help.to_owned()))
        }
        Some(parsed) => Ok(parsed),
        None => {
            let help = "write address = \"10.0.0.11:8080\", or without a port to keep the service's; IPv6: \
                        \"[fd00::11]:8080\"";
            Err((format!("`{text}` is no address"), help.to_owned()))
        }
    }
}
