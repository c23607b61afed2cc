//! What is asked of servers: `[service.check]`, `[[service.monitors]]` and `[service.agent]`.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::model::{Agent, Check, Monitor, Through};
use super::parse::set;
use super::walk::{At, Section, Span};
use crate::health::{
    AgentCheck, Asks, BodyMatch, CheckKind, CheckSpec, CommandCheck, DnsCheck, HttpCheck, SpecError, Thresholds,
    TlsCheck, UdpCheck, UdpExpect, Verify, from_hex,
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Tcp,
    Http,
    Https,
    Udp,
    Icmp,
    Dns,
    Command,
}

const KINDS: [(&str, Kind); 7] = [
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
    ("https", Kind::Https),
    ("udp", Kind::Udp),
    ("icmp", Kind::Icmp),
    ("dns", Kind::Dns),
    ("command", Kind::Command),
];

/// Keys that only some kinds have: how these are called, and which of them to suggest.
const KEYS_OF_KINDS: [(&[&str], &[Kind], &str, &str); 5] = [
    (&["method", "path", "host", "expect", "body", "body_regex"], &[Kind::Http, Kind::Https], "HTTP", "http"),
    (&["sni", "ca", "verify"], &[Kind::Https], "HTTPS", "https"),
    (&["send", "send_hex", "starts_with", "starts_with_hex", "contains"], &[Kind::Udp], "UDP", "udp"),
    (&["query", "record", "rcode"], &[Kind::Dns], "DNS", "dns"),
    (&["command"], &[Kind::Command], "command", "command"),
];

/// `Section::finish` names all keys that were asked for, so all are asked for, whatever the kind.
struct Keys<'d> {
    method: Option<At<&'d str>>,
    path: Option<At<&'d str>>,
    host: Option<At<&'d str>>,
    expect: Option<At<Vec<At<String>>>>,
    body: Option<At<&'d str>>,
    body_regex: Option<At<&'d str>>,
    sni: Option<At<&'d str>>,
    ca: Option<At<&'d str>>,
    verify: Option<At<bool>>,
    send: Option<At<&'d str>>,
    send_hex: Option<At<&'d str>>,
    starts_with: Option<At<&'d str>>,
    starts_with_hex: Option<At<&'d str>>,
    contains: Option<At<&'d str>>,
    query: Option<At<&'d str>>,
    record: Option<At<&'d str>>,
    rcode: Option<At<&'d str>>,
    command: Option<At<Vec<At<&'d str>>>>,
}

impl<'d> Keys<'d> {
    fn take(section: &Section<'d, '_>) -> Self {
        Self {
            method: section.string("method", "GET"),
            path: section.string("path", "/health"),
            host: section.string("host", "www.example"),
            expect: section.texts("expect", "expect = [200, \"300-399\"]"),
            body: section.string("body", "ok"),
            body_regex: section.string("body_regex", "^ok"),
            sni: section.string("sni", "www.example"),
            ca: section.string("ca", "/etc/ssl/certs/internal.pem"),
            verify: section.boolean("verify"),
            send: section.string("send", "ping"),
            send_hex: section.string("send_hex", "70 69 6e 67"),
            starts_with: section.string("starts_with", "pong"),
            starts_with_hex: section.string("starts_with_hex", "70 6f 6e 67"),
            contains: section.string("contains", "pong"),
            query: section.string("query", "www.example"),
            record: section.string("record", "A"),
            rcode: section.string("rcode", "NOERROR"),
            command: section.strings("command", "/usr/local/bin/check"),
        }
    }
}

pub(super) fn check(section: Section<'_, '_>) -> Option<Check> {
    let mut words = KINDS.to_vec();
    words.push(("none", Kind::None));
    let asked = asked(&section, &words, CHECK_PACE);
    let through = through(&section, asked.as_ref());
    let mut rise = 2;
    let mut fall = 3;
    set(&mut rise, section.number("rise", 1..=1_000));
    set(&mut fall, section.number("fall", 1..=1_000));
    let thresholds = Thresholds { rise: NonZeroU32::new(rise)?, fall: NonZeroU32::new(fall)? };
    section.finish();
    let Monitor { kind, port, interval, timeout, .. } = asked?;
    Some(Check { kind, port, through, interval, timeout, thresholds })
}

