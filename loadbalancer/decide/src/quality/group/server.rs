//! One server of a group: what is known of it, and what its weight is made of.

use std::time::Duration;

use super::entry::{Adopted, Nominal};
use super::standing::Standing;
use crate::quality::eject::{self, Cause};
use crate::quality::explain::{Change, EjectionReport, Reason, ServerReport, SignalReport};
use crate::quality::law::{self, Seen};
use crate::quality::marks::Mark;
use crate::quality::measure::{Measures, Relative};
use crate::quality::signal::{SelfReport, SelfReportState};
use crate::quality::{Settings, start};
use model::ids::ServerId;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) nominal: Nominal,
    pub(super) up: bool,
    pub(super) self_report: SelfReport,
    pub(super) active: u32,
    /// There if marks follow latency, from the next step on.
    pub(super) mark: Option<Mark>,
    pub(super) measures: Measures,
    pub(super) record: eject::Record,
    pub(super) factor: f64,
    /// Its check last failed with an error, as of a server that is not there. One that times out may be slow, which is not
    /// to be forgotten.
    pub(super) refuses: bool,
    /// Its factor over the mean of its peers' before it began to fail.
    pub(super) sound: f64,
    pub(super) correcting: bool,
    pub(super) lasting: f64,
    pub(super) relative: Option<Relative>,
    pub(super) standing: Standing,
    /// It was not only left out by hand, so it comes back with slow start.
    pub(super) cold: bool,
    pub(super) stale: bool,
    /// When slow start began.
    pub(super) since: Option<Duration>,
    /// Share of the ring that was last published.
    pub(super) published: f64,
    /// What moved its weight since then.
    pub(super) reason: Reason,
    pub(super) last_change: Option<Change>,
}

impl Server {
    pub(super) fn new(nominal: Nominal, adopted: Adopted, settings: &Settings, now: Duration) -> Self {
        let mut record = eject::Record::default();
        if adopted.ejected {
            record.eject(Cause::Before, now, &settings.eject);
        }
        let law = &settings.law;
        Self {
            nominal,
            up: true,
            self_report: SelfReport::default(),
            active: 0,
            mark: None,
            measures: Measures::default(),
            record,
            factor: adopted.factor.clamp(law.floor, law.ceiling),
            refuses: false,
            sound: adopted.factor.clamp(law.floor, law.ceiling),
            correcting: false,
            lasting: 0.0,
            relative: None,
            standing: Standing::Serves,
            cold: false,
            stale: true,
            since: adopted.starting.then_some(now),
            published: 0.0,
            reason: Reason::Configured,
            last_change: None,
        }
    }

    /// As of the last step.
    pub(super) fn serves(&self) -> bool {
        self.standing.serves()
    }

    /// How it stands now.
    pub(super) fn stands(&self, panic: bool) -> Standing {
        Standing::of(self.nominal.weight, &self.self_report, self.up, self.record.ejection(), panic)
    }

    /// Share of its weight that slow start gives it.
    pub(super) fn ramp(&self, settings: &start::Settings, now: Duration) -> f64 {
        start::share(settings, self.since, now)
    }

    /// Weight with all that acts on it, in units of configured weight.
    pub(super) fn effective(&self, settings: &start::Settings, now: Duration) -> f64 {
        if self.serves() { self.usual() * self.factor * self.ramp(settings, now) } else { 0.0 }
    }

    /// Not taken out by hand.
    pub(super) fn is_member(&self) -> bool {
        self.nominal.weight > 0
            && !matches!(self.self_report.state, SelfReportState::Drain | SelfReportState::Maintenance)
    }

    /// It could serve, ejected or not.
    pub(super) fn is_able(&self) -> bool {
        self.is_member()
            && self.up
            && self.self_report.state == SelfReportState::Up
            && self.self_report.weight_percent > 0
    }

    /// Configured weight as the server's own word has it.
    pub(super) fn usual(&self) -> f64 {
        f64::from(self.nominal.weight) * f64::from(self.self_report.weight_percent) / 100.0
    }

    pub(super) fn seen(&self, settings: &Settings) -> Option<Seen> {
        let Relative { slowness, noise, .. } = self.relative.filter(|_| !self.stale)?;
        Some(Seen { slowness, noise, failures: self.measures.failure(&settings.measure) })
    }

    /// Why its weight is what it is; `total` is the sum of those of all.
    pub(super) fn explain(&self, key: ServerId, settings: &Settings, total: f64, now: Duration) -> ServerReport {
        let seen = self.seen(settings);
        let signals = self.measures.windows().map(|(kind, window)| SignalReport::new(kind, window));
        ServerReport {
            server: key,
            nominal_weight: self.nominal.weight,
            share: if total > 0.0 { self.effective(&settings.start, now) / total } else { 0.0 },
            published_share: self.published,
            factor: self.factor,
            slow_start: self.ramp(&settings.start, now),
            serving: self.serves(),
            up: self.up,
            stale: self.stale,
            active: self.active,
            slowness: self.relative.map(|relative| relative.slowness),
            noise: self.relative.map(|relative| relative.noise),
            signal: self.relative.map(|relative| relative.kind),
            badness: seen.map(|seen| law::badness(&settings.law, &seen)),
            correcting: self.correcting,
            signals: signals.collect(),
            self_report: self.self_report,
            mark: settings.marks.as_ref().zip(self.mark.as_ref()).map(|(it, mark)| mark.explain(it)),
            ejection: self.record.ejection().map(|ejection| EjectionReport {
                cause: ejection.cause,
                ends_in_s: ejection.until.saturating_sub(now).as_secs_f64(),
                count: self.record.count(),
            }),
            last_change: self.last_change,
        }
    }
}

/// Sums over the servers that serve.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) nominal: f64,
    /// Nominal weights times factors.
    pub(super) weight: f64,
}

impl Total {
    /// Mean factor of the others; None if there are none.
    pub(super) fn mean_without(&self, server: &Server) -> Option<f64> {
        let own = if server.serves() { f64::from(server.nominal.weight) } else { 0.0 };
        let nominal = self.nominal - own;
        (nominal > 0.5).then(|| (self.weight - own * server.factor) / nominal)
    }
}
