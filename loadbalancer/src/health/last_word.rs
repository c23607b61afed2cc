//! What the agent of one server has said until now.
//!
//! As with HAProxy's agent checks, what an agent does not speak of stays as it said before, and an agent that cannot be
//! asked changes nothing: that is neither good nor bad, but its word grows stale.

use std::time::{Duration, Instant};

use super::error::ProbeError;
use super::state::Failure;
use super::word::Word;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastWord {
    word: Word,
    heard: Option<Instant>,
    last_failure: Option<Failure>,
}

impl LastWord {
    /// Takes what one question to the agent brought, in order; `at` is when it was known.
    pub fn observe(&mut self, said: Result<Word, ProbeError>, at: Instant) {
        match said {
            Ok(word) => {
                self.heard = Some(at);
                self.add(word);
            }
            Err(error) => self.last_failure = Some(Failure { error, at }),
        }
    }

    /// All that was said, the newest of each kind. Empty before the first word.
    pub fn word(&self) -> &Word {
        &self.word
    }

    /// When the agent was last heard.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether nothing was heard for longer than a time.
    pub fn is_stale(&self, now: Instant, after: Duration) -> bool {
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) > after)
    }

    /// Why the agent could not be asked, the last time that it could not.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    fn add(&mut self, newer: Word) {
        let older = std::mem::take(&mut self.word);
        self.word = Word {
            // A reason belongs to the state that it came with.
            reason: if newer.state.is_some() { newer.reason } else { newer.reason.or(older.reason) },
            state: newer.state.or(older.state),
            admin: newer.admin.or(older.admin),
            weight_percent: newer.weight_percent.or(older.weight_percent),
            max_connections: newer.max_connections.or(older.max_connections),
            cpu: newer.cpu.or(older.cpu),
            memory: newer.memory.or(older.memory),
            in_flight: newer.in_flight.or(older.in_flight),
            unknown: newer.unknown,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{AgentAdmin, AgentState};

    #[test]
    fn what_is_not_spoken_of_stays_as_it_was() {
        let now = Instant::now();
        let mut last = LastWord::default();
        for line in ["drain 50% what", "down # disk full", "maxconn:7", "75%"] {
            last.observe(Ok(Word::from_line(line)), now);
        }
        let all = Word {
            state: Some(AgentState::Down),
            admin: Some(AgentAdmin::Drain),
            weight_percent: Some(75),
            max_connections: Some(7),
            reason: Some("disk full".into()),
            ..Word::default()
        };
        assert_eq!(*last.word(), all);
        last.observe(Ok(Word::from_line("up ready")), now);
        let risen = Word { state: Some(AgentState::Up), admin: Some(AgentAdmin::Ready), reason: None, ..all };
        assert_eq!(*last.word(), risen);
    }

    #[test]
    fn an_agent_that_gives_nothing_is_stale_and_changes_nothing() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut last = LastWord::default();
        assert!(last.is_stale(start, second));
        last.observe(Err(ProbeError::Refused), start);
        assert!(last.is_stale(start, second) && last.word().is_empty());

        last.observe(Ok(Word::from_line("up 30%")), start);
        assert!(!last.is_stale(start + second, second));
        last.observe(Err(ProbeError::Reset), start + second);
        assert!(last.is_stale(start + 2 * second, second));
        assert_eq!((last.word().weight_percent, last.heard()), (Some(30), Some(start)));
        assert_eq!(last.last_failure().map(|failure| &failure.error), Some(&ProbeError::Reset));
    }
}
