//! What is asked of servers: `[service.check]`, `[[service.monitors]]` and `[channel.probe]`.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::document::{ChannelProbe, Check, Monitor, Through};
use super::schema::table::{Keys, SlotOf, Table};
use super::schema::value::{At, List, Span};
use super::schema::walk::Section;
use crate::health::{
    Asks, BodyMatch, CheckKind, CheckSpec, CommandCheck, DnsCheck, HttpCheck, SpecError, Thresholds, TlsCheck,
    UdpCheck, UdpExpect, Verify, from_hex,
};

#[derive(Clone, Copy, Debug, PartialEq)]
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

const HTTP: &[&str] = &["http", "https"];
const HTTPS: &[&str] = &["https"];
const UDP: &[&str] = &["udp"];
const DNS: &[&str] = &["dns"];

#[derive(Clone, Debug)]
struct CheckKeys {
    kind: Option<Kind>,
    method: String,
    path: String,
    host: Option<String>,
    expect: List<At<String>>,
    body: Option<String>,
    body_regex: Option<String>,
    sni: Option<String>,
    ca: Option<At<String>>,
    verify: bool,
    send: Option<String>,
    send_hex: Option<String>,
    starts_with: Option<String>,
    starts_with_hex: Option<String>,
    contains: Option<String>,
    query: Option<String>,
    record: String,
    rcode: String,
    command: List<At<String>>,
    port: Option<u16>,
    interval: Duration,
    timeout: Duration,
    through: Through,
    rise: u32,
    fall: u32,
}

impl Default for CheckKeys {
    fn default() -> Self {
        Self {
            kind: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            expect: List::default_of(["200-399".to_owned()]),
            body: None,
            body_regex: None,
            sni: None,
            ca: None,
            verify: true,
            send: None,
            send_hex: None,
            starts_with: None,
            starts_with_hex: None,
            contains: None,
            query: None,
            record: "A".to_owned(),
            rcode: "NOERROR".to_owned(),
            command: List::default(),
            port: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            through: Through::default(),
            rise: 2,
            fall: 3,
        }
    }
}

