//! One channel: what is known of it, and whether it is dead, held or stale.

use std::collections::VecDeque;
use std::time::Duration;

use super::explain::{ChannelReport, Death, Moment, Reason, SlotChange, State};
use super::loss::LossWindow;
use super::rtt::Rtt;
use super::settings::Settings;
use crate::quality::signal::ChannelKey;

/// Seconds of history that are kept.
const HISTORY: usize = 60;

pub(super) struct Channel {
    pub(super) capacity: u32,
    pub(super) link_up: bool,
    pub(super) dead: Option<(Death, Duration)>,
    /// Deaths that are not forgotten, and since when it is calm.
    deaths: u32,
    calm_since: Duration,
    pub(super) missed: u32,
    pub(super) good: u32,
    pub(super) probed: Option<Rtt>,
    pub(super) passed: Option<Rtt>,
    losses: LossWindow,
    /// Of probes alone, without those missed on end.
    pub(super) probes: LossWindow,
    /// Share that all servers behind it surely lose.
    pub(super) shared: f64,
    pub(super) heard: Option<Duration>,
    /// When it last lost slots while it was alive.
    gave: Option<Duration>,
    /// Times that it got slots and lost them again, as far as they are not forgotten, and since when it is calm.
    swings: u32,
    swing_calm_since: Duration,
    risen: bool,
    pub(super) last_change: Option<SlotChange>,
    history: VecDeque<Moment>,
}

impl Channel {
    pub(super) fn new(capacity: u32, now: Duration) -> Self {
        Self {
            capacity,
            link_up: true,
            dead: None,
            deaths: 0,
            calm_since: now,
            missed: 0,
            good: 0,
            probed: None,
            passed: None,
            losses: LossWindow::default(),
            probes: LossWindow::default(),
            shared: 0.0,
            heard: None,
            gave: None,
            swings: 0,
            swing_calm_since: now,
            risen: true,
            last_change: None,
            history: VecDeque::new(),
        }
    }

    /// Probes of all channels are alike, so they are preferred to the handshakes of whatever passes.
    pub(super) fn estimate(&self) -> Option<Rtt> {
        self.probed.or(self.passed)
    }

    pub(super) fn count(&mut self, attempts: u32, losses: u32, now: Duration, settings: &Settings) {
        self.losses.add(attempts, losses, now, settings.probe_every, settings.loss_window);
    }

    fn sure_loss(&self, settings: &Settings) -> f64 {
        let own = self.losses.sure_rate(settings.sure, settings.least_intervals);
        if self.shared > own { own.max(self.shared.min(self.losses.most())) } else { own }
    }

    /// In seconds; None: nothing is known.
    pub(super) fn score(&self, settings: &Settings) -> Option<f64> {
        let rtt = self.estimate()?;
        let lost = self.sure_loss(settings) * settings.loss_penalty.as_secs_f64();
        let score = rtt.smoothed + settings.deviations * rtt.variation + lost;
        Some(score.max(settings.score_floor.as_secs_f64()))
    }

    /// Good probes that a dead one needs. Where all are dead, any that works is welcome.
    fn needed(&self, settings: &Settings, alone: bool) -> u32 {
        let needed = settings.back_after.saturating_mul(self.deaths).min(settings.back_most);
        if alone { needed.min(settings.dead_after) } else { needed }
    }

    pub(super) fn is_back(&self, settings: &Settings, alone: bool) -> bool {
        self.dead.is_some() && self.link_up && self.good >= self.needed(settings, alone)
    }

    pub(super) fn die(&mut self, cause: Death, now: Duration) {
        self.dead = Some((cause, now));
        self.deaths = self.deaths.saturating_add(1);
        (self.probed, self.passed, self.good) = (None, None, 0);
        self.probes = LossWindow::default();
    }

    pub(super) fn revive(&mut self, now: Duration) {
        self.dead = None;
        self.calm_since = now;
        (self.losses, self.shared) = (LossWindow::default(), 0.0);
    }

    pub(super) fn note_swing(&mut self, fell: bool, now: Duration) {
        if fell {
            self.gave = Some(now);
            self.swings += u32::from(self.risen);
            self.swing_calm_since = now;
        }
        self.risen = !fell;
    }

    pub(super) fn note_moment(&mut self, settings: &Settings, slots: usize, now: Duration) {
        if self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        let moment = Moment {
            at: now,
            srtt: self.estimate().map(|rtt| Duration::from_secs_f64(rtt.smoothed)),
            loss: self.losses.rate(),
            score: self.score(settings).map(Duration::from_secs_f64),
            dead: self.dead.is_some(),
            slots,
        };
        self.history.push_back(moment);
    }

    /// It lost slots a short while ago and may not get any.
    pub(super) fn is_held(&self, settings: &Settings, now: Duration) -> bool {
        let doublings = self.swings.saturating_sub(1).min(16);
        let hold = settings.hold.saturating_mul(1 << doublings).min(settings.hold_most);
        self.gave.is_some_and(|at| now.saturating_sub(at) < hold)
    }

    pub(super) fn forget(&mut self, settings: &Settings, now: Duration) {
        if self.swings > 0 && now.saturating_sub(self.swing_calm_since) >= settings.forget_after {
            self.swings -= 1;
            self.swing_calm_since = now;
        }
        let calm = self.dead.is_none() && now.saturating_sub(self.calm_since) >= settings.forget_after;
        if calm && self.deaths > 0 {
            self.deaths -= 1;
            self.calm_since = now;
        }
    }

    pub(super) fn is_stale(&self, settings: &Settings, now: Duration) -> bool {
        let silent = self.heard.is_some_and(|at| now.saturating_sub(at) > settings.stale_after);
        self.dead.is_none() && silent
    }

    /// Why a comparison gave it more or fewer slots.
    pub(super) fn compared(&self, settings: &Settings, fell: bool) -> Reason {
        let loss = self.sure_loss(settings);
        let score = self.score(settings).unwrap_or_default();
        match fell {
            true if loss * settings.loss_penalty.as_secs_f64() > score / 2.0 => Reason::Loses { loss },
            true => Reason::Worse { score: Duration::from_secs_f64(score) },
            false => Reason::Better { score: Duration::from_secs_f64(score) },
        }
    }

    pub(super) fn explain(
        &self,
        key: ChannelKey,
        settings: &Settings,
        share: f64,
        slots: usize,
        now: Duration,
    ) -> ChannelReport {
        let state = match self.dead {
            Some((cause, since)) => State::Dead { cause, since, good_probes: self.good },
            None if self.estimate().is_none() => State::Unknown,
            None if self.is_stale(settings, now) => State::Stale,
            None => State::Good,
        };
        let seconds = |part: fn(&Rtt) -> f64| self.estimate().map(|rtt| Duration::from_secs_f64(part(&rtt)));
        ChannelReport {
            channel: key,
            capacity: self.capacity,
            state,
            link_up: self.link_up,
            srtt: seconds(|rtt| rtt.smoothed),
            rttvar: seconds(|rtt| rtt.variation),
            loss: self.losses.rate(),
            sure_loss: self.sure_loss(settings),
            score: self.score(settings).map(Duration::from_secs_f64),
            share,
            slots,
            deaths: self.deaths,
            last_change: self.last_change,
            history: self.history.iter().copied().collect(),
        }
    }
}
