//! The server's own word, as its agent gives it: a line in the form of HAProxy's agent checks, or JSON.

use serde_json::{Map, Value};

use super::error::ProbeError;

/// Longest reason, and longest unknown word that is told, in characters.
const TEXT_LIMIT: usize = 120;
const MOST_UNKNOWN: usize = 8;

/// What an agent said at one time. What it did not speak of is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Word {
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

impl Word {
    /// Reads a line, without its end: words with spaces, tabs or commas between them, in any order and case, up to a `#`,
    /// after which the reason follows. Of words of the same kind the last counts.
    pub fn from_line(line: &str) -> Self {
        let (words, reason) = match line.split_once('#') {
            Some((words, reason)) => (words, clean(reason)),
            None => (line, String::new()),
        };
        let mut word = Word { reason: Some(reason).filter(|reason| !reason.is_empty()), ..Word::default() };
        for text in words.split([' ', '\t', ',']).filter(|text| !text.is_empty()) {
            match text.to_ascii_lowercase().as_str() {
                "up" => word.state = Some(AgentState::Up),
                "down" => word.state = Some(AgentState::Down),
                "fail" => word.state = Some(AgentState::Fail),
                "stopped" => word.state = Some(AgentState::Stopped),
                "ready" => word.admin = Some(AgentAdmin::Ready),
                "drain" => word.admin = Some(AgentAdmin::Drain),
                "maint" => word.admin = Some(AgentAdmin::Maint),
                other => {
                    if let Some(percent) = other.strip_suffix('%').and_then(number) {
                        word.weight_percent = Some(percent);
                    } else if let Some(most) = other.strip_prefix("maxconn:").and_then(number) {
                        word.max_connections = Some(most);
                    } else {
                        word.add_unknown(text);
                    }
                }
            }
        }
        word
    }

    /// Reads an object with any of `cpu` and `memory` (0 to 1), `in_flight` and `weight` (percent); others are passed over.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn from_json(text: &[u8]) -> Result<Self, ProbeError> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|_| ProbeError::NotJson)?;
        let mut word = Word::default();
        for (name, value) in &object {
            let part = || value.as_f64().filter(|part| (0.0..=1.0).contains(part));
            let known = match name.as_str() {
                "cpu" => part().map(|part| word.cpu = Some(part)),
                "memory" => part().map(|part| word.memory = Some(part)),
                "in_flight" => value.as_u64().map(|count| word.in_flight = Some(count)),
                "weight" => value.as_u64().and_then(|percent| u32::try_from(percent).ok()).map(|percent| {
                    word.weight_percent = Some(percent);
                }),
                _ => Some(()),
            };
            if known.is_none() && !value.is_null() {
                word.add_unknown(&format!("{name}={value}"));
            }
        }
        Ok(word)
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

    fn unknown(words: &[&str]) -> Word {
        Word { unknown: words.iter().map(|word| (*word).to_owned()).collect(), ..Word::default() }
    }

    #[test]
    fn lines_are_understood_as_haproxy_documents_them() {
        let state = |state| Word { state: Some(state), ..Word::default() };
        let admin = |admin| Word { admin: Some(admin), ..Word::default() };
        let weight = |percent| Word { weight_percent: Some(percent), ..Word::default() };
        let because = |state, reason: &str| Word { state: Some(state), reason: Some(reason.into()), ..Word::default() };
        for (line, word) in [
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
            ("maxconn:30", Word { max_connections: Some(30), ..Word::default() }),
            ("MAXCONN:0", Word { max_connections: Some(0), ..Word::default() }),
            ("Up", state(AgentState::Up)),
            ("down # disk is full", because(AgentState::Down, "disk is full")),
            ("fail#no database", because(AgentState::Fail, "no database")),
            ("stopped #", state(AgentState::Stopped)),
            ("down #one #two, up", because(AgentState::Down, "one #two, up")),
            (
                "ready,up\t50% ,, maxconn:100",
                Word {
                    state: Some(AgentState::Up),
                    admin: Some(AgentAdmin::Ready),
                    weight_percent: Some(50),
                    max_connections: Some(100),
                    ..Word::default()
                },
            ),
            ("up down", state(AgentState::Down)),
            ("10% 20%", weight(20)),
            ("", Word::default()),
            ("  \t", Word::default()),
            ("hello wörld", unknown(&["hello", "wörld"])),
            ("% -5% +5% 5%% 7.5% 99999999999%", unknown(&["%", "-5%", "+5%", "5%%", "7.5%", "99999999999%"])),
            ("maxconn: maxconn:x maxconn 5", unknown(&["maxconn:", "maxconn:x", "maxconn", "5"])),
            ("upp", unknown(&["upp"])),
            ("a\x1b[0m", unknown(&["a [0m"])),
        ] {
            assert_eq!(Word::from_line(line), word, "{line:?}");
        }
    }

    #[test]
    fn json_is_understood_by_field() {
        let word = Word {
            cpu: Some(0.25),
            memory: Some(1.0),
            in_flight: Some(7),
            weight_percent: Some(80),
            ..Word::default()
        };
        for (text, expected) in [
            (r#"{"cpu": 0.25, "memory": 1, "in_flight": 7, "weight": 80}"#, Ok(word)),
            (r#"{"cpu": 0, "host": "a", "deep": [[{}]]}"#, Ok(Word { cpu: Some(0.0), ..Word::default() })),
            ("{}", Ok(Word::default())),
            (r#"{"cpu": null}"#, Ok(Word::default())),
            (r#"{"cpu": 7, "memory": "half"}"#, Ok(unknown(&["cpu=7", "memory=\"half\""]))),
            (r#"{"in_flight": -1, "weight": 1e99}"#, Ok(unknown(&["in_flight=-1", "weight=1e+99"]))),
            (r#"{"cpu": -0.1, "weight": 99999999999}"#, Ok(unknown(&["cpu=-0.1", "weight=99999999999"]))),
            ("[1]", Err(ProbeError::NotJson)),
            ("", Err(ProbeError::NotJson)),
            (r#"{"cpu": 0.5"#, Err(ProbeError::NotJson)),
            ("up 75%", Err(ProbeError::NotJson)),
        ] {
            assert_eq!(Word::from_json(text.as_bytes()), expected, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(Word::from_json(deep.as_bytes()), Err(ProbeError::NotJson));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic_and_what_it_keeps_is_bounded(line in r"(up|down|#|maxconn:|%|,|\PC|\s|[0-9]){0,400}") {
            let word = Word::from_line(&line);
            prop_assert!(word.unknown.len() <= MOST_UNKNOWN);
            let texts = word.unknown.iter().chain(&word.reason);
            prop_assert!(texts.clone().all(|text| text.chars().count() <= TEXT_LIMIT && !text.contains(char::is_control)));
        }

        #[test]
        fn no_json_makes_it_panic(text in r#"(\{|\}|"cpu"|"weight"|:|,|[0-9.eE-]|\[|\]|null|\PC){0,60}"#, bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            drop(Word::from_json(text.as_bytes()));
            drop(Word::from_json(&bytes));
        }
    }
}