/// The keys that all of them have, of the kinds in `words`; `usual` has their defaults.
fn keys(
    name: &str,
    doc: &'static str,
    words: &[(&'static str, Kind)],
    usual: CheckKeys,
    example: &'static str,
) -> Keys<CheckKeys> {
    let keys = Keys::new(name, doc, usual)
        .by("type")
        .choice(
            "type",
            |it| &mut it.kind,
            words,
            "tcp: it accepts a connection; http, https: it answers a request; udp: a datagram; dns: a query; icmp: an echo \
             request; command: a program of yours says so.",
        )
        .required("type = \"tcp\"")
        .shown(example);
    let keys = http_keys(keys);
    let keys = udp_keys(keys)
        .string("query", |it| &mut it.query, "www.example", "Name that is asked for. It must be there.")
        .only("type", DNS)
        .string("record", |it| &mut it.record, "A", "A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT or ANY.")
        .only("type", DNS)
        .string(
            "rcode",
            |it| &mut it.rcode,
            "NOERROR",
            "NOERROR (and there must be a record), NXDOMAIN, REFUSED, SERVFAIL, FORMERR, NOTIMP or NOTAUTH.",
        )
        .only("type", DNS)
        .texts(
            "command",
            |it| &mut it.command,
            super::forms::any,
            "/usr/local/bin/check",
            "Program and arguments, without a shell. They must be there. The program finds LB_SERVICE, LB_SERVER, LB_ADDRESS and LB_PORT in its \
             environment; exit code 0 is a success, else the first line of its output is the reason. At the time-out it is \
             killed, with all that it started.",
        )
        .shown("[\"/usr/local/bin/check\", \"--quick\"]")
        .only("type", &["command"])
        .number::<u16>(
            "port",
            |it| &mut it.port,
            1..=65_535,
            "Without: the server's port, else that of the service's first listener of the same protocol. Not for icmp.",
        )
        .shown("8080");
    pace(keys, |it| &mut it.interval, |it| &mut it.timeout)
}

/// Interval and time-out.
pub(super) fn pace<T: Clone + 'static>(
    keys: Keys<T>,
    interval: SlotOf<T, Duration>,
    timeout: SlotOf<T, Duration>,
) -> Keys<T> {
    keys.time(
        "interval",
        interval,
        CheckSpec::MIN_INTERVAL..=Duration::from_secs(3_600),
        "From the start of one to the start of the next.",
    )
    .time(
        "timeout",
        timeout,
        Duration::from_millis(10)..=Duration::from_secs(60),
        "Without an answer within it, it has failed.",
    )
}

fn http_keys(keys: Keys<CheckKeys>) -> Keys<CheckKeys> {
    keys.string("method", |it| &mut it.method, "GET", "Method of the request.")
        .only("type", HTTP)
        .string("path", |it| &mut it.path, "/health", "Its path.")
        .only("type", HTTP)
        .string("host", |it| &mut it.host, "www.example", "Its Host header. Without: the server's address.")
        .only("type", HTTP)
        .texts_or_numbers(
            "expect",
            |it| &mut it.expect,
            "[200, \"300-399\"]",
            "Statuses that are good. Redirects are not followed.",
        )
        .only("type", HTTP)
        .string("body", |it| &mut it.body, "ok", "What the first 32 KiB of the answer's body are to contain.")
        .only("type", HTTP)
        .string(
            "body_regex",
            |it| &mut it.body_regex,
            "^ok",
            "The same as a regular expression, in the syntax of the Rust crate `regex`.",
        )
        .only("type", HTTP)
        .instead_of("body")
        .string(
            "sni",
            |it| &mut it.sni,
            "www.example",
            "Name for SNI and in the certificate. Without: that of `host`, else the server's address.",
        )
        .only("type", HTTPS)
        .string(
            "ca",
            |it| &mut it.ca,
            "/etc/ssl/certs/internal.pem",
            "PEM file of the authorities to trust. Without: those of the system.",
        )
        .only("type", HTTPS)
        .boolean("verify", |it| &mut it.verify, "false: any certificate will do, and `ca` means nothing.")
        .only("type", HTTPS)
}

fn udp_keys(keys: Keys<CheckKeys>) -> Keys<CheckKeys> {
    keys.string("send", |it| &mut it.send, "ping", "The datagram, of at most 1400 bytes. It must be there.")
        .only("type", UDP)
        .string("send_hex", |it| &mut it.send_hex, "70 69 6e 67", "The same in hexadecimal.")
        .only("type", UDP)
        .instead_of("send")
        .string(
            "starts_with",
            |it| &mut it.starts_with,
            "pong",
            "How the answer is to begin. Without it and what stands in its place: anything.",
        )
        .only("type", UDP)
        .string("starts_with_hex", |it| &mut it.starts_with_hex, "70 6f 6e 67", "The same in hexadecimal.")
        .only("type", UDP)
        .instead_of("starts_with")
        .string("contains", |it| &mut it.contains, "pong", "What the first 4 KiB of the answer are to contain.")
        .only("type", UDP)
        .instead_of("starts_with")
}

/// The key `through`.
fn through_key(keys: Keys<CheckKeys>) -> Keys<CheckKeys> {
    keys.choice(
        "through",
        |it| &mut it.through,
        &[("server", Through::Server), ("vip", Through::Vip)],
        "\"server\": the server at its own address. \"vip\": the VIP, through the packet path and whatever leads to the \
         server; then `port` is one that the service listens on. For tcp, http, https, udp and dns.",
    )
}

pub(super) fn check() -> Table<At<Check>> {
    let mut words = KINDS.to_vec();
    words.push(("none", Kind::None));
    let doc = "Decides whether a server is up. Without this table, or with type = \"none\", servers are not checked.";
    let keys = keys("[service.check]", doc, &words, CheckKeys::default(), "\"http\"");
    through_key(keys)
        .number::<u32>("rise", |it| &mut it.rise, 1..=1_000, "Successes in a row that bring a server up.")
        .number::<u32>("fall", |it| &mut it.fall, 1..=1_000, "Failures in a row that take it down.")
        .build(|section, it| {
            let kind = kind(section, &it);
            reject_portless_vip(section, &it, kind.as_ref());
            let thresholds = Thresholds { rise: NonZeroU32::new(it.rise)?, fall: NonZeroU32::new(it.fall)? };
            let CheckKeys { port, through, interval, timeout, .. } = it;
            let value = Check { kind: kind?, port, through, interval, timeout, thresholds };
            Some(At { value, span: section.span.clone() })
        })
}

pub(super) fn monitor() -> Table<At<Monitor>> {
    let doc = "Further probes, whose results tell the quality of a server and never take it down: each with the keys of \
               [service.check] but `rise` and `fall`.";
    let keys = keys("[[service.monitors]]", doc, &KINDS, CheckKeys::default(), "\"http\"");
    through_key(keys).optional().tells(&["type", "port"]).build(|section, it| {
        let kind = kind(section, &it);
        reject_portless_vip(section, &it, kind.as_ref());
        let CheckKeys { port, through, interval, timeout, .. } = it;
        let value = Monitor { kind: kind?, port, through, interval, timeout };
        Some(At { value, span: section.span.clone() })
    })
}

/// What is asked over a channel, with the pace that is usual there.
pub(super) fn probe(usual: &ChannelProbe) -> Table<ChannelProbe> {
    let doc = "What each server is asked over the channel: the keys of [[service.monitors]] but `through`. With more than \
               2,000 probes a second of all servers and channels, each is asked less often.";
    let usual = CheckKeys { interval: usual.interval, timeout: usual.timeout, ..CheckKeys::default() };
    keys("[channel.probe]", doc, &KINDS, usual, "\"icmp\"").tells(&["type", "interval", "timeout"]).build(
        |section, it| {
            let kind = kind(section, &it)?;
            Some(ChannelProbe { kind, port: it.port, interval: it.interval, timeout: it.timeout })
        },
    )
}

fn reject_portless_vip(section: &Section<'_, '_>, it: &CheckKeys, kind: Option<&CheckKind>) {
    if it.through == Through::Vip && kind.is_some_and(|kind| kind.asks() == Asks::Any) {
        let message = "`through = \"vip\"` is for checks that ask a TCP or UDP port";
        let help = "remove it, or set type to tcp, http, https, udp or dns";
        section.error(section.value_span("through"), message, help);
    }
}

/// What is asked. None: nothing, or it was told wrong.
fn kind(section: &Section<'_, '_>, it: &CheckKeys) -> Option<CheckKind> {
    let word = KINDS.iter().find(|(_, kind)| Some(*kind) == it.kind).map_or("none", |(word, _)| *word);
    if it.kind.is_some() {
        section.reject_unused("type", word, |key, wanted| {
            let title = if wanted == "command" { wanted.to_owned() } else { wanted.to_uppercase() };
            (format!("`{key}` is for {title} checks only"), format!("remove it, or set type = \"{wanted}\""))
        });
    }
    if it.kind == Some(Kind::Icmp) && it.port.is_some() {
        let help = "remove it: an echo request goes to the host as such";
        section.error(section.key_span("port"), "`port` means nothing to an ICMP check", help);
    }
    Some(match it.kind? {
        Kind::None => return None,
        Kind::Tcp => CheckKind::Tcp,
        Kind::Icmp => CheckKind::Icmp,
        Kind::Http => CheckKind::Http(http(section, it)?),
        Kind::Https => {
            // So that what is wrong with either is told at once.
            let (http, tls) = (http(section, it), tls(section, it));
            CheckKind::Https(http?, tls?)
        }
        Kind::Udp => CheckKind::Udp(udp(section, it)?),
        Kind::Dns => {
            section.require("query", "query = \"www.example\"");
            CheckKind::Dns(accept(section, DnsCheck::new(it.query.as_ref()?, &it.record, &it.rcode))?)
        }
        Kind::Command => {
            section.require("command", "command = [\"/usr/local/bin/check\"]");
            it.command.span.as_ref()?;
            let parts: Vec<&str> = it.command.values().map(String::as_str).collect();
            // Parts that were told wrong already are missing from it.
            if parts.is_empty() && !section.is_empty_list("command") {
                return None;
            }
            CheckKind::Command(accept(section, CommandCheck::new(&parts))?)
        }
    })
}

fn http(section: &Section<'_, '_>, it: &CheckKeys) -> Option<HttpCheck> {
    let mut ranges = statuses(section, &it.expect);
    if ranges.is_empty() && !section.is_empty_list("expect") {
        // What is wrong with them was told; that none is left needs not be.
        ranges = statuses(section, &CheckKeys::default().expect);
    }
    let plain: Vec<RangeInclusive<u16>> = ranges.iter().map(|(range, _)| range.clone()).collect();
    let built = HttpCheck::new(&it.method, &it.path, it.host.as_deref(), &plain);
    if let Err(SpecError::Status(first, last)) = built {
        let place = ranges.iter().find(|(range, _)| (*range.start(), *range.end()) == (first, last));
        let place = place.map_or(section.key_span("expect"), |(_, span)| span.clone());
        tell(section, &SpecError::Status(first, last), place);
        return None;
    }
    let check = accept(section, built)?;
    one_of(section, &["body", "body_regex"])?;
    let body = match (&it.body, &it.body_regex) {
        (Some(text), _) => Some(BodyMatch::text(text)),
        (_, Some(pattern)) => Some(BodyMatch::pattern(pattern)),
        (None, None) => None,
    };
    match body {
        None => Some(check),
        Some(body) => accept(section, body.and_then(|body| check.with_body(body))),
    }
}

fn statuses(section: &Section<'_, '_>, expect: &List<At<String>>) -> Vec<(RangeInclusive<u16>, Span)> {
    let mut ranges = Vec::new();
    for text in &expect.all {
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

fn tls(section: &Section<'_, '_>, it: &CheckKeys) -> Option<TlsCheck> {
    let verify = match (it.verify, &it.ca) {
        (false, Some(_)) => {
            let help = "remove it, or set verify = true";
            section.error(section.key_span("ca"), "`ca` means nothing with verify = false", help);
            return None;
        }
        (false, None) => Verify::Nothing,
        (true, None) => Verify::System,
        (true, Some(ca)) if Path::new(&ca.value).is_absolute() => Verify::File(ca.value.clone().into()),
        (true, Some(ca)) => {
            let help = "give the absolute path of a PEM file: ca = \"/etc/ssl/certs/internal.pem\"";
            section.error(ca.span.clone(), format!("`{}` cannot be a file of certificates", ca.value), help);
            return None;
        }
    };
    if let Some(sni) = &it.sni {
        return accept(section, TlsCheck::new(Some(sni), verify));
    }
    // A host that is none was told already.
    let host = it.host.as_ref().and_then(|host| host.parse::<hyper::http::uri::Authority>().ok());
    let name = host.as_ref().map(|host| host.host().trim_start_matches('[').trim_end_matches(']'));
    TlsCheck::new(name, verify.clone()).or_else(|_| TlsCheck::new(None, verify)).ok()
}

fn udp(section: &Section<'_, '_>, it: &CheckKeys) -> Option<UdpCheck> {
    let (to_send, to_expect) = (one_of(section, &["send", "send_hex"]), one_of(section, EXPECTATIONS));
    if !section.has("send_hex") {
        section.require("send", "send = \"ping\", or send_hex = \"70 69 6e 67\"");
        it.send.as_ref()?;
    }
    to_send.and(to_expect)?;
    let bytes = |key: &str, text: &Option<String>, hex: &Option<String>| match (text, hex) {
        (Some(text), _) => Some(Some(text.as_bytes().to_vec())),
        (None, Some(hex)) => match from_hex(hex) {
            Ok(bytes) => Some(Some(bytes)),
            Err(error) => {
                tell(section, &error, section.value_span(key));
                None
            }
        },
        (None, None) => Some(None),
    };
    let send = bytes("send_hex", &it.send, &it.send_hex);
    let start = bytes("starts_with_hex", &it.starts_with, &it.starts_with_hex);
    let expect = match (start?, &it.contains) {
        (Some(start), _) => UdpExpect::StartsWith(start),
        (None, Some(text)) => UdpExpect::Contains(text.as_bytes().to_vec()),
        (None, None) => UdpExpect::Anything,
    };
    accept(section, UdpCheck::new(send??, expect))
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
pub(super) fn accept<T>(section: &Section<'_, '_>, built: Result<T, SpecError>) -> Option<T> {
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
