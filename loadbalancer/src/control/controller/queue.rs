//! What waits: which services queue, and which of their servers may get what has waited.

use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use loadbalancer_common::admission::accepts;
use loadbalancer_common::backend::NO_BACKEND;
use loadbalancer_common::service::mode;
use socket2::Socket;
use tokio::sync::oneshot;

use super::super::desire;
use super::super::queue::{self, QueueThread};
use super::super::responder;
use super::{Controller, now_ms};
use crate::config::Refuse;
use crate::dataplane::classes::Classes;
use crate::dataplane::reconcile::ReconcileError;
use crate::queue::engine::{Place, Plan};
use crate::queue::report::Report;

/// Until the thread is to have told how things are.
const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct QueueState {
    thread: Option<QueueThread>,
    classes: Classes,
    socket: Option<Socket>,
    /// What is not as it should be.
    error: Option<String>,
}

impl QueueState {
    /// By which frames go back to the packet path; none: there is no way now.
    pub(super) fn set_socket(&mut self, socket: Option<Socket>) {
        self.socket = socket;
        self.pass_socket();
    }

    /// There is no way now, and none to come.
    pub(super) fn close(&self) {
        if let Some(thread) = &self.thread {
            thread.close();
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

    pub(super) fn report(&self, reply: oneshot::Sender<Report>) {
        match &self.thread {
            // Whoever asked may have gone.
            Some(thread) => {
                let error = self.error.clone();
                thread.report(|report| drop(reply.send(Report { error, ..report })));
            }
            None => drop(reply.send(Report { taken_ms: now_ms(), error: self.error.clone(), ..Report::default() })),
        }
    }

    /// The report, now. Empty if the thread is busy with something else.
    pub(super) fn report_now(&self) -> Report {
        let Some(thread) = &self.thread else {
            return Report::default();
        };
        let (reply, answer) = mpsc::sync_channel(1);
        thread.report(move |report| drop(reply.send(report)));
        answer.recv_timeout(PATIENCE).unwrap_or_default()
    }
}

impl Controller {
    /// Brings the queue's thread to configuration and kernel: there is one if some service queues.
    pub(super) fn follow_queue(&mut self) {
        if self.config.services.iter().all(|service| service.queue.is_none()) {
            if let Some(thread) = &mut self.queue.thread {
                thread.follow(Vec::new(), 0, self.config.queue.controller_timeout);
            }
            self.queue.thread = None;
            return;
        }
        if self.queue.thread.as_ref().is_some_and(QueueThread::has_ended) {
            // What it had is sent again by those who wait.
            self.queue.thread = None;
        }
        if self.queue.thread.is_none() {
            match self.start_queue() {
                Ok(thread) => {
                    self.queue.thread = Some(thread);
                    self.queue.pass_socket();
                }
                Err(error) => return self.queue.note(Some(format!("nothing can wait: {error}"))),
            }
        }
        let plans = self.plans();
        let limits = self.config.queue;
        let settings: Vec<_> = plans.iter().map(|plan| (plan.service, Arc::clone(&plan.settings))).collect();
        let written = self.queue.classes.follow(&self.reconciler.kernel().maps, &settings);
        self.queue.note(written.err().map(|error| format!("not all clients have their class: {error}")));
        if let Some(thread) = &mut self.queue.thread {
            thread.follow(plans, limits.memory, limits.controller_timeout);
        }
    }

    /// Has the responder listen where connections come to it, as long as there is a namespace for that.
    pub(super) fn follow_responders(&mut self) {
        self.responders.follow(self.prober.prober(), responder::wanted(&self.config));
    }

    /// The backend that is the responder of a service.
    fn responder(&self, service: u64) -> u16 {
        let number = self.reconciler.numbers.backends.get(&(service, desire::responder_identity())).copied();
        number.filter(|_| self.prober.is_open()).unwrap_or(NO_BACKEND)
    }

    fn start_queue(&self) -> Result<QueueThread, String> {
        let kernel = self.reconciler.kernel();
        let buffer = kernel.queue_buffer().map_err(|error| error.to_string())?;
        let maps = kernel.maps_again().map_err(|error| error.to_string())?;
        QueueThread::start(buffer, maps).map_err(|error| format!("the queue's thread cannot start: {error}"))
    }

    /// Once a second: ends flows that do not answer, where clients have to show that they are at their address.
    pub(super) fn sweep_half_open(&mut self) -> Result<(), ReconcileError> {
        let maps = &self.reconciler.kernel().maps;
        let queues = self.config.services.iter().filter(|service| service.queue.is_some());
        let numbers = queues.flat_map(desire::identities);
        let numbers = numbers.filter_map(|identity| self.reconciler.numbers.services.get(&identity).copied());
        let challenged: Vec<u16> = numbers.filter(|number| queue::challenges(maps, *number)).collect();
        let backends: HashSet<u16> =
            challenged.iter().flat_map(|number| self.reconciler.backends_of(*number)).map(|(id, _)| id).collect();
        let is_nat = |number: &u16| self.reconciler.service(*number).is_some_and(|service| service.mode == mode::NAT);
        let has_nat = challenged.iter().any(is_nat);
        let ended = self.half_open.sweep(maps, &backends, has_nat)?;
        if ended > 0 {
            tracing::debug!(flows = ended, "flows that did not answer are ended, as there is a flood");
            challenged.into_iter().for_each(|number| self.reconciler.room(number));
        }
        Ok(())
    }

    fn plans(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let Some(settings) = &service.queue else { continue };
            for identity in desire::identities(service) {
                let Some(number) = self.reconciler.numbers.services.get(&identity) else { continue };
                let of_part = service.servers.iter().zip(ids).filter(|(_, id)| id.service == identity);
                let place = |(server, id): (&crate::config::Server, &desire::ServerId)| {
                    let backend = *self.reconciler.numbers.backends.get(&(id.service, id.backend))?;
                    let kernel = self.reconciler.backend(backend).filter(|kernel| accepts(kernel))?;
                    Some(Place { backend, weight: kernel.weight, mark: kernel.high_water, tier: server.tier })
                };
                plans.push(Plan {
                    service: *number,
                    name: service.name.clone(),
                    settings: Arc::clone(settings),
                    servers: of_part.filter_map(place).collect(),
                    responder: self.responder(identity),
                    tells: service.refuse == Refuse::Reset,
                });
            }
        }
        plans
    }
}
