//! `[service.agent]`: what a server says of itself.

use std::time::Duration;

use super::check::{accept, pace};
use super::document::Agent;
use super::schema::table::{Keys, Table};
use super::schema::value::Given;
use crate::health::AgentCheck;

#[derive(Clone, Debug)]
struct AgentKeys {
    json: Given<bool>,
    send: Option<String>,
    path: String,
    host: Option<String>,
    port: Option<u16>,
    interval: Duration,
    timeout: Duration,
}

pub(super) fn table() -> Table<Agent> {
    let usual = AgentKeys {
        json: Given::default(),
        send: None,
        path: "/".to_owned(),
        host: None,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
    };
    let keys = Keys::new("[service.agent]", "What the server says of itself.", usual)
        .optional()
        .choice(
            "type",
            |it| &mut it.json,
            &[("line", false), ("json", true)],
            "line: HAProxy's agent check, such as \"up 75% maxconn:30\"; json: an object with any of cpu and memory (0 to \
             1), in_flight and weight (percent), by HTTP.",
        )
        .string(
            "send",
            |it| &mut it.send,
            "web\\n",
            "Sent first, to an agent that waits for it. Without: nothing.",
        )
        .shown("\"web\\n\"")
        .only("type", &["line"])
        .string("path", |it| &mut it.path, "/load", "Path of the request.")
        .only("type", &["json"])
        .string("host", |it| &mut it.host, "www.example", "Its Host header. Without: the server's address.")
        .only("type", &["json"])
        .number::<u16>("port", |it| &mut it.port, 1..=65_535, "TCP port at which the server's agent answers.")
        .required("port = 8081")
        .shown("8081");
    pace(keys, |it| &mut it.interval, |it| &mut it.timeout).build(|section, it| {
        if !it.json.rejected {
            section.reject_unused("type", if it.json.value { "json" } else { "line" }, |key, wanted| {
                let message = format!("`{key}` is for agents of type {wanted} only");
                (message, format!("remove it, or set type = \"{wanted}\""))
            });
        }
        let check = if it.json.value {
            accept(section, AgentCheck::json(&it.path, it.host.as_deref()))
        } else {
            Some(AgentCheck::Line { send: it.send })
        };
        Some(Agent { check: check?, port: it.port?, interval: it.interval, timeout: it.timeout })
    })
}
