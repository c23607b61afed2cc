//! Whether a server serves, and if not, why.
//!
//! | from \ to | `Serves` | `InPanic` | `Ejected`, `Down`, `SelfReport`, `Unweighted` |
//! |---|---|---|---|
//! | `Serves`, `InPanic` | nothing changes | nothing changes | leaves: new flows go to others |
//! | the others | returns: with slow start, unless it was only left out by hand | helps: with all of its weight at once | nothing changes |

use crate::quality::eject::{Cause, Ejection};
use crate::quality::explain::Reason;
use crate::quality::signal::{SelfReport, SelfReportState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Serves,
    /// It is ejected, but too few others are left.
    InPanic,
    Ejected(Cause),
    /// Its checks fail, or there is no way to it.
    Down,
    /// Its own report keeps it out.
    SelfReport,
    /// Its configured weight is zero.
    Unweighted,
}

/// What a new standing means to a server, see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    None,
    Leaves,
    Returns,
    Helps,
}

impl Standing {
    /// What comes first counts: what the configuration says, the server itself, its checks, the comparison with its peers.
    pub(super) fn of(weight: u32, report: &SelfReport, up: bool, ejection: Option<Ejection>, panic: bool) -> Self {
        match ejection {
            _ if weight == 0 => Self::Unweighted,
            _ if report.state != SelfReportState::Up || report.weight_percent == 0 => Self::SelfReport,
            _ if !up => Self::Down,
            Some(_) if panic => Self::InPanic,
            Some(ejection) => Self::Ejected(ejection.cause),
            None => Self::Serves,
        }
    }

    pub(super) fn serves(self) -> bool {
        match self {
            Self::Serves | Self::InPanic => true,
            Self::Ejected(_) | Self::Down | Self::SelfReport | Self::Unweighted => false,
        }
    }

    /// The table of transitions.
    pub(super) fn to(self, next: Self) -> Shift {
        use Standing::{Down, Ejected, InPanic, SelfReport, Serves, Unweighted};
        match (self, next) {
            (Serves | InPanic, Serves | InPanic) => Shift::None,
            (Serves | InPanic, Ejected(_) | Down | SelfReport | Unweighted) => Shift::Leaves,
            (Ejected(_) | Down | SelfReport | Unweighted, Serves) => Shift::Returns,
            (Ejected(_) | Down | SelfReport | Unweighted, InPanic) => Shift::Helps,
            (Ejected(_) | Down | SelfReport | Unweighted, Ejected(_) | Down | SelfReport | Unweighted) => Shift::None,
        }
    }

    /// Why its share changes with it.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Serves => Reason::SlowStart,
            Self::InPanic => Reason::Panic,
            Self::Ejected(cause) => Reason::Ejected(cause),
            Self::Down => Reason::Down,
            Self::SelfReport => Reason::SelfReport,
            Self::Unweighted => Reason::Configured,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EJECTION: Ejection = Ejection { until: Duration::from_secs(30), cause: Cause::Before };

    #[test]
    fn a_server_serves_if_nothing_keeps_it_out_and_the_first_reason_counts() {
        const DRAINS: SelfReport = report(SelfReportState::Drain, 100);
        // Weight, report, whether it is up and ejected; how it stands, and in a panic.
        for (weight, report, up, ejected, wanted, in_panic) in [
            (1, report(SelfReportState::Up, 100), true, false, Standing::Serves, Standing::Serves),
            (1, report(SelfReportState::Up, 1), true, true, Standing::Ejected(Cause::Before), Standing::InPanic),
            (1, report(SelfReportState::Up, 100), false, false, Standing::Down, Standing::Down),
            (1, report(SelfReportState::Up, 100), false, true, Standing::Down, Standing::Down),
            (1, report(SelfReportState::Up, 0), true, false, Standing::SelfReport, Standing::SelfReport),
            (1, report(SelfReportState::Down, 100), true, false, Standing::SelfReport, Standing::SelfReport),
            (1, report(SelfReportState::Maintenance, 100), false, true, Standing::SelfReport, Standing::SelfReport),
            (1, DRAINS, false, true, Standing::SelfReport, Standing::SelfReport),
            (0, DRAINS, false, true, Standing::Unweighted, Standing::Unweighted),
            (0, report(SelfReportState::Up, 100), true, false, Standing::Unweighted, Standing::Unweighted),
        ] {
            for (panic, wanted) in [(false, wanted), (true, in_panic)] {
                let standing = Standing::of(weight, &report, up, ejected.then_some(EJECTION), panic);
                assert_eq!(standing, wanted, "{weight}, {report:?}, up {up}, ejected {ejected}, panic {panic}");
            }
        }
    }

    const fn report(state: SelfReportState, weight_percent: u16) -> SelfReport {
        SelfReport { state, weight_percent, max_connections: None, load: None }
    }

    #[test]
    fn a_server_leaves_returns_or_helps_exactly_when_it_begins_or_ceases_to_serve() {
        let out = [Standing::Ejected(Cause::Before), Standing::Down, Standing::SelfReport, Standing::Unweighted];
        for from in out {
            out.iter().for_each(|to| assert_eq!(from.to(*to), Shift::None, "{from:?} to {to:?}"));
            assert_eq!((from.to(Standing::Serves), from.to(Standing::InPanic)), (Shift::Returns, Shift::Helps));
            for serving in [Standing::Serves, Standing::InPanic] {
                assert_eq!(serving.to(from), Shift::Leaves, "{serving:?} to {from:?}");
                assert_eq!((serving.to(Standing::Serves), serving.to(Standing::InPanic)), (Shift::None, Shift::None));
            }
        }
    }
}
