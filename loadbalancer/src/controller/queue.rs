//! What waits: which services queue, and which of their servers may get what has waited.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use loadbalancer_common::admission::accepts;
use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::service::mode;
use model::ids::{ServerId, ServiceId};
use model::mode::Refuse;
use socket2::Socket;

use super::component::{Changed, Component, Shared};
use super::component::{SECOND, TICK};
use super::event::Event;
use super::plane::Plane;
use super::status::{QueueStatus, now_ms};
use crate::config::Service;
use crate::dataplane::classes::Classes;
use crate::dataplane::half_open::HalfOpen;
use crate::dataplane::ids::{BackendNumber, ServiceNumber};
use crate::dataplane::reconcile::ReconcileError;
use crate::slowpath::responder::{self, Responders};
use crate::slowpath::worker::{QueueThread, challenges};
use decide::plan::topology::responder_id;
use decide::queue::plan::{Candidate, Plan};
use decide::queue::report::QueueReport;

pub struct Queue {
    thread: Option<QueueThread>,
    classes: Classes,
    /// By which frames go back to the packet path; none: there is no way now.
    socket: Option<Socket>,
    /// What is not as it should be.
    error: Option<String>,
    responders: Responders,
    half_open: HalfOpen,
    due: Instant,
}

impl Queue {
    pub fn new(now: Instant) -> Self {
        Self {
            thread: None,
            classes: Classes::default(),
            socket: None,
            error: None,
            responders: Responders::default(),
            half_open: HalfOpen::default(),
            due: now,
        }
    }

    /// Has something done with the report, by the queue's thread if there is one: it never keeps the controller waiting.
    pub fn report(&self, then: impl FnOnce(QueueStatus) + Send + 'static) {
        let error = self.error.clone();
        let then = |report| then(QueueStatus { taken_ms: now_ms(), error, report });
        match &self.thread {
            Some(thread) => thread.report(then),
            None => then(QueueReport::default()),
        }
    }

    /// Notes what is wrong, and logs it once.
    fn note(&mut self, error: Option<String>) {
        if let Some(error) = &error
            && self.error.as_ref() != Some(error)
        {
            tracing::error!("{error}");
        }
        self.error = error;
    }

    fn pass_socket(&mut self) {
        let Some(thread) = &self.thread else { return };
        let copy = self.socket.as_ref().map(Socket::try_clone).transpose();
        match copy {
            Ok(socket) => thread.set_socket(socket),
            Err(error) => self.note(Some(format!("cannot send what has waited: {error}"))),
        }
    }

    /// Takes the way back to the packet path, or that there is none to come.
    fn take_socket(&mut self, socket: Option<&Socket>) {
        match socket.map(Socket::try_clone).transpose() {
            Ok(Some(socket)) => {
                self.socket = Some(socket);
                self.pass_socket();
            }
            Ok(None) => {
                if let Some(thread) = &self.thread {
                    thread.close();
                }
            }
            Err(error) => self.note(Some(format!("cannot send what has waited: {error}"))),
        }
    }

    /// Brings the queue's thread to configuration and kernel: there is one if some service queues. To be called after each
    /// change of what the kernel says.
    pub fn follow(&mut self, shared: &Shared) {
        let config = shared.registry.config();
        let limits = config.queue;
        if config.services.iter().all(|service| service.queue.is_none()) {
            if let Some(thread) = &mut self.thread {
                thread.follow(Vec::new(), 0, limits.controller_timeout);
            }
            self.thread = None;
            return;
        }
        if self.thread.as_ref().is_some_and(QueueThread::has_ended) {
            // What it had is sent again by those who wait.
            self.thread = None;
        }
        if self.thread.is_none() {
            match start(&shared.plane) {
                Ok(thread) => {
                    self.thread = Some(thread);
                    self.pass_socket();
                }
                Err(error) => return self.note(Some(format!("nothing can wait: {error}"))),
            }
        }
        let plans = plans(shared);
        let settings: Vec<_> =
            plans.iter().map(|plan| (ServiceNumber(plan.service), Arc::clone(&plan.settings))).collect();
        let written = self.classes.follow(shared.plane.maps(), &settings);
        self.note(written.err().map(|error| format!("not all clients have their class: {error}")));
        if let Some(thread) = &mut self.thread {
            thread.follow(plans, limits.memory, limits.controller_timeout);
        }
    }