pub(super) fn monitor(section: Section<'_, '_>) -> Option<Monitor> {
    let monitor = asked(&section, &KINDS, CHECK_PACE);
    let through = through(&section, monitor.as_ref());
    section.finish();
    Some(Monitor { through, ..monitor? })
}

fn through(section: &Section<'_, '_>, asked: Option<&Monitor>) -> Through {
    let mut through = Through::default();
    set(&mut through, section.choice("through", &[("server", Through::Server), ("vip", Through::Vip)]));
    if through == Through::Vip && asked.is_some_and(|asked| asked.kind.asks() == Asks::Any) {
        let message = "`through = \"vip\"` is for checks that ask a TCP or UDP port";
        let help = "remove it, or set type to tcp, http, https, udp or dns";
        section.error(section.value_span("through"), message, help);
    }
    through
}

/// What is asked over a channel, with the pace that is usual there.
pub(super) fn probe(section: Section<'_, '_>, interval: Duration, timeout: Duration) -> Option<Monitor> {
    let probe = asked(&section, &KINDS, (interval, timeout));
    section.finish();
    probe
}

/// Interval and time-out of checks and monitors.
const CHECK_PACE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));

fn asked(
    section: &Section<'_, '_>,
    words: &[(&'static str, Kind)],
    usual_pace: (Duration, Duration),
) -> Option<Monitor> {
    let kind = section.required("type", "type = \"tcp\"", section.choice("type", words)).map(|kind| kind.value);
    let keys = Keys::take(section);
    for (names, kinds, title, example) in KEYS_OF_KINDS {
        if kind.is_some_and(|kind| !kinds.contains(&kind)) {
            for key in names.iter().filter(|key| section.has(key)) {
                let help = format!("remove it, or set type = \"{example}\"");
                section.error(section.key_span(key), format!("`{key}` is for {title} checks only"), help);
            }
        }
    }
    let port = section.number::<u16>("port", 1..=65_535);
    if kind == Some(Kind::Icmp) && port.is_some() {
        let help = "remove it: an echo request goes to the host as such";
        section.error(section.key_span("port"), "`port` means nothing to an ICMP check", help);
    }
    let (interval, timeout) = pace(section, usual_pace);
    let kind = match kind? {
        Kind::None => return None,
        Kind::Tcp => CheckKind::Tcp,
        Kind::Icmp => CheckKind::Icmp,
        Kind::Http => CheckKind::Http(http(section, &keys)?),
        Kind::Https => {
            // So that what is wrong with either is told at once.
            let (http, tls) = (http(section, &keys), tls(section, &keys));
            CheckKind::Https(http?, tls?)
        }
        Kind::Udp => CheckKind::Udp(udp(section, &keys)?),
        Kind::Dns => {
            let query = section.required("query", "query = \"www.example\"", keys.query.as_ref())?;
            let record = keys.record.as_ref().map_or("A", |record| record.value);
            let code = keys.rcode.as_ref().map_or("NOERROR", |code| code.value);
            CheckKind::Dns(told(section, DnsCheck::new(query.value, record, code))?)
        }
        Kind::Command => {
            let example = "command = [\"/usr/local/bin/check\"]";
            let command = section.required("command", example, keys.command)?;
            let parts: Vec<&str> = command.value.iter().map(|part| part.value).collect();
            // Parts that were told wrong already are missing from it.
            if parts.is_empty() && !section.is_empty_list("command") {
                return None;
            }
            CheckKind::Command(told(section, CommandCheck::new(&parts))?)
        }
    };
    Some(Monitor { kind, port: port.map(|port| port.value), through: Through::default(), interval, timeout })
}

/// Interval and time-out.
fn pace(section: &Section<'_, '_>, (mut interval, mut timeout): (Duration, Duration)) -> (Duration, Duration) {
    set(&mut interval, section.duration("interval", CheckSpec::MIN_INTERVAL..=Duration::from_secs(3_600), ""));
    set(&mut timeout, section.duration("timeout", Duration::from_millis(10)..=Duration::from_secs(60), ""));
    (interval, timeout)
}

fn http(section: &Section<'_, '_>, keys: &Keys<'_>) -> Option<HttpCheck> {
    let usual = || vec![(200..=399, section.span.clone())];
    let ranges = keys.expect.as_ref().map_or_else(usual, |expect| {
        let told_wrong = !section.is_empty_list("expect");
        let ranges = statuses(section, expect);
        // What is wrong with them was told; that none is left needs not be.
        if ranges.is_empty() && told_wrong { usual() } else { ranges }
    });
    let plain: Vec<RangeInclusive<u16>> = ranges.iter().map(|(range, _)| range.clone()).collect();
    let built = HttpCheck::new(
        keys.method.as_ref().map_or("GET", |method| method.value),
        keys.path.as_ref().map_or("/", |path| path.value),
        keys.host.as_ref().map(|host| host.value),
        &plain,
    );
    if let Err(SpecError::Status(first, last)) = built {
        let place = ranges.iter().find(|(range, _)| (*range.start(), *range.end()) == (first, last));
        let place = place.map_or(section.key_span("expect"), |(_, span)| span.clone());
        tell(section, &SpecError::Status(first, last), place);
        return None;
    }
    let check = told(section, built)?;
    one_of(section, &["body", "body_regex"])?;
    let body = match (&keys.body, &keys.body_regex) {
        (Some(text), _) => Some(BodyMatch::text(text.value)),
        (_, Some(pattern)) => Some(BodyMatch::pattern(pattern.value)),
        (None, None) => None,
    };
    match body {
        None => Some(check),
        Some(body) => told(section, body.and_then(|body| check.with_body(body))),
    }
}

fn statuses(section: &Section<'_, '_>, expect: &At<Vec<At<String>>>) -> Vec<(RangeInclusive<u16>, Span)> {
    let mut ranges = Vec::new();
    for text in &expect.value {
        let (first, last) = text.value.split_once('-').unwrap_or((&text.value, &text.value));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) => ranges.push((first..=last, text.span.clone())),
            _ => {
                let message = format!("`{}` is no HTTP status", text.value);
                section.error(text.span.clone(), message, "write expect = [200, \"300-399\"]");
            }
        }
    }
    ranges
}

