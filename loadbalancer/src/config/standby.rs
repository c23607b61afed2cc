//! `[standby]`, the pool of standby servers, and `[service.standby]`, when a service gets some.

use std::time::Duration;

use super::model::{Channel, Config, Mode, Pool, Server, Service};
use super::parse::{server, set};
use super::validate::Places;
use super::walk::{Section, Span};
use super::{channel, error::Errors};
use crate::health::CommandCheck;
use crate::quality::standby::need::Levels;
use crate::quality::standby::{ServiceSettings, Settings};

/// Where the servers of the pool stand.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolPlaces {
    pub pool: Span,
    pub servers: Vec<Span>,
    pub names: Vec<Span>,
}

pub(super) const LEAST: Duration = Duration::from_millis(100);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn pool(section: Section<'_, '_>, channels: &[Channel]) -> (Pool, PoolPlaces) {
    let mut place = PoolPlaces { pool: section.span.clone(), ..PoolPlaces::default() };
    let mut settings = Settings::default();
    for (key, field, least) in [
        ("hook_timeout", &mut settings.hook_timeout, LEAST),
        ("check_timeout", &mut settings.check_timeout, LEAST),
        ("drain_timeout", &mut settings.drain_timeout, Duration::ZERO),
        ("cool_down", &mut settings.cool_down, Duration::ZERO),
        ("retry_after", &mut settings.retry_after, Duration::ZERO),
        ("retry_most", &mut settings.retry_most, Duration::ZERO),
    ] {
        set(field, section.duration(key, least..=DAY, ""));
    }
    set(&mut settings.stop_tries, section.number("stop_tries", 1..=100));
    let start = hook(&section, "start");
    let stop = hook(&section, "stop");
    let mut servers = Vec::new();
    let usual = channel::named(&section, channels);
    for table in section.sections("server", "[[standby.server]]") {
        let own = channel::named(&table, channels);
        if let Some((mut parsed, address, name)) = server(table) {
            if let Some(named) = own.as_ref().or(usual.as_ref()) {
                parsed.channels = named.value.clone();
            }
            servers.push(parsed);
            place.servers.push(address);
            place.names.push(name);
        }
    }
    section.finish();
    (Pool { servers, start, stop, settings }, place)
}

fn hook(section: &Section<'_, '_>, key: &'static str) -> Option<CommandCheck> {
    let command = section.strings(key, "/usr/local/bin/start-server")?;
    let parts: Vec<&str> = command.value.iter().map(|part| part.value).collect();
    match CommandCheck::new(&parts) {
        Ok(command) => Some(command),
        Err(error) => {
            let text = error.to_string();
            let (message, help) = text.split_once(": ").unwrap_or((text.as_str(), "give a program and its arguments"));
            section.error(command.span, message, help);
            None
        }
    }
}

pub(super) fn of_service(section: Section<'_, '_>) -> ServiceSettings {
    let mut settings = ServiceSettings::default();
    let long = LEAST..=DAY;
    let levels = levels(&section);
    settings.levels = levels.unwrap_or_default();
    set(&mut settings.hold, section.duration("hold", long.clone(), ""));
    set(&mut settings.recovery, section.decimal("recovery", 0.01..=1.0));
    set(&mut settings.recovery_for, section.duration("recovery_for", long.clone(), ""));
    set(&mut settings.recovery_most, section.duration("recovery_most", long.clone(), ""));
    set(&mut settings.relapse_within, section.duration("relapse_within", long.clone(), ""));
    set(&mut settings.settle, section.duration("settle", Duration::ZERO..=DAY, ""));
    set(&mut settings.min, section.number("min", 0..=1_000));
    set(&mut settings.max, section.number("max", 0..=1_000));
    if levels.is_none() && settings.min == 0 {
        let help =
            "set p90 = \"200ms\", failures = 0.05 or active_per_weight = 100, or min = 1 for one that always serves";
        section.error(section.span.clone(), "nothing says when the service gets a standby server", help);
    }
    if settings.min > settings.max {
        let message = format!("`min` is {}, but `max` is {}", settings.min, settings.max);
        section.error(section.value_span("min"), message, "make `max` at least as large");
    }
    section.finish();
    settings
}

