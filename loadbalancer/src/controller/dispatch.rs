//! Takes events, has the components do what each is for, and settles what has changed.

use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::channels::ChannelLoops;
use super::checks::Checks;
use super::chores::Chores;
use super::component::{Changed, Component, SECOND, Shared, TICK};
use super::counts::Counts;
use super::desired::{desired, has_orphans};
use super::event::Event;
use super::interfaces::Interfaces;
use super::leases::Leases;
use super::paths::Paths;
use super::plane::Plane;
use super::quality::Quality;
use super::queue::Queue;
use super::registry::Registry;
use super::routes::Routes;
use super::standby::{HookDone, StandbyPool};
use super::weights::Weights;
use crate::config::Config;
use crate::dataplane::error::KernelError;
use crate::dataplane::reconcile::Reconciler;
use crate::dataplane::signals;
use crate::health::ProbeReport;
use crate::network::resolver::Targets;
use model::route::Resolved;

pub struct Controller {
    pub(super) shared: Shared,
    pub(super) routes: Routes,
    pub(super) paths: Paths,
    pub(super) checks: Checks,
    pub(super) queue: Queue,
    pub(super) interfaces: Interfaces,
    pub(super) weights: Weights,
    pub(super) leases: Leases,
    pub(super) counts: Counts,
    pub(super) signals: signals::Tracker,
    pub(super) started: Instant,
    /// When the kernel's maps are next looked after.
    pub(super) due: Instant,
    pub(super) reload_error: Option<String>,
}

/// Where what others find out comes from.
pub struct Sources {
    pub reports: mpsc::Sender<ProbeReport>,
    pub hooks: mpsc::Sender<HookDone>,
    pub targets: watch::Sender<Targets>,
    pub chores: Chores,
}

impl Controller {
    pub fn new(config: Config, path: PathBuf, reconciler: Reconciler, seed: u64, sources: Sources) -> Self {
        let now = Instant::now();
        let mut controller = Self {
            routes: Routes::new(sources.targets),
            paths: Paths { loops: ChannelLoops::default() },
            checks: Checks::new(sources.reports, &config, now),
            queue: Queue::new(now),
            interfaces: Interfaces::default(),
            weights: Weights::new(Quality::new(now)),
            leases: Leases::new(StandbyPool::new(sources.hooks, now)),
            counts: Counts::new(now),
            signals: signals::Tracker::default(),
            started: now,
            due: now,
            reload_error: None,
            shared: Shared {
                registry: Registry::new(path, config),
                plane: Plane::new(reconciler, seed, now),
                resolved: Resolved::default(),
                levels: Default::default(),
                prober: None,
                chores: sources.chores,
                now,
            },
        };
        controller.leases.pool.follow(controller.shared.registry.file(), now);
        controller.leases.adopt(&controller.shared.registry, &controller.shared.plane, now);
        controller.follow_members();
        controller
    }

    pub fn config(&self) -> &Config {
        self.shared.registry.config()
    }

    /// Attaches to all interfaces.
    ///
    /// # Errors
    /// One does not take the packet path.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        self.interfaces.follow(&mut self.shared)
    }

    /// Whether that is the interface that probes through VIPs come in by.
    pub fn probes_from(&self, interface: &str) -> bool {
        self.shared.prober.as_ref().is_some_and(|prober| prober.interface() == interface)
    }

    /// Why checks through VIPs are not made, although there are some.
    pub fn prober_error(&self) -> Option<&String> {
        self.checks.through_vips().error()
    }

    /// All components, in the order in which they are told of events.
    fn components(&mut self) -> (&mut Shared, [&mut dyn Component; 8]) {
        let components: [&mut dyn Component; 8] = [
            &mut self.routes,
            &mut self.paths,
            &mut self.checks,
            &mut self.queue,
            &mut self.interfaces,
            &mut self.weights,
            &mut self.leases,
            &mut self.counts,
        ];
        (&mut self.shared, components)
    }

    /// Takes an event, and does all that follows from it.
    pub fn on(&mut self, event: Event) {
        let changed = self.tell(&event);
        self.settle(changed);
    }

    /// Tells all components of an event. What has changed is to be settled then, with what other events have changed.
    pub fn tell(&mut self, event: &Event) -> Changed {
        self.shared.now = Instant::now();
        // A probe that was removed or replaced while its report waited says nothing any more.
        if matches!(event, Event::Report(report) if !self.checks.is_current(report)) {
            return Changed::NOTHING;
        }
        let (shared, components) = self.components();
        let mut changed = Changed::NOTHING;
        for component in components {
            changed |= component.on(event, shared);
        }
        changed
    }

    /// Takes the time, every [`TICK`].
    pub fn tick(&mut self) {
        self.shared.now = Instant::now();
        let plane = &self.shared.plane;
        let seen = self.signals.read(plane.maps(), plane.reconciler.sources());
        let mut changed = self.tell(&Event::Seen(seen));
        let (shared, components) = self.components();
        for component in components {
            changed |= component.tick(shared);
        }
        changed |= self.look_after_maps();
        // Weights have made their step.
        self.settle_with(changed, false);
    }

    /// Once a second: what others have changed in the kernel's maps, and what could not be written or has to go.
    fn look_after_maps(&mut self) -> Changed {
        let shared = &mut self.shared;
        if shared.now < self.due {
            return Changed::NOTHING;
        }
        self.due = shared.now + SECOND - TICK / 2;
        let differs = shared.plane.compare(shared.now).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot compare the kernel's maps with what they should say");
            false
        });
        let is_behind = has_orphans(&shared.registry, &shared.plane) || shared.plane.error.is_some();
        if is_behind {
            self.routes.follow(&self.shared);
        }
        Changed::plan(differs || is_behind)
    }

    /// Does what follows from changes.
    pub fn settle(&mut self, changed: Changed) {
        self.settle_with(changed, true);
    }

    fn settle_with(&mut self, changed: Changed, step: bool) {
        if changed.members {
            self.follow_members();
        } else if changed.paths {
            self.checks.follow(&self.shared);
            self.queue.sync(&mut self.shared);
        }
        if changed.plan {
            self.apply(step || changed.members);
        }
    }

    /// Brings all components to the servers that there are now.
    fn follow_members(&mut self) {
        let config = self.leases.pool.effective(self.shared.registry.file());
        let pool = &self.leases.pool;
        let leased = |service: &str, server: &str| pool.phase(service, server).is_some();
        self.shared.registry.follow(config, &self.shared.plane, leased);
        let (shared, components) = self.components();
        for component in components {
            component.sync(shared);
        }
    }

    /// Makes the kernel say what is wanted now.
    fn apply(&mut self, step: bool) {
        let shared = &mut self.shared;
        if step {
            self.weights.step(shared);
        }
        let prober = (shared.prober.as_ref().map(|prober| prober.index()), self.checks.desired());
        let desired = desired(&shared.registry, &shared.plane, &shared.resolved, &self.weights.sampling, prober);
        shared.plane.apply(&desired);
        if shared.plane.error.is_none() {
            // Not before the packet path knows where they go.
            self.checks.start();
        }
        self.queue.follow(shared);
    }
}
