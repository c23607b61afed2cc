//! How long a probe may take.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::error::{Phase, ProbeError};

/// The time that a probe has for all of its phases together.
pub(super) struct TimeLimit {
    started: Instant,
    timeout: Duration,
}

impl TimeLimit {
    pub(super) fn start(timeout: Duration) -> Self {
        Self { started: Instant::now(), timeout }
    }

    /// Since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What some work comes to, unless the time ends first.
    pub(super) async fn within<T>(
        &self,
        phase: Phase,
        work: impl Future<Output = Result<T, ProbeError>>,
    ) -> Result<T, ProbeError> {
        match timeout(self.timeout.saturating_sub(self.elapsed()), work).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::TimedOut { after: self.timeout, phase }),
        }
    }
}
