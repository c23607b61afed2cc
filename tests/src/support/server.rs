//! A server of the lab: HTTP, and TCP and UDP echo, on all addresses of its host, in both families.

use std::io;
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::echo;
use super::http;
use super::netns::Namespace;
use super::runtime::{Runtime, RuntimeError};

/// Connections that may wait for `accept`.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

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

/// How HTTP requests for `/` and `/bytes/N` are answered.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Time before each answer.
    pub delay: Duration,
    pub status: u16,
    /// Answers `/` with a pattern of so many bytes instead of the description of the request.
    pub body_bytes: Option<usize>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { delay: Duration::ZERO, status: 200, body_bytes: None }
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
}

/// What the tasks of a server share.
#[derive(Debug)]
pub(super) struct State {
    pub name: String,
    pub http_requests: AtomicU64,
    pub datagrams: AtomicU64,
    connections: AtomicU64,
    behaviour: Mutex<Behaviour>,
    open: watch::Sender<usize>,
    /// Changed to have all open connections reset.
    resets: watch::Sender<()>,
}

impl State {
    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
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
            behaviour: Mutex::new(Behaviour::default()),
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

    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *self.state.behaviour() = behaviour;
    }

    pub fn name(&self) -> &str {
        &self.state.name
    }

    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.state.connections.load(Ordering::Relaxed),
            http_requests: self.state.http_requests.load(Ordering::Relaxed),
            datagrams: self.state.datagrams.load(Ordering::Relaxed),
            open: *self.state.open.borrow(),
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
    let udp_echo = echo::udp_socket(ports.echo).map_err(fail("UDP", ports.echo))?;
    Ok(vec![
        tokio::spawn(accept(http, Arc::clone(state), http::serve)),
        tokio::spawn(accept(tcp_echo, Arc::clone(state), echo::serve_tcp)),
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
