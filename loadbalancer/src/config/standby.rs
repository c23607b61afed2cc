//! `[standby]`, the pool of standby servers, and `[service.standby]`, when a service gets some.

use std::rc::Rc;
use std::time::Duration;

use super::channel;
use super::document::Pool;
use super::schema::table::{Keys, SlotOf, Table};
use super::schema::value::{At, List, Span};
use super::schema::walk::Section;
use super::server::{self, PlacedServer};
use crate::health::CommandCheck;
use decide::standby::settings::{ServiceSettings, Settings};

pub(super) const LEAST: Duration = Duration::from_millis(100);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

#[derive(Clone, Debug, Default)]
pub(super) struct PoolKeys {
    settings: Settings,
    start: List<At<String>>,
    stop: List<At<String>>,
    channels: List<At<String>>,
    pub servers: List<PlacedServer>,
    /// Commands that were found right.
    hooks: [Option<CommandCheck>; 2],
    pub span: Span,
}

impl PoolKeys {
    pub fn document(self) -> Pool {
        let [start, stop] = self.hooks;
        let servers = self.servers.all.into_iter().map(|placed| placed.server).collect();
        Pool { servers, start, stop, settings: self.settings }
    }
}

/// `channels` are the names of all.
pub(super) fn pool(channels: Rc<[String]>) -> Table<PoolKeys> {
    let doc = "Standby servers that all services with [service.standby] share.";
    let keys = Keys::new("[standby]", doc, PoolKeys::default())
        .time(
            "hook_timeout",
            |it| &mut it.settings.hook_timeout,
            LEAST..=DAY,
            "At the time-out a hook is killed, and has failed: a server that does not start is stopped again and rests.",
        )
        .time(
            "check_timeout",
            |it| &mut it.settings.check_timeout,
            LEAST..=DAY,
            "Within which its checks have to pass; one that serves and is down for as long is taken back.",
        )
        .time(
            "drain_timeout",
            |it| &mut it.settings.drain_timeout,
            Duration::ZERO..=DAY,
            "After which a server is given back although flows are left.",
        )
        .time(
            "cool_down",
            |it| &mut it.settings.cool_down,
            Duration::ZERO..=DAY,
            "Rest of a server that was given back.",
        )
        .time(
            "retry_after",
            |it| &mut it.settings.retry_after,
            Duration::ZERO..=DAY,
            "Rest of a server that failed, times its failures on end.",
        )
        .time("retry_most", |it| &mut it.settings.retry_most, Duration::ZERO..=DAY, "Longest rest after failures.")
        .number::<u32>("stop_tries", |it| &mut it.settings.stop_tries, 1..=100, "How often a stop hook is tried.")
        .texts(
            "start",
            |it| &mut it.start,
            super::forms::any,
            "/usr/local/bin/start-server",
            "Command that starts a server, without a shell. It finds LB_SERVICE, LB_SERVER and LB_ADDRESS in its \
             environment; exit code 0 is a success, else the first line of its output is the reason. Without it and `stop`, \
             servers always run.",
        )
        .shown("[\"/usr/local/bin/server\", \"start\"]")
        .texts(
            "stop",
            |it| &mut it.stop,
            super::forms::any,
            "/usr/local/bin/start-server",
            "Command that stops a server, in the same way.",
        )
        .shown("[\"/usr/local/bin/server\", \"stop\"]");
    let doc = "The channels that lead to all servers of the pool that name none themselves.";
    let of_server = Rc::clone(&channels);
    channel::channels_key(keys, |it| &mut it.channels, doc)
        .tables("server", |it| &mut it.servers, move |_| server::of_pool(Rc::clone(&of_server)))
        .build(move |section, mut it| {
            it.span = section.span.clone();
            it.hooks = [hook(section, &it.start), hook(section, &it.stop)];
            let usual = channel::positions(section, &it.channels, &channels);
            for server in &mut it.servers.all {
                server.or_channels(usual.as_ref());
            }
            Some(it)
        })
}

fn hook(section: &Section<'_, '_>, command: &List<At<String>>) -> Option<CommandCheck> {
    let span = command.span.clone()?;
    let parts: Vec<&str> = command.values().map(String::as_str).collect();
    match CommandCheck::new(&parts) {
        Ok(command) => Some(command),
        Err(error) => {
            let text = error.to_string();
            let (message, help) = text.split_once(": ").unwrap_or((text.as_str(), "give a program and its arguments"));
            section.error(span, message, help);
            None
        }
    }
}

pub(super) fn of_service() -> Table<ServiceSettings> {
    let doc = "When the service gets a server of the pool: a level that is exceeded, any of p90, failures, \
               active_per_weight. Without this table it gets none.";
    let keys = Keys::new("[service.standby]", doc, ServiceSettings::default()).optional();
    let load = "Live flows of all servers that serve, over the sum of their weights.";
    levels_keys(keys, |it| &mut it.levels.p90, |it| &mut it.levels.failures, (|it| &mut it.levels.load, load))
        .time("hold", |it| &mut it.hold, LEAST..=DAY, "How long a level has to be exceeded.")
        .decimal("recovery", |it| &mut it.recovery, 0.01..=1.0, "Share of the levels below which the service has recovered.")
        .time(
            "recovery_for",
            |it| &mut it.recovery_for,
            LEAST..=DAY,
            "How long it has to be so; twice as long after each relapse.",
        )
        .time("recovery_most", |it| &mut it.recovery_most, LEAST..=DAY, "Longest such time.")
        .time(
            "relapse_within",
            |it| &mut it.relapse_within,
            LEAST..=DAY,
            "Need within that time after a server was given back is a relapse.",
        )
        .time(
            "settle",
            |it| &mut it.settle,
            Duration::ZERO..=DAY,
            "Time that each change has to act before the next.",
        )
        .number::<u32>("min", |it| &mut it.min, 0..=1_000, "Standby servers that it always has.")
        .number::<u32>("max", |it| &mut it.max, 0..=1_000, "Standby servers that it has at most. Without: no bound.")
        .shown("2")
        .build(|section, it| {
            if !has_levels(section) && it.min == 0 {
                let help = "set p90 = \"200ms\", failures = 0.05 or active_per_weight = 100, or min = 1 for one that always serves";
                section.error(section.span.clone(), "nothing says when the service gets a standby server", help);
            }
            if it.min > it.max {
                let message = format!("`min` is {}, but `max` is {}", it.min, it.max);
                section.error(section.value_span("min"), message, "make `max` at least as large");
            }
            Some(it)
        })
}

/// The keys of levels; the load with what it is.
pub(super) fn levels_keys<T: Clone + 'static>(
    keys: Keys<T>,
    p90: SlotOf<T, Duration>,
    failures: SlotOf<T, f64>,
    (load, load_doc): (SlotOf<T, f64>, &'static str),
) -> Keys<T> {
    let longest = Duration::from_secs(3_600);
    keys.time("p90", p90, Duration::from_micros(10)..=longest, "90th percentile of latency.")
        .shown("\"200ms\"")
        .decimal("failures", failures, 0.000_1..=1.0, "Share of requests and checks that fail.")
        .shown("0.05")
        .decimal("active_per_weight", load, 0.01..=1e9, load_doc)
        .shown("200")
}

/// Whether some level is set.
pub(super) fn has_levels(section: &Section<'_, '_>) -> bool {
    ["p90", "failures", "active_per_weight"].iter().any(|key| section.has(key))
}
