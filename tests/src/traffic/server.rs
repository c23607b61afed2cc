//! A server of the lab: HTTP, TCP and UDP echo, and an agent, on all addresses of its host, in both families.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::agent::Agent;
use super::agent_check;
use super::behaviour::Behaviour;
use super::connection::{Open, reset_on_close};
use super::echo;
use super::http;
use super::socket::{Listener, tcp_listener, udp_socket};
use super::state::{Counts, State};
use crate::lab::netns::Namespace;
use crate::lab::runtime::{Runtime, RuntimeError};

/// Pause after an accept that failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

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

/// What becomes of live connections when a server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Each gets a TCP reset.
    Reset,
    /// They are served on.
    Leave,
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
        let state = Arc::new(State::new(name));
        let mut server = Self { ports, state, listeners: Vec::new(), runtime: Runtime::start(namespace)? };
        server.restart()?;
        Ok(server)
    }

    /// Keeps its times also on a busy machine.
    pub fn take_priority(&self) {
        self.runtime.take_priority();
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
                state.reset_connections().await;
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
        self.state.set_behaviour(behaviour);
    }

    pub fn behaviour(&self) -> Behaviour {
        self.state.behaviour()
    }

    /// Changes what the agent says.
    pub fn set_agent(&self, agent: Agent) {
        self.state.set_agent(agent);
    }

    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Time from a request to its answer that a share of the requests (0 to 1) does not exceed.
    pub fn latency(&self, share: f64) -> Duration {
        self.state.latency(share)
    }

    pub fn counts(&self) -> Counts {
        self.state.counts()
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
    let udp_echo = udp_socket(ports.echo).map_err(fail("UDP", ports.echo))?;
    Ok(vec![
        tokio::spawn(accept(http, Arc::clone(state), http::serve)),
        tokio::spawn(accept(tcp_echo, Arc::clone(state), echo::serve_tcp)),
        tokio::spawn(accept(agent, Arc::clone(state), agent_check::serve)),
        tokio::spawn(echo::serve_udp(udp_echo, Arc::clone(state))),
    ])
}

async fn accept<F>(listener: Listener, state: Arc<State>, serve: fn(TcpStream, Open) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok(stream) if state.resets_connection() => reset_on_close(&stream),
            Ok(stream) => {
                tokio::spawn(serve(stream, Open::new(&state)));
            }
            Err(error) => {
                eprintln!("lab: {} cannot accept: {error}", state.name);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
