//! A server of the lab: HTTP, TCP and UDP echo, and an agent, on all addresses of its host, in both families.

use std::io;
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use hdrhistogram::Histogram;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::agent::{self, Agent};
use super::echo;
use super::http;
use super::load::exponential;
use super::netns::Namespace;
use super::runtime::{Runtime, RuntimeError};
use super::work::Work;

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Latencies are recorded up to this, in microseconds.
const MOST_US: u64 = 600_000_000;

/// Where the agent is asked.
pub const AGENT_PORT: u16 = 9100;

#[derive(Debug, Error)]
pub enum ServerError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{server} cannot listen on {protocol} port {port}: {source}; does something else listen there?")]
    Listen { server: String, protocol: &'static str, port: u16, source: io::Error },
}

#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub http: u16,
    /// TCP and UDP.
    pub echo: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { http: 80, echo: 7 }
    }
}

/// The time of a worker that a request takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ServiceTime {
    Fixed(Duration),
    /// Of exponential distribution with this mean, the same for the same server and order of requests.
    Exponential(Duration),
}

/// How HTTP requests are answered, except those for `/agent`.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Time before each answer that takes no worker.
    pub delay: Duration,
    pub service_time: ServiceTime,
    /// Requests that are served at a time, at least one; others wait. Without, all are served at once.
    pub workers: Option<u32>,
    /// Divides the service time, also of requests that are being served. At zero the server hangs.
    pub speed: f64,
    pub status: u16,
    /// Share of the requests, 0 to 1, that get status 500 in the end.
    pub error_share: f64,
    /// Share of the TCP connections, 0 to 1, that are reset once they are accepted.
    pub reset_share: f64,
    /// Answers `/` with a pattern of so many bytes instead of the description of the request.
    pub body_bytes: Option<usize>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            service_time: ServiceTime::Fixed(Duration::ZERO),
            workers: None,
            speed: 1.0,
            status: 200,
            error_share: 0.0,
            reset_share: 0.0,
            body_bytes: None,
        }
    }
}

impl Behaviour {
    /// A server with so many workers, which take a time of exponential distribution for each request.
    pub fn workers(workers: u32, mean: Duration) -> Self {
        Self { workers: Some(workers), service_time: ServiceTime::Exponential(mean), ..Self::default() }
    }

    /// Most requests that it can serve in a second, in the long run.
    pub fn capacity(&self) -> f64 {
        let (ServiceTime::Fixed(mean) | ServiceTime::Exponential(mean)) = self.service_time;
        self.workers.map_or(f64::INFINITY, f64::from) * self.speed / mean.as_secs_f64()
    }
}

/// What becomes of live connections when a server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Each gets a TCP reset.
    Reset,
    /// They are served on.
    Leave,
}

/// What a server has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    pub http_requests: u64,
    pub datagrams: u64,
    /// Connections that are open now.
    pub open: usize,
    /// Requests that are served or wait now.
    pub in_flight: u64,
}

/// What the tasks of a server share.
#[derive(Debug)]
pub(super) struct State {
    pub name: String,
    pub http_requests: AtomicU64,
    pub datagrams: AtomicU64,
    connections: AtomicU64,
    in_flight: AtomicU64,
    /// Of requests, from when they came to the answer, in microseconds.
    served_us: Mutex<Histogram<u64>>,
    behaviour: Mutex<Behaviour>,
    work: Work,
    pub agent: Mutex<Agent>,
    random: Mutex<Rng>,
    open: watch::Sender<usize>,
    /// Changed to have all open connections reset.
    resets: watch::Sender<()>,
}

impl State {
    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the time of a request, and gives the status of its answer.
    pub async fn serve(&self) -> u16 {
        let behaviour = *self.behaviour();
        let (service_time, fails) = {
            let mut random = self.random();
            let service_time = match behaviour.service_time {
                ServiceTime::Fixed(time) => time,
                ServiceTime::Exponential(mean) => mean.mul_f64(exponential(&mut random)),
            };
            (service_time, random.f64() < behaviour.error_share)
        };
        if behaviour.workers.is_some() || !service_time.is_zero() {
            self.work.serve(service_time).await;
        }
        if !behaviour.delay.is_zero() {
            sleep(behaviour.delay).await;
        }
        if fails { 500 } else { behaviour.status }
    }

    /// Whether the next connection is to be reset.
    fn resets_connection(&self) -> bool {
        let share = self.behaviour().reset_share;
        share > 0.0 && self.random().f64() < share
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Share of the workers that are at work, 0 to 1; none if there is a worker for every request.
    pub fn busy(&self) -> Option<f64> {
        self.work.busy()
    }
}

/// A request counted as in flight while it lives.
pub(super) struct InFlight<'a>(&'a State, Instant);

impl<'a> InFlight<'a> {
    pub fn new(state: &'a State) -> Self {
        state.http_requests.fetch_add(1, Ordering::Relaxed);
        state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(state, Instant::now())
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut served = self.0.served_us.lock().unwrap_or_else(PoisonError::into_inner);
        served.saturating_record(self.1.elapsed().as_micros() as u64);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counted as open while it lives.
pub(super) struct Open {
    state: Arc<State>,
    resets: watch::Receiver<()>,
}

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.connections.fetch_add(1, Ordering::Relaxed);
        state.open.send_modify(|open| *open += 1);
        Self { state: Arc::clone(state), resets: state.resets.subscribe() }
    }

    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Completes when the connection is to be reset.
    pub async fn reset_asked(&mut self) {
        self.resets.changed().await.expect("the sender is in the state, which self holds");
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.state.open.send_modify(|open| *open -= 1);
    }
}

