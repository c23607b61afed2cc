//! The thread that has the queue: between the packet path's ring buffer, the queue itself, and the way back.
//!
//! A thread of its own, as a free server's work is to be on its way within some hundred microseconds, whatever else the
//! controller does.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use loadbalancer_common::outcome::Outcome;
use loadbalancer_common::queue::{Held, kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::Socket;

use crate::dataplane::clock::monotonic as now;
use crate::dataplane::ids::{BackendNumber, ServiceNumber};
use crate::dataplane::maps::Maps;
use crate::dataplane::queue_buffer::QueueBuffer;
use crate::network::packet_socket::{BATCH, send_batch};
use decide::queue::engine::Engine;
use decide::queue::frame::Out;
use decide::queue::plan::{Plan, Room};
use decide::queue::report::QueueReport;

/// Records that are read before what they led to is sent.
const RECORDS: usize = 1024;
/// Before all ordinary threads.
const NICE: libc::c_int = -20;
/// While something waits, room is looked for so often even if nothing tells of it: a mark may have been raised.
const LOOK: Duration = Duration::from_millis(20);
/// How often the leases of services are renewed, as a part of them.
const RENEWALS: u32 = 10;

/// What a report is for.
type Reply = Box<dyn FnOnce(QueueReport) + Send>;

/// What the thread is to go by.
enum Command {
    Follow { plans: Vec<Plan>, memory: u64, lease: Duration },
    Socket(Option<Socket>),
    Close,
    Report(Reply),
    Stop,
}

/// The controller's side.
#[derive(Debug)]
pub struct QueueThread {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// As it was told last.
    told: Option<(Vec<Plan>, u64, Duration)>,
}

impl QueueThread {
    /// # Errors
    /// The kernel gives no event descriptor, or no thread.
    pub fn start(buffer: QueueBuffer, maps: Maps) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (commands, received) = mpsc::channel();
        let worker = Worker {
            buffer,
            maps,
            wake: Arc::clone(&wake),
            commands: received,
            engine: Engine::new(0),
            socket: None,
            is_open: true,
            lease: Duration::ZERO,
            renewed: Duration::ZERO,
            leased: BTreeMap::new(),
        };
        let thread = thread::Builder::new().name("queue".to_owned()).spawn(move || worker.run())?;
        Ok(Self { commands, wake, thread: Some(thread), told: None })
    }

    fn send(&self, command: Command) {
        // That the thread has ended is seen with the next change, see `has_ended`.
        if self.commands.send(command).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            tracing::debug!(%error, "the queue's thread is awake already");
        }
    }

    /// Tells which services queue, and by what they go. `lease`: how long the packet path goes on without a sign of life.
    pub fn follow(&mut self, plans: Vec<Plan>, memory: u64, lease: Duration) {
        let now = (plans, memory, lease);
        let is_news = self.told.as_ref() != Some(&now);
        let (plans, memory, lease) = now.clone();
        // Also if it is the same, so that what is compared by address next time is the newest.
        self.told = Some(now);
        if is_news {
            self.send(Command::Follow { plans, memory, lease });
        }
    }

    /// The socket by which frames go back; without one all wait for it.
    pub fn set_socket(&self, socket: Option<Socket>) {
        self.send(Command::Socket(socket));
    }

    /// There will be no socket before the next one is set: nothing may wait.
    pub fn close(&self) {
        self.send(Command::Close);
    }

    /// Whether the thread is no more, which only a panic can be the reason of.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Does something with a report, in the thread: it should not take long.
    pub fn report(&self, reply: impl FnOnce(QueueReport) + Send + 'static) {
        self.send(Command::Report(Box::new(reply)));
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the queue's thread has ended with a panic");
        }
    }
}

/// Whether clients of a service have to show that they are at their address.
pub fn challenges(maps: &Maps, service: ServiceNumber) -> bool {
    maps.service_state.challenge(service).load(Ordering::SeqCst) != 0
}

