//! What a server's agent reports: a line in the form of HAProxy's agent checks, or JSON.

use serde_json::{Map, Value};

use super::error::ProbeError;

/// Longest reason, and longest unknown word that is told, in characters.
const TEXT_LIMIT: usize = 120;
const MOST_UNKNOWN: usize = 8;

/// What an agent said at one time. What it did not speak of is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentReport {
    pub state: Option<AgentState>,
    pub admin: Option<AgentAdmin>,
    /// Of the configured weight; may be zero, and over 100.
    pub weight_percent: Option<u32>,
    pub max_connections: Option<u32>,
    /// Parts of the whole, from 0 to 1.
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    /// Requests that the server is working on.
    pub in_flight: Option<u64>,
    /// Why the state is as it is.
    pub reason: Option<String>,
    /// What was not understood, the first few.
    pub unknown: Vec<String>,
}

/// Whether the server works, says its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    Up,
    /// It does not work.
    Down,
    /// It works, but failed a test.
    Fail,
    /// It was stopped on purpose.
    Stopped,
}

/// What the server's operator wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentAdmin {
    /// Ends `Drain` and `Maint`.
    Ready,
    /// No new flows but those that belong to it.
    Drain,
    /// No new flows, and no checks.
    Maint,
}

impl AgentReport {
    /// Reads a line, without its end: words with spaces, tabs or commas between them, in any order and case, up to a `#`,
    /// after which the reason follows. Of words of the same kind the last counts.
    pub fn from_line(line: &str) -> Self {
        let (words, reason) = match line.split_once('#') {
            Some((words, reason)) => (words, clean(reason)),
            None => (line, String::new()),
        };
        let mut report =
            AgentReport { reason: Some(reason).filter(|reason| !reason.is_empty()), ..AgentReport::default() };
        for text in words.split([' ', '\t', ',']).filter(|text| !text.is_empty()) {
            match text.to_ascii_lowercase().as_str() {
                "up" => report.state = Some(AgentState::Up),
                "down" => report.state = Some(AgentState::Down),
                "fail" => report.state = Some(AgentState::Fail),
                "stopped" => report.state = Some(AgentState::Stopped),
                "ready" => report.admin = Some(AgentAdmin::Ready),
                "drain" => report.admin = Some(AgentAdmin::Drain),
                "maint" => report.admin = Some(AgentAdmin::Maint),
                other => {
                    if let Some(percent) = other.strip_suffix('%').and_then(number) {
                        report.weight_percent = Some(percent);
                    } else if let Some(most) = other.strip_prefix("maxconn:").and_then(number) {
                        report.max_connections = Some(most);
                    } else {
                        report.add_unknown(text);
                    }
                }
            }
        }
        report
    }

    /// Reads an object with any of `cpu` and `memory` (0 to 1), `in_flight` and `weight` (percent); others are passed over.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn from_json(text: &[u8]) -> Result<Self, ProbeError> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|_| ProbeError::NotJson)?;
        let mut report = AgentReport::default();
        for (name, value) in &object {
            let part = || value.as_f64().filter(|part| (0.0..=1.0).contains(part));
            let known = match name.as_str() {
                "cpu" => part().map(|part| report.cpu = Some(part)),
                "memory" => part().map(|part| report.memory = Some(part)),
                "in_flight" => value.as_u64().map(|count| report.in_flight = Some(count)),
                "weight" => value.as_u64().and_then(|percent| u32::try_from(percent).ok()).map(|percent| {
                    report.weight_percent = Some(percent);
                }),
                _ => Some(()),
            };
            if known.is_none() && !value.is_null() {
                report.add_unknown(&format!("{name}={value}"));
            }
        }
        Ok(report)
    }

    /// Whether nothing was said that is understood.
    pub fn is_empty(&self) -> bool {
        let Self { state, admin, weight_percent, max_connections, cpu, memory, in_flight, reason: _, unknown: _ } =
            self;
        state.is_none()
            && admin.is_none()
            && weight_percent.is_none()
            && max_connections.is_none()
            && cpu.is_none()
            && memory.is_none()
            && in_flight.is_none()
    }

    fn add_unknown(&mut self, text: &str) {
        if self.unknown.len() < MOST_UNKNOWN {
            self.unknown.push(clean(text));
        }
    }
}

