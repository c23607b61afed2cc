//! An open connection of a server: counted, and reset when the server is told to.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::state::State;

/// Counted as open while it lives.
pub(super) struct Open {
    state: Arc<State>,
    resets: watch::Receiver<()>,
}

impl Open {
    pub fn new(state: &Arc<State>) -> Self {
        Self { state: Arc::clone(state), resets: state.open_connection() }
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
        self.state.close_connection();
    }
}

/// Has a TCP reset sent when the stream is closed.
pub(super) fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        eprintln!("lab: a connection will be closed instead of reset: {error}");
    }
}
