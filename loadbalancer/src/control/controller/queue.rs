//! What waits: which services queue, and which of their servers may get what has waited.

use std::sync::Arc;

use loadbalancer_common::admission::accepts;
use loadbalancer_common::backend::NO_BACKEND;
use socket2::Socket;
use tokio::sync::oneshot;

use super::super::desire;
use super::super::queue::QueueThread;
use super::super::responder;
use super::{Controller, now_ms};
use crate::config::{Refuse, Service};
use crate::queue::engine::{Place, Plan};
use crate::queue::report::Report;

#[derive(Debug, Default)]
pub(super) struct QueueState {
    thread: Option<QueueThread>,
    socket: Option<Socket>,
    /// Why there is no thread, although there should be.
    error: Option<String>,
}

impl QueueState {
    /// By which frames go back to the packet path; none: there is no way now.
    pub(super) fn set_socket(&mut self, socket: Option<Socket>) {
        self.socket = socket;
        self.pass_socket();
    }

    fn pass_socket(&mut self) {
        let Some(thread) = &mut self.thread else { return };
        let copy = self.socket.as_ref().map(Socket::try_clone).transpose();
        match copy {
            Ok(socket) => thread.set_socket(socket),
            Err(error) => self.error = Some(format!("cannot send what has waited: {error}")),
        }
    }

    pub(super) fn report(&self, reply: oneshot::Sender<Report>) {
        match &self.thread {
            Some(thread) => thread.report(reply),
            None => drop(reply.send(Report { taken_ms: now_ms(), error: self.error.clone(), ..Report::default() })),
        }
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
        if self.queue.thread.is_none() {
            match self.start_queue() {
                Ok(thread) => {
                    self.queue.thread = Some(thread);
                    self.queue.error = None;
                    self.queue.pass_socket();
                }
                Err(error) => {
                    if self.queue.error.as_ref() != Some(&error) {
                        tracing::error!(%error, "nothing can wait");
                    }
                    self.queue.error = Some(error);
                    return;
                }
            }
        }
        let plans = self.plans();
        let limits = self.config.queue;
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

    fn plans(&self) -> Vec<Plan> {
        let mut plans = Vec::new();
        for (service, ids) in self.config.services.iter().zip(&self.ids) {
            let Some(settings) = &service.queue else { continue };
            let settings = Arc::new(settings.clone());
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
                    settings: Arc::clone(&settings),
                    servers: of_part.filter_map(place).collect(),
                    responder: self.responder(identity),
                    tells: tells(service),
                });
            }
        }
        plans
    }
}

/// Whether clients that are refused are told so.
fn tells(service: &Service) -> bool {
    service.refuse == Refuse::Reset
}