fn tls(section: &Section<'_, '_>, keys: &Keys<'_>) -> Option<TlsCheck> {
    let verify = match (&keys.verify, &keys.ca) {
        (Some(At { value: false, .. }), Some(_)) => {
            let help = "remove it, or set verify = true";
            section.error(section.key_span("ca"), "`ca` means nothing with verify = false", help);
            return None;
        }
        (Some(At { value: false, .. }), None) => Verify::Nothing,
        (_, None) => Verify::System,
        (_, Some(ca)) if Path::new(ca.value).is_absolute() => Verify::File(ca.value.into()),
        (_, Some(ca)) => {
            let help = "give the absolute path of a PEM file: ca = \"/etc/ssl/certs/internal.pem\"";
            section.error(ca.span.clone(), format!("`{}` cannot be a file of certificates", ca.value), help);
            return None;
        }
    };
    if let Some(sni) = &keys.sni {
        return told(section, TlsCheck::new(Some(sni.value), verify));
    }
    // A host that is none was told already.
    let host = keys.host.as_ref().and_then(|host| host.value.parse::<hyper::http::uri::Authority>().ok());
    let name = host.as_ref().map(|host| host.host().trim_start_matches('[').trim_end_matches(']'));
    TlsCheck::new(name, verify.clone()).or_else(|_| TlsCheck::new(None, verify)).ok()
}

fn udp(section: &Section<'_, '_>, keys: &Keys<'_>) -> Option<UdpCheck> {
    let (to_send, to_expect) = (one_of(section, &["send", "send_hex"]), one_of(section, EXPECTATIONS));
    if !section.has("send_hex") {
        section.required("send", "send = \"ping\", or send_hex = \"70 69 6e 67\"", keys.send.as_ref())?;
    }
    to_send.and(to_expect)?;
    let bytes = |key: &str, text: &Option<At<&str>>, hex: &Option<At<&str>>| match (text, hex) {
        (Some(text), _) => Some(Some(text.value.as_bytes().to_vec())),
        (None, Some(hex)) => match from_hex(hex.value) {
            Ok(bytes) => Some(Some(bytes)),
            Err(error) => {
                tell(section, &error, section.value_span(key));
                None
            }
        },
        (None, None) => Some(None),
    };
    let send = bytes("send_hex", &keys.send, &keys.send_hex);
    let start = bytes("starts_with_hex", &keys.starts_with, &keys.starts_with_hex);
    let expect = match (start?, &keys.contains) {
        (Some(start), _) => UdpExpect::StartsWith(start),
        (None, Some(text)) => UdpExpect::Contains(text.value.as_bytes().to_vec()),
        (None, None) => UdpExpect::Anything,
    };
    told(section, UdpCheck::new(send??, expect))
}