struct Worker {
    buffer: QueueBuffer,
    maps: Maps,
    wake: Arc<EventFd>,
    commands: mpsc::Receiver<Command>,
    engine: Engine,
    socket: Option<Socket>,
    /// Flows may wait: there is a socket, or one is to come. At a start what an earlier controller has promised holds.
    is_open: bool,
    lease: Duration,
    renewed: Duration,
    /// Services, and whether something waited there when they were last told.
    leased: BTreeMap<u16, (bool, bool)>,
}

impl Worker {
    fn run(mut self) {
        // A free place is to be used at once, whatever else the machine does; there is little to do for each.
        // SAFETY: a system call without pointers, on this thread.
        #[expect(unsafe_code, reason = "no library wraps setpriority(2)")]
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
            tracing::debug!("the queue's thread has no priority: {}", io::Error::last_os_error());
        }
        let mut out = Vec::new();
        loop {
            self.wait();
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                        // Services that queue no more are told so; for the others it is the last sign of life.
                        self.renew(now());
                        return;
                    }
                    Ok(command) => self.obey(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            let more = self.read(&mut out);
            let now = now();
            self.engine.step(now, &ActiveFlows(&self.maps), &mut out);
            self.send(&mut out);
            if self.renew(now) {
                // Who got room before the packet path knew that somebody waits did not tell.
                self.engine.step(now, &ActiveFlows(&self.maps), &mut out);
                self.send(&mut out);
            }
            if more {
                // The rest of the buffer, without asking the kernel whether there is any.
                if let Err(error) = self.wake.write(1) {
                    tracing::debug!(%error, "the queue's thread is awake already");
                }
            }
        }
    }

    /// Until there is something to do.
    fn wait(&mut self) {
        let now = now();
        let mut timeout = (self.lease / RENEWALS).min(Duration::from_secs(1)).max(Duration::from_millis(10));
        if !self.engine.is_empty() {
            timeout = timeout.min(LOOK);
            if let Some(deadline) = self.engine.next_deadline() {
                timeout = timeout.min(deadline.saturating_sub(now) + Duration::from_millis(1));
            }
        }
        let mut descriptors =
            [PollFd::new(self.buffer.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::from(timeout.as_millis().clamp(1, 1_000) as u16);
        if let Err(error) = poll(&mut descriptors, timeout)
            && error != nix::errno::Errno::EINTR
        {
            tracing::error!(%error, "the queue cannot wait for the packet path");
            thread::sleep(LOOK);
        }
        // Zero if nobody wrote.
        if let Err(error) = self.wake.read()
            && error != nix::errno::Errno::EAGAIN
        {
            tracing::error!(%error, "the queue's event descriptor fails");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Follow { plans, memory, lease } => {
                self.engine.set_memory_limit(memory);
                self.engine.follow(plans);
                self.lease = lease;
                self.renewed = Duration::ZERO;
            }
            Command::Socket(socket) => {
                self.is_open |= socket.is_some();
                self.socket = socket;
                self.renewed = Duration::ZERO;
            }
            Command::Close => {
                self.is_open = false;
                self.renewed = Duration::ZERO;
            }
            Command::Report(reply) => {
                reply(QueueReport {
                    memory: self.engine.memory(),
                    memory_limit: self.engine.memory_limit(),
                    services: self.engine.report(now()),
                });
            }
            Command::Stop => {}
        }
    }

    /// Takes what the packet path has handed over. True: there may be more.
    fn read(&mut self, out: &mut Vec<Out>) -> bool {
        let now = now();
        for _ in 0..RECORDS {
            let Some(record) = self.buffer.read() else {
                return false;
            };
            if record.first() == Some(&kind::ROOM) {
                // The engine looks for itself who has it.
                continue;
            }
            let Some((header, frame)) = record.split_at_checked(size_of::<Held>()) else {
                tracing::error!("the packet path hands over a record of {} bytes", record.len());
                continue;
            };
            let held: Held = bytemuck::pod_read_unaligned(header);
            let length = usize::from(held.length).min(frame.len());
            self.engine.take(&held, &frame[..length], now, out);
        }
        true
    }

    /// Tells the engine how many were challenged, from which it concludes whether a flood goes on.
    fn count_challenges(&mut self, now: Duration) {
        let challenged: Vec<u16> =
            self.leased.iter().filter(|(_, (_, asks))| *asks).map(|(service, _)| *service).collect();
        for service in challenged {
            match self.maps.outcomes.get_per_cpu(&u32::from(service)) {
                Ok(counters) => {
                    let sum = counters.iter().map(|it| it.0[Outcome::Challenged as usize]).sum();
                    self.engine.challenged(service, sum, now);
                }
                Err(error) => tracing::debug!(%error, "it is not known how many were challenged"),
            }
        }
    }

    /// Gives frames back to the packet path.
    fn send(&mut self, out: &mut Vec<Out>) {
        let mut sent = 0;
        if let Some(socket) = &self.socket {
            for some in out.chunks(BATCH) {
                let of_these = send_with_tickets(socket, some).unwrap_or(0);
                sent += of_these;
                if of_these < some.len() {
                    break;
                }
            }
        }
        // There is no way now, or the kernel has no room for more; the rest waits again, and is looked at soon.
        for rest in out.drain(..).skip(sent) {
            self.engine.take_back(rest, &ActiveFlows(&self.maps));
        }
    }

    /// Tells the packet path which services queue, and where something waits. True: somewhere something waits that did not.
    fn renew(&mut self, now: Duration) -> bool {
        let mut begins = false;
        let due = now.saturating_sub(self.renewed) >= self.lease / RENEWALS;
        let until = if self.is_open { (now + self.lease).as_nanos() as u64 } else { 0 };
        let mut gone = std::mem::take(&mut self.leased);
        for (service, waits, challenges) in self.engine.states() {
            let before = gone.remove(&service);
            self.leased.insert(service, (waits, challenges));
            begins |= waits && before.is_none_or(|(waited, _)| !waited);
            if due || before != Some((waits, challenges)) {
                let (state, service) = (&self.maps.service_state, ServiceNumber(service));
                state.queue_until(service).store(until, Ordering::SeqCst);
                // Who has to show where it is must not get a server unseen, even if there is room.
                state.waiting_until(service).store(if waits || challenges { until } else { 0 }, Ordering::SeqCst);
                state.challenge(service).store(u64::from(challenges), Ordering::SeqCst);
            }
        }
        for service in gone.into_keys() {
            let (state, service) = (&self.maps.service_state, ServiceNumber(service));
            state.queue_until(service).store(0, Ordering::SeqCst);
            state.waiting_until(service).store(0, Ordering::SeqCst);
            state.challenge(service).store(0, Ordering::SeqCst);
        }
        if due {
            self.renewed = now;
            self.count_challenges(now);
        }
        begins
    }
}

/// Active flows, in the packet path's own counters.
struct ActiveFlows<'a>(&'a Maps);

impl Room for ActiveFlows<'_> {
    fn active(&self, backend: u16) -> u32 {
        self.0.active_flows(BackendNumber(backend))
    }

    fn take(&self, backend: u16, high_water: u32) -> bool {
        let word = self.0.active_counter(BackendNumber(backend));
        let before = word.fetch_add(1, Ordering::SeqCst) as i64;
        if before.max(0) >= i64::from(high_water) {
            word.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        true
    }

    fn give_back(&self, backend: u16) {
        self.0.active_counter(BackendNumber(backend)).fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sends frames with their tickets in front. Gives how many the kernel took.
fn send_with_tickets(socket: &Socket, frames: &[Out]) -> io::Result<usize> {
    send_batch(socket, frames.iter().map(|out| [bytemuck::bytes_of(&out.ticket), &out.frame]))
}