/// Digits alone: `parse` would take a plus sign as well.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Fit for a table.
fn clean(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unknown(words: &[&str]) -> AgentReport {
        AgentReport { unknown: words.iter().map(|word| (*word).to_owned()).collect(), ..AgentReport::default() }
    }

    #[test]
    fn lines_are_understood_as_haproxy_documents_them() {
        let state = |state| AgentReport { state: Some(state), ..AgentReport::default() };
        let admin = |admin| AgentReport { admin: Some(admin), ..AgentReport::default() };
        let weight = |percent| AgentReport { weight_percent: Some(percent), ..AgentReport::default() };
        let because = |state, reason: &str| AgentReport {
            state: Some(state),
            reason: Some(reason.into()),
            ..AgentReport::default()
        };
        for (line, report) in [
            ("up", state(AgentState::Up)),
            ("down", state(AgentState::Down)),
            ("fail", state(AgentState::Fail)),
            ("stopped", state(AgentState::Stopped)),
            ("ready", admin(AgentAdmin::Ready)),
            ("drain", admin(AgentAdmin::Drain)),
            ("maint", admin(AgentAdmin::Maint)),
            ("75%", weight(75)),
            ("0%", weight(0)),
            ("150%", weight(150)),
            ("maxconn:30", AgentReport { max_connections: Some(30), ..AgentReport::default() }),
            ("MAXCONN:0", AgentReport { max_connections: Some(0), ..AgentReport::default() }),
            ("Up", state(AgentState::Up)),
            ("down # disk is full", because(AgentState::Down, "disk is full")),
            ("fail#no database", because(AgentState::Fail, "no database")),
            ("stopped #", state(AgentState::Stopped)),
            ("down #one #two, up", because(AgentState::Down, "one #two, up")),
            (
                "ready,up\t50% ,, maxconn:100",
                AgentReport {
                    state: Some(AgentState::Up),
                    admin: Some(AgentAdmin::Ready),
                    weight_percent: Some(50),
                    max_connections: Some(100),
                    ..AgentReport::default()
                },
            ),
            ("up down", state(AgentState::Down)),
            ("10% 20%", weight(20)),
            ("", AgentReport::default()),
            ("  \t", AgentReport::default()),
            ("hello wörld", unknown(&["hello", "wörld"])),
            ("% -5% +5% 5%% 7.5% 99999999999%", unknown(&["%", "-5%", "+5%", "5%%", "7.5%", "99999999999%"])),
            ("maxconn: maxconn:x maxconn 5", unknown(&["maxconn:", "maxconn:x", "maxconn", "5"])),
            ("upp", unknown(&["upp"])),
            ("a\x1b[0m", unknown(&["a [0m"])),
        ] {
            assert_eq!(AgentReport::from_line(line), report, "{line:?}");
        }
    }

    #[test]
    fn json_is_understood_by_field() {
        let report = AgentReport {
            cpu: Some(0.25),
            memory: Some(1.0),
            in_flight: Some(7),
            weight_percent: Some(80),
            ..AgentReport::default()
        };
        for (text, expected) in [
            (r#"{"cpu": 0.25, "memory": 1, "in_flight": 7, "weight": 80}"#, Ok(report)),
            (
                r#"{"cpu": 0, "host": "a", "deep": [[{}]]}"#,
                Ok(AgentReport { cpu: Some(0.0), ..AgentReport::default() }),
            ),
            ("{}", Ok(AgentReport::default())),
            (r#"{"cpu": null}"#, Ok(AgentReport::default())),
            (r#"{"cpu": 7, "memory": "half"}"#, Ok(unknown(&["cpu=7", "memory=\"half\""]))),
            (r#"{"in_flight": -1, "weight": 1e99}"#, Ok(unknown(&["in_flight=-1", "weight=1e+99"]))),
            (r#"{"cpu": -0.1, "weight": 99999999999}"#, Ok(unknown(&["cpu=-0.1", "weight=99999999999"]))),
            ("[1]", Err(ProbeError::NotJson)),
            ("", Err(ProbeError::NotJson)),
            (r#"{"cpu": 0.5"#, Err(ProbeError::NotJson)),
            ("up 75%", Err(ProbeError::NotJson)),
        ] {
            assert_eq!(AgentReport::from_json(text.as_bytes()), expected, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(AgentReport::from_json(deep.as_bytes()), Err(ProbeError::NotJson));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic_and_what_it_keeps_is_bounded(line in r"(up|down|#|maxconn:|%|,|\PC|\s|[0-9]){0,400}") {
            let report = AgentReport::from_line(&line);
            prop_assert!(report.unknown.len() <= MOST_UNKNOWN);
            let texts = report.unknown.iter().chain(&report.reason);
            prop_assert!(texts.clone().all(|text| text.chars().count() <= TEXT_LIMIT && !text.contains(char::is_control)));
        }

        #[test]
        fn no_json_makes_it_panic(text in r#"(\{|\}|"cpu"|"weight"|:|,|[0-9.eE-]|\[|\]|null|\PC){0,60}"#, bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            drop(AgentReport::from_json(text.as_bytes()));
            drop(AgentReport::from_json(&bytes));
        }
    }
}