/// A running or stopped server. Dropping it closes everything.
#[derive(Debug)]
pub struct Server {
    ports: Ports,
    state: Arc<State>,
    listeners: Vec<JoinHandle<()>>,
    runtime: Runtime,
}

impl Server {
    /// Starts a server that tells `name` in its answers.
    pub fn start(namespace: &Namespace, name: &str, ports: Ports) -> Result<Self, ServerError> {
        let state = Arc::new(State {
            name: name.to_owned(),
            http_requests: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            served_us: Mutex::new(Histogram::new_with_bounds(1, MOST_US, 3).expect("the bounds are in order")),
            behaviour: Mutex::new(Behaviour::default()),
            work: Work::new(),
            agent: Mutex::new(Agent::default()),
            random: Mutex::new(Rng::with_seed(name.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte)))),
            open: watch::Sender::new(0),
            resets: watch::Sender::new(()),
        });
        let mut server = Self { ports, state, listeners: Vec::new(), runtime: Runtime::start(namespace)? };
        server.restart()?;
        Ok(server)
    }

    /// Listens again after [`Self::stop`]; nothing changes if it was not stopped.
    pub fn restart(&mut self) -> Result<(), ServerError> {
        if self.listeners.is_empty() {
            let state = Arc::clone(&self.state);
            let ports = self.ports;
            self.listeners = self.runtime.block_on(async move { listen(&state, ports) })?;
        }
        Ok(())
    }

    /// Stops listening, on all ports. When it returns, new connections are refused and, if asked for, resets are sent.
    pub fn stop(&mut self, live: Live) {
        let listeners = std::mem::take(&mut self.listeners);
        let state = Arc::clone(&self.state);
        self.runtime.block_on(async move {
            for listener in listeners {
                listener.abort();
                // Aborted tasks end with an error; only that they have ended counts.
                listener.await.unwrap_or_default();
            }
            if live == Live::Reset {
                state.resets.send_replace(());
                let mut open = state.open.subscribe();
                open.wait_for(|open| *open == 0).await.expect("the sender is in the state, which is held");
            }
        });
    }

    /// Changes how requests are answered from now on. Requests that are being served keep their service time, and
    /// take the workers and the speed that the server now has.
    ///
    /// # Panics
    /// If there is no worker, or the speed is negative.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        assert!(behaviour.workers != Some(0) && behaviour.speed >= 0.0, "{behaviour:?}");
        *self.state.behaviour() = behaviour;
        self.state.work.set(behaviour.workers, behaviour.speed);
    }

    pub fn behaviour(&self) -> Behaviour {
        *self.state.behaviour()
    }

    /// Changes what the agent says.
    pub fn set_agent(&self, agent: Agent) {
        *self.state.agent.lock().unwrap_or_else(PoisonError::into_inner) = agent;
    }

    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Time from a request to its answer that a share of the requests (0 to 1) does not exceed.
    pub fn latency(&self, share: f64) -> Duration {
        let served = self.state.served_us.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(served.value_at_quantile(share))
    }

    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.state.connections.load(Ordering::Relaxed),
            http_requests: self.state.http_requests.load(Ordering::Relaxed),
            datagrams: self.state.datagrams.load(Ordering::Relaxed),
            open: *self.state.open.borrow(),
            in_flight: self.state.in_flight(),
        }
    }
}

/// Has a TCP reset sent when the stream is closed.
pub(super) fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        eprintln!("lab: a connection will be closed instead of reset: {error}");
    }
}

fn listen(state: &Arc<State>, ports: Ports) -> Result<Vec<JoinHandle<()>>, ServerError> {
    let fail = |protocol, port| {
        let server = state.name.clone();
        move |source| ServerError::Listen { server, protocol, port, source }
    };
    let http = tcp_listener(ports.http).map_err(fail("TCP", ports.http))?;
    let tcp_echo = tcp_listener(ports.echo).map_err(fail("TCP", ports.echo))?;
    let agent = tcp_listener(AGENT_PORT).map_err(fail("TCP", AGENT_PORT))?;
    let udp_echo = echo::udp_socket(ports.echo).map_err(fail("UDP", ports.echo))?;
    Ok(vec![
        tokio::spawn(accept(http, Arc::clone(state), http::serve)),
        tokio::spawn(accept(tcp_echo, Arc::clone(state), echo::serve_tcp)),
        tokio::spawn(accept(agent, Arc::clone(state), agent::serve)),
        tokio::spawn(echo::serve_udp(udp_echo, Arc::clone(state))),
    ])
}

/// Stops listening when dropped, even if a process that was forked at the moment has a copy of the descriptor.
struct Listener(TcpListener);

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = SockRef::from(&self.0).shutdown(Shutdown::Both) {
            eprintln!("lab: a listener may linger: {error}");
        }
    }
}

async fn accept<F>(listener: Listener, state: Arc<State>, serve: fn(TcpStream, Open) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.0.accept().await {
            Ok((stream, _)) if state.resets_connection() => reset_on_close(&stream),
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Open::new(&state)));
            }
            Err(error) => {
                eprintln!("lab: {} cannot accept: {error}", state.name);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn tcp_listener(port: u16) -> io::Result<Listener> {
    let socket = wildcard(Type::STREAM, Protocol::TCP, port)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).map(Listener)
}

/// A socket on all addresses of both families, also those added later.
pub(super) fn wildcard(kind: Type, protocol: Protocol, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    // Connections of an earlier start may still be there.
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}