/// What is set of the levels; None: nothing is.
pub(super) fn levels(section: &Section<'_, '_>) -> Option<Levels> {
    let levels = Levels {
        p90: section.duration("p90", Duration::from_micros(10)..=Duration::from_secs(3_600), "").map(|at| at.value),
        failures: section.decimal("failures", 0.000_1..=1.0).map(|at| at.value),
        load: section.decimal("active_per_weight", 0.01..=1e9).map(|at| at.value),
    };
    ["p90", "failures", "active_per_weight"].iter().any(|key| section.has(key)).then_some(levels)
}

/// The pool fits all services that may get servers of it.
pub(super) fn validate(config: &Config, places: &Places, errors: &mut Errors<'_>) {
    let pool = &config.standby;
    let place = &places.standby;
    let users: Vec<&Service> = config.services.iter().filter(|service| service.standby.is_some()).collect();
    for (position, (server, span)) in pool.servers.iter().zip(&place.servers).enumerate() {
        let earlier = &pool.servers[..position];
        if earlier.iter().any(|other| (other.addr, other.port) == (server.addr, server.port)) {
            let message = format!("{} is in the pool already", server.name);
            errors.add(span.clone(), message, "remove one of them");
        } else if earlier.iter().any(|other| other.name == server.name) {
            let message = format!("there is a server {} in the pool already", server.name);
            errors.add(place.names[position].clone(), message, "give each server of the pool a name of its own");
        }
        for service in &users {
            misfit(service, server, span, errors);
        }
    }
    if users.is_empty() && !pool.servers.is_empty() {
        let help = "add [service.standby] with a level, such as p90 = \"200ms\", to those that may";
        errors.add(place.pool.clone(), "no service may get servers of the pool", help);
    }
    if let Some(service) = users.first().filter(|_| pool.servers.is_empty() && place.servers.is_empty()) {
        let at = config.services.iter().position(|other| other.name == service.name).unwrap_or(0);
        let help = "add [[standby.server]] with address = \"10.0.0.91\"";
        let message = format!("service {} may get standby servers, but there are none", service.name);
        errors.add(places.services[at].service.clone(), message, help);
    }
}

fn misfit(service: &Service, server: &Server, span: &Span, errors: &mut Errors<'_>) {
    if service.servers.iter().any(|other| other.addr == server.addr || other.name == server.name) {
        let message = format!("{} is a server of service {} already", server.name, service.name);
        errors.add(
            span.clone(),
            message,
            "a standby server belongs to the pool alone: give it another address and name",
        );
    }
    let listened = service.listen.iter().any(|listen| listen.addr.is_ipv6() == server.addr.is_ipv6());
    if !service.mode.is_dsr() && !listened {
        let family = if server.addr.is_ipv6() { "IPv6" } else { "IPv4" };
        let message = format!(
            "{} has {family}, on which service {}, which may get it, does not listen",
            server.name, service.name
        );
        let help =
            format!("{} keeps a packet's family: give the pool servers of that family only", service.mode.label());
        errors.add(span.clone(), message, help);
    }
    if service.mode.is_dsr() && server.port.is_some() {
        let message = format!(
            "{} has a port, but service {}, which may get it, is {} and does not rewrite packets",
            server.name,
            service.name,
            service.mode.label()
        );
        errors.add(span.clone(), message, "remove the port: the server must listen on the services' own");
    }
    if service.mode == Mode::Nat && !server.channels.is_empty() && service.nat_source.is_empty() {
        let message = format!(
            "{} has channels, but service {}, which may get it, has no `nat_source`",
            server.name, service.name
        );
        errors.add(span.clone(), message, "add `nat_source` to the service");
    }
}
