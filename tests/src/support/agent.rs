//! A server's word about itself: the line of HAProxy's agent check on a port of its own, and JSON at `/agent`.

use std::io;
use std::sync::{Arc, PoisonError};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::select;

use super::server::{Open, State, reset_on_close};

/// What the agent's line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    Line(String),
    /// The share of idle workers, as `75%`.
    Idle,
}

impl Default for Agent {
    fn default() -> Self {
        Self::Line("up 100%".to_owned())
    }
}

impl Agent {
    fn line(&self, state: &State) -> String {
        match self {
            Self::Line(line) => format!("{line}\n"),
            Self::Idle => format!("{:.0}%\n", (1.0 - state.busy().unwrap_or(0.0)) * 100.0),
        }
    }
}

pub(super) async fn serve(mut stream: TcpStream, mut open: Open) {
    let state = Arc::clone(open.state());
    select! {
        // How a connection ended shows at the client, which records it.
        _ended = tell(&mut stream, &state) => {}
        () = open.reset_asked() => reset_on_close(&stream),
    }
}

/// Tells the line and waits for the other's end: what it may send is of no interest, but unread it would mean a reset.
async fn tell(stream: &mut TcpStream, state: &State) -> io::Result<()> {
    let line = state.agent.lock().unwrap_or_else(PoisonError::into_inner).line(state);
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut [0; 512]).await? > 0 {}
    Ok(())
}

/// The share of busy workers, and the requests in flight.
pub(super) fn json(state: &State) -> String {
    json!({ "cpu": state.busy().unwrap_or(0.0), "in_flight": state.in_flight() }).to_string()
}
