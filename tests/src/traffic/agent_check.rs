//! HAProxy's agent check: a port of its own that tells the agent's line.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::select;

use super::connection::{Open, reset_on_close};
use super::state::State;

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
    let line = state.agent().line(state.busy());
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut [0; 512]).await? > 0 {}
    Ok(())
}