    /// Ends flows that do not answer, where clients have to show that they are at their address.
    fn sweep_half_open(&mut self, shared: &Shared) -> Result<(), ReconcileError> {
        let plane = &shared.plane;
        let services = &shared.registry.config().services;
        let queues = services.iter().filter(|service| service.queue.is_some());
        let numbers = queues.flat_map(Service::ids).filter_map(|id| plane.service_number(id));
        let challenged: Vec<ServiceNumber> = numbers.filter(|number| challenges(plane.maps(), *number)).collect();
        let backends: HashSet<BackendNumber> =
            challenged.iter().flat_map(|number| plane.reconciler.backends_of(*number)).map(|(id, _)| id).collect();
        let is_nat =
            |number: &ServiceNumber| plane.reconciler.service(*number).is_some_and(|service| service.mode == mode::NAT);
        let has_nat = challenged.iter().any(is_nat);
        let ended = self.half_open.sweep(plane.maps(), &backends, has_nat)?;
        if ended > 0 {
            tracing::debug!(flows = ended, "flows that did not answer are ended, as there is a flood");
            challenged.into_iter().for_each(|number| plane.reconciler.room(number));
        }
        Ok(())
    }
}

impl Component for Queue {
    fn sync(&mut self, shared: &mut Shared) {
        if shared.prober.is_none() && self.socket.take().is_some() {
            self.pass_socket();
        }
        // The responder listens where connections come to it, as long as there is a namespace for that.
        self.responders.follow(shared.prober.as_ref(), responder::wanted(shared.registry.config()));
    }

    fn on(&mut self, event: &Event, shared: &mut Shared) -> Changed {
        if let Event::Prober(opened) = event {
            // It may be open, and the packet path not attached to it.
            let opened = opened.as_ref().ok().filter(|_| shared.prober.is_some());
            self.take_socket(opened.map(|(_, socket)| socket));
        }
        Changed::NOTHING
    }

    fn tick(&mut self, shared: &mut Shared) -> Changed {
        if shared.now >= self.due {
            // A tick that comes a little early is the right one.
            self.due = shared.now + SECOND - TICK / 2;
            if let Err(error) = self.sweep_half_open(shared) {
                tracing::error!(%error, "cannot end flows that do not answer");
            }
        }
        Changed::NOTHING
    }
}

fn start(plane: &Plane) -> Result<QueueThread, String> {
    let kernel = plane.reconciler.kernel();
    let buffer = kernel.queue_buffer().map_err(|error| error.to_string())?;
    let maps = kernel.maps_again().map_err(|error| error.to_string())?;
    QueueThread::start(buffer, maps).map_err(|error| format!("the queue's thread cannot start: {error}"))
}

fn plans(shared: &Shared) -> Vec<Plan> {
    let (registry, plane) = (&shared.registry, &shared.plane);
    let mut plans = Vec::new();
    for (service, servers) in registry.by_service() {
        let Some(settings) = &service.queue else { continue };
        let servers: Vec<_> = servers.collect();
        for id in service.ids() {
            let Some(number) = plane.service_number(id) else { continue };
            let place = |(server, id): &(&decide::plan::topology::Server, ServerId)| {
                let (backend, kernel) =
                    plane.number(*id).zip(plane.backend(*id)).filter(|(_, kernel)| accepts(kernel))?;
                Some(Candidate {
                    backend: backend.0,
                    weight: kernel.weight,
                    high_water: kernel.high_water,
                    tier: server.tier,
                })
            };
            plans.push(Plan {
                service: number.0,
                name: service.name.clone(),
                settings: Arc::clone(settings),
                servers: servers.iter().filter(|(_, server)| server.service == id).filter_map(place).collect(),
                responder: responder_of(id, shared),
                tells: service.refuse == Refuse::Reset,
            });
        }
    }
    plans
}

/// The backend that is the responder of a service.
fn responder_of(service: ServiceId, shared: &Shared) -> u16 {
    let id = ServerId { service, backend: responder_id() };
    shared.plane.number(id).filter(|_| shared.prober.is_some()).map_or(NO_BACKEND, |number| number.0)
}