const EXPECTATIONS: &[&str] = &["starts_with", "starts_with_hex", "contains"];

/// At most one of some keys may be there. None: there are more, which was told.
fn one_of(section: &Section<'_, '_>, keys: &[&str]) -> Option<()> {
    let mut there = keys.iter().filter(|key| section.has(key));
    if let (Some(first), Some(second)) = (there.next(), there.next()) {
        let message = format!("`{first}` and `{second}` are both set");
        section.error(section.key_span(second), message, "keep one of them");
        return None;
    }
    Some(())
}

/// Tells what is wrong at the key that it is about.
fn told<T>(section: &Section<'_, '_>, built: Result<T, SpecError>) -> Option<T> {
    let error = match built {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let keys: &[&str] = match &error {
        SpecError::Method(_) => &["method"],
        SpecError::Path(_) => &["path"],
        SpecError::Host(_) => &["host"],
        SpecError::NoStatus | SpecError::Status(..) => &["expect"],
        SpecError::EmptyBody | SpecError::NoBody | SpecError::Pattern(_) | SpecError::PatternTooLarge => {
            &["body", "body_regex"]
        }
        SpecError::ServerName(_) => &["sni"],
        SpecError::Hex(_) => &["send_hex", "starts_with_hex"],
        SpecError::NothingToSend | SpecError::TooMuchToSend(_) => &["send", "send_hex"],
        SpecError::NothingExpected => EXPECTATIONS,
        SpecError::Query(_) => &["query"],
        SpecError::RecordType(_) => &["record"],
        SpecError::ResponseCode(_) => &["rcode"],
        SpecError::NoCommand | SpecError::Command(_) | SpecError::ZeroByte => &["command"],
    };
    let key = keys.iter().find(|key| section.has(key));
    let place = key.map_or(section.span.clone(), |key| match error {
        // There is no value worth a mark.
        SpecError::NoStatus | SpecError::NoCommand => section.key_span(key),
        _ => section.value_span(key),
    });
    tell(section, &error, place);
    None
}

fn tell(section: &Section<'_, '_>, error: &SpecError, place: Span) {
    let text = error.to_string();
    let (message, help) = text.rsplit_once(": ").unwrap_or((&text, "correct it"));
    section.error(place, message, help);
}

pub(super) fn agent(section: Section<'_, '_>) -> Option<Agent> {
    let kind = section.choice("type", &[("line", false), ("json", true)]);
    let wrong_kind = kind.is_none() && section.has("type");
    let json = kind.is_some_and(|kind| kind.value);
    let send = section.string("send", "web\\n");
    let path = section.string("path", "/load");
    let host = section.string("host", "www.example");
    for (key, of_json, other) in [("send", false, "line"), ("path", true, "json"), ("host", true, "json")] {
        if section.has(key) && json != of_json && !wrong_kind {
            let help = format!("remove it, or set type = \"{other}\"");
            section.error(section.key_span(key), format!("`{key}` is for agents of type {other} only"), help);
        }
    }
    let port = section.required("port", "port = 8081", section.number::<u16>("port", 1..=65_535));
    let (interval, timeout) = pace(&section, CHECK_PACE);
    let check = if json {
        let path = path.as_ref().map_or("/", |path| path.value);
        told(&section, AgentCheck::json(path, host.as_ref().map(|host| host.value)))
    } else {
        Some(AgentCheck::Line { send: send.map(|send| send.value.to_owned()) })
    };
    section.finish();
    Some(Agent { check: check?, port: port?.value, interval, timeout })
}
