//! What the agent of one server has reported until now.
//!
//! As with HAProxy's agent checks, what an agent does not speak of stays as it said before, and an agent that cannot be
//! asked changes nothing: that is neither good nor bad, but its report grows stale.

use std::time::{Duration, Instant};

use super::agent_report::AgentReport;
use super::error::ProbeError;
use super::state::Failure;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentStatus {
    /// All that was said, the newest of each kind.
    report: AgentReport,
    reported_at: Option<Instant>,
    last_failure: Option<Failure>,
}

impl AgentStatus {
    /// Takes what one question to the agent brought, in order; `at` is when it was known.
    pub fn observe(&mut self, result: Result<AgentReport, ProbeError>, at: Instant) {
        match result {
            Ok(report) => {
                self.reported_at = Some(at);
                self.merge(report);
            }
            Err(error) => self.last_failure = Some(Failure { error, at }),
        }
    }

    /// All that was said, the newest of each kind. Empty before the first report.
    pub fn report(&self) -> &AgentReport {
        &self.report
    }

    /// When the agent last reported.
    pub fn reported_at(&self) -> Option<Instant> {
        self.reported_at
    }

    /// Whether nothing was reported for longer than a time.
    pub fn is_stale(&self, now: Instant, after: Duration) -> bool {
        self.reported_at.is_none_or(|at| now.saturating_duration_since(at) > after)
    }

    /// Why the agent could not be asked, the last time that it could not.
    pub fn last_failure(&self) -> Option<&Failure> {
        self.last_failure.as_ref()
    }

    fn merge(&mut self, newer: AgentReport) {
        let older = std::mem::take(&mut self.report);
        self.report = AgentReport {
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
        let mut status = AgentStatus::default();
        for line in ["drain 50% what", "down # disk full", "maxconn:7", "75%"] {
            status.observe(Ok(AgentReport::from_line(line)), now);
        }
        let all = AgentReport {
            state: Some(AgentState::Down),
            admin: Some(AgentAdmin::Drain),
            weight_percent: Some(75),
            max_connections: Some(7),
            reason: Some("disk full".into()),
            ..AgentReport::default()
        };
        assert_eq!(*status.report(), all);
        status.observe(Ok(AgentReport::from_line("up ready")), now);
        let risen = AgentReport { state: Some(AgentState::Up), admin: Some(AgentAdmin::Ready), reason: None, ..all };
        assert_eq!(*status.report(), risen);
    }

    #[test]
    fn an_agent_that_gives_nothing_is_stale_and_changes_nothing() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut status = AgentStatus::default();
        assert!(status.is_stale(start, second));
        status.observe(Err(ProbeError::Refused), start);
        assert!(status.is_stale(start, second) && status.report().is_empty());

        status.observe(Ok(AgentReport::from_line("up 30%")), start);
        assert!(!status.is_stale(start + second, second));
        status.observe(Err(ProbeError::Reset), start + second);
        assert!(status.is_stale(start + 2 * second, second));
        assert_eq!((status.report().weight_percent, status.reported_at()), (Some(30), Some(start)));
        assert_eq!(status.last_failure().map(|failure| &failure.error), Some(&ProbeError::Reset));
    }
}
